"""Make the ONNX files of the tests, with torch's two exporters and with onnx.helper.

    pip install torch==2.13.0 onnx onnxscript onnxruntime && python tests/data/make_onnx.py

Beside each model lies an .npz: ``x`` and ``y`` of the network in evaluation, and input and output
of each batch norm, as ``NAME.x`` and ``NAME.y``, computed by torch and by ONNX Runtime.
"""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

FOLDER = Path(__file__).parent / "onnx"


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(6, eps=1e-3, momentum=0.01)
        self.block = nn.Sequential(nn.Conv2d(6, 6, 3, groups=3), nn.BatchNorm2d(6), nn.ReLU())
        self.plain = nn.BatchNorm2d(6, affine=False)
        self.same = nn.BatchNorm2d(6)  # as it was made: exporters store equal arrays once
        self.fc = nn.Linear(6, 5)
        self.head = nn.BatchNorm1d(5)

    def forward(self, x):
        x = self.block(torch.relu(self.bn1(self.conv1(x))))
        return self.head(self.fc(self.same(self.plain(x)).mean((2, 3))))


def norms(network):
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d)
    return {name: norm for name, norm in network.named_modules() if isinstance(norm, kinds)}


def from_torch():
    torch.manual_seed(0)
    network, x = Network().eval(), torch.randn(1, 3, 7, 7)
    for name, norm in norms(network).items():
        if name == "same":
            continue
        for array in norm.state_dict().values():
            if array.ndim:
                array.copy_(torch.rand_like(array) + 0.5)
    values = {}
    for name, norm in norms(network).items():
        norm.register_forward_hook(
            lambda _, inputs, y, name=name: values.update(
                {f"{name}.x": inputs[0].detach().numpy(), f"{name}.y": y.detach().numpy()}
            )
        )
    with torch.no_grad():
        y = network(x).numpy()
    np.savez(FOLDER / "torch.npz", x=x.numpy(), y=y, **values)
    for name, options in {
        "torch_dynamo": {"optimize": False, "external_data": False},
        "torch_script": {"dynamo": False, "do_constant_folding": False},
    }.items():
        export(network, x, name, **options)
    folded = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    export(folded.eval(), x, "torch_folded", external_data=False)


def export(network, x, name, **options):
    file = FOLDER / f"{name}.onnx"
    torch.onnx.export(network, (x,), file, **options)
    drop_traces(file)


def drop_traces(file):
    """Without the source lines of whoever exported it, which are most of the file."""
    model = onnx.load(file)
    for item in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input):
        del item.metadata_props[:]
    onnx.save(model, file)


def from_helper():
    """Volumes; names that say nothing; a Constant node; evaluated by ONNX Runtime."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(4, 2, 3, 3, 3)).astype(np.float32)
    arrays = {"w": kernel} | {
        str(i): rng.uniform(0.5, 1.5, 4).astype(np.float32) for i in range(1, 9)
    }
    constant = numpy_helper.from_array(arrays.pop("1"))
    nodes = [
        helper.make_node("Constant", [], ["1"], value=constant),
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", *"1234"], ["a"], epsilon=0.01, momentum=0.99),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node(
            "BatchNormalization", ["r", *"5678"], ["y"], name="stage2/norm/BatchNormalization"
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "volumes",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2, 5, 5, 5])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * 5) for n in "ycar"],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    x = rng.normal(size=(1, 2, 5, 5, 5)).astype(np.float32)
    y, c, a, r = session.run(list("ycar"), {"x": x})
    del model.graph.output[1:]
    onnx.save(model, FOLDER / "helper.onnx")
    names = {"a.x": c, "a.y": a, "stage2.norm.x": r, "stage2.norm.y": y}
    np.savez(FOLDER / "helper.npz", x=x, y=y, **names)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    from_torch()
    from_helper()
