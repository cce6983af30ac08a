"""Networks of torchvision and what today's torch writes; where torch is installed only.

pytest --slow tests/test_checkpoint_torch.py -s        # prints the largest differences
"""

import numpy as np
import pytest

import fastbn

torch = pytest.importorskip("torch", reason="compares with torch")


def randomized(network):
    """With weights and statistics as after training, so that no batch norm is close to nothing."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.weight, 1, 0.3)
            torch.nn.init.normal_(module.bias, 0, 0.3)
            torch.nn.init.normal_(module.running_mean, 0, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.3, 3)
            module.num_batches_tracked += 5
    return network.eval()


def calls_of(network, x):
    """Input and output of each of its batch norms."""
    calls = {}

    def keep(name):
        def hook(module, inputs, output):
            calls[name] = inputs[0].numpy().copy(), output.numpy().copy()

        return hook

    for name, module in network.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(keep(name))
    with torch.no_grad():
        network(x)
    return calls


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zip", "old", "safetensors", "mapping"])
@pytest.mark.parametrize(("name", "count"), [("resnet18", 20), ("mobilenet_v2", 52)])
def test_a_network_of_torchvision(name, count, kind, tmp_path):
    models = pytest.importorskip("torchvision.models", exc_type=(ImportError, RuntimeError))
    network = randomized(getattr(models, name)(weights=None))
    source = tmp_path / "network"
    if kind == "safetensors":
        from safetensors.torch import save_file

        save_file(network.state_dict(), source)
    elif kind == "mapping":
        source = {"model": dict(network.named_parameters()) | dict(network.named_buffers())}
    else:
        zipped = kind == "zip"
        torch.save(network.state_dict(), source, _use_new_zipfile_serialization=zipped)
    layers = fastbn.load_batch_norms(source)
    calls = calls_of(network, torch.randn(2, 3, 96, 96))
    assert layers.keys() == calls.keys()
    assert len(layers) == count
    worst = 0.0
    for norm, (x, expected) in calls.items():
        assert type(layers[norm]) is fastbn.BatchNorm2d
        module = network.get_submodule(norm)
        assert (layers[norm].eps, layers[norm].num_batches_tracked) == (module.eps, 5)
        error = np.abs(layers[norm](x) - expected) / (1 + np.abs(expected))
        worst = max(worst, float(error.max()))
    print(f"\n{name}, {kind}: {len(layers)} batch norms, largest relative difference {worst:.1e}")
    assert worst < 2e-6
    tensors = fastbn.load_tensors(source)
    for key, value in network.state_dict().items():
        np.testing.assert_array_equal(tensors[key], value.numpy())


@pytest.mark.parametrize("kind", ["zip", "old", "mapping"])
def test_what_torch_writes_today(kind, tmp_path):
    """As the committed files, which an older torch may have written."""
    base = torch.randn(6, 4)
    state = {
        "tied.weight": base.T, "again.weight": base.T, "half": base.half(), "part": base[::2, 1:],
        "bfloat16": base.bfloat16(), "parameter": torch.nn.Parameter(base),
    }  # fmt: skip
    source = {"state_dict": state}
    if kind != "mapping":
        source = tmp_path / "x.pth"
        torch.save({"state_dict": state}, source, _use_new_zipfile_serialization=kind == "zip")
    tensors = fastbn.load_tensors(source)
    assert list(tensors) == list(state)
    for name, tensor in state.items():
        expected = tensor.detach().float().numpy()
        np.testing.assert_array_equal(tensors[name].astype(np.float32), expected)


def test_a_whole_module_is_refused_by_name(tmp_path):
    torch.save(torch.nn.BatchNorm2d(3), tmp_path / "module.pth")
    with pytest.raises(ValueError, match=r"'torch\.nn\.modules\.batchnorm\.BatchNorm2d', which"):
        fastbn.load_batch_norms(tmp_path / "module.pth")


def test_what_is_saved_is_loaded_by_torch(tmp_path):
    from safetensors.torch import load_file

    bn = fastbn.BatchNorm2d(3)
    bn(np.random.default_rng(0).normal(2, 3, (4, 3, 5, 5)).astype(np.float32))
    fastbn.save({"0": bn}, tmp_path / "x.safetensors")
    theirs = torch.nn.Sequential(torch.nn.BatchNorm2d(3))
    theirs.load_state_dict(load_file(tmp_path / "x.safetensors"))
    np.testing.assert_array_equal(theirs[0].running_var.numpy(), bn.running_var)
