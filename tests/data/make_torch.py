"""Make the files of torch that the tests read: run in an environment with torch and safetensors.

    python tests/data/make_torch.py

``network.*`` hold a small convolutional network in each format, with its input and evaluation
output; ``tensors.*`` hold tensors of every kind that a checkpoint may have.
"""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

HERE = Path(__file__).parent


def network():
    """1-, 2- and 3-dimensional batch norms with statistics of their own."""
    torch.manual_seed(0)
    net = nn.Sequential()
    net.add_module("conv1", nn.Conv2d(3, 4, 3, bias=False))
    net.add_module("bn1", nn.BatchNorm2d(4))
    net.add_module("conv2", nn.ConvTranspose2d(4, 5, 2))
    net.add_module("bn2", nn.BatchNorm2d(5, affine=False))
    net.add_module("flat", nn.Flatten())
    net.add_module("fc", nn.Linear(5 * 49, 6))
    net.add_module("bn3", nn.BatchNorm1d(6))
    for _ in range(3):
        net(torch.randn(8, 3, 8, 8) * 3 + 1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) and module.affine:
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return net.eval()


def steps(net, x):
    """Inputs and outputs of its batch norms."""
    found = {}
    for name, module in net.named_children():
        y = module(x)
        if name.startswith("bn"):
            found[f"{name}.x"], found[f"{name}.y"] = x.numpy(), y.numpy()
        x = y
    return found


def tensors():
    """Views, ties, dtypes and containers; and the values they have."""
    torch.manual_seed(1)
    base = torch.randn(6, 4)
    tied = nn.Parameter(torch.randn(3, 2))
    scaled = torch.ones(2)
    scaled.note = "an attribute"
    found = {
        "transposed": base.T,
        "part": base[1:5:2, 1:],
        "row": base[3],
        "expanded": torch.randn(3, 1).expand(3, 4),
        "tied.weight": tied,
        "again.weight": tied,
        "double": torch.randn(3, dtype=torch.float64),
        "half": torch.randn(3).half(),
        "bfloat16": torch.randn(5).bfloat16(),
        "long": torch.tensor([1, -(2**40)]),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "uint16": torch.arange(3).to(torch.uint16),
        "complex": torch.randn(2, dtype=torch.complex64),
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 3),
        "last": torch.randn(3, 4, 2, 2).contiguous(memory_format=torch.channels_last),
        "attribute": scaled,
    }
    around = {
        "state_dict": found,
        "epoch": 3, "loss": 0.25, "name": "für alle", "done": None, "big": 2**70,
        "shape": torch.Size([1, 2]), "kinds": {"a", "b"}, "raw": b"\0\xff",
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
        "history": [torch.zeros(1), (torch.ones(1), 2)],
    }  # fmt: skip
    return around, found


def numbers(tensor):
    """As NumPy, where bfloat16 is float32."""
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).contiguous().numpy()


def main():
    """Write all files."""
    net = network()
    state = net.state_dict()
    torch.manual_seed(2)
    with torch.no_grad():
        outputs = steps(net, torch.randn(2, 3, 8, 8))
    np.savez_compressed(HERE / "network.outputs.npz", **outputs)
    torch.save({"model": state, "epoch": 3}, HERE / "network.pth")
    torch.save(
        {f"module.{name}": tensor for name, tensor in state.items()},
        HERE / "network.old.pth",
        _use_new_zipfile_serialization=False,
    )
    save_file(state, HERE / "network.safetensors")
    half = {name: t.bfloat16() if t.is_floating_point() else t for name, t in state.items()}
    save_file(half, HERE / "network.bfloat16.safetensors")
    places = {name: f"sharded-{1 + (name > 'bn3')}.safetensors" for name in state}
    for shard in set(places.values()):
        save_file({n: t for n, t in state.items() if places[n] == shard}, HERE / shard)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (HERE / "sharded.safetensors.index.json").write_text(json.dumps(index))
    around, found = tensors()
    torch.save(around, HERE / "tensors.pth")
    del found["uint16"]  # torch writes it to the new format only
    torch.save(around, HERE / "tensors.old.pth", _use_new_zipfile_serialization=False)
    np.savez_compressed(HERE / "tensors.npz", **{n: numbers(t) for n, t in tensors()[1].items()})


if __name__ == "__main__":
    main()
