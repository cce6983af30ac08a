"""ONNX models: as torch's two exporters and onnx.helper write them, and broken ones."""

import builtins
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import fastbn
from fastbn.checkpoint import onnx_file
from tests.checkpoint_files import DATA, assert_same_evaluation

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

FILES = DATA / "onnx"


def norms_of(file):
    return {norm.name: norm for norm in onnx_file.read(file).norms}


# --- models that frameworks wrote ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "values"),
    [("torch_dynamo", "torch"), ("torch_script", "torch"), ("helper", "helper")],
)
def test_evaluation_is_that_of_the_framework(model, values):
    checkpoint = onnx_file.read(FILES / f"{model}.onnx")
    assert_same_evaluation(checkpoint.norms, np.load(FILES / f"{values}.npz"))


def test_by_the_public_function():
    values = np.load(FILES / "torch.npz")
    layers = fastbn.load_batch_norms(FILES / "torch_dynamo.onnx")
    assert list(layers) == ["bn1", "block.1", "plain", "same", "head"]
    for name, layer in layers.items():
        y = layer(values[f"{name}.x"])
        np.testing.assert_allclose(y, values[f"{name}.y"], rtol=2e-6, atol=1e-6)
    with pytest.raises(ValueError, match=r"torch_folded.onnx: .*optimize=False"):
        fastbn.load_batch_norms(FILES / "torch_folded.onnx")
    assert fastbn.load_tensors(FILES / "torch_folded.onnx").keys() == {"0.weight", "0.bias"}


@pytest.mark.parametrize("model", ["torch_dynamo", "torch_script"])
def test_arguments_of_torch_layers(model):
    found = norms_of(FILES / f"{model}.onnx")
    arguments = {name: (n.eps, n.momentum, n.dimensions, n.axis) for name, n in found.items()}
    usual = (1e-5, 0.1, 2, 1)
    assert arguments == {
        "bn1": (1e-3, 0.01, 2, 1),
        "block.1": usual,
        "plain": usual,
        "same": usual,
        "head": (1e-5, 0.1, 1, 1),
    }


def test_arguments_and_dimensions_without_names():
    found = norms_of(FILES / "helper.onnx")
    assert {n.name: (n.eps, n.momentum, n.dimensions) for n in found.values()} == {
        "a": (0.01, 0.01, 3),
        "stage2.norm": (1e-5, 0.1, 3),
    }


def test_tensors_are_read_by_name_in_the_order_of_use():
    checkpoint = onnx_file.read(FILES / "torch_dynamo.onnx")
    names = [n for n in checkpoint.tensors if n.endswith("weight")]
    assert names == [
        *("conv1.weight", "bn1.weight", "block.0.weight", "block.1.weight"),
        *("same.weight", "fc.weight", "head.weight"),
    ]
    kernel = checkpoint.tensors["conv1.weight"]
    assert kernel.shape == checkpoint.tensors.shape("conv1.weight") == (6, 3, 3, 3)
    kernel[:] = 0  # it is one's own
    assert checkpoint.tensors["conv1.weight"].any()


def test_the_convolution_before_gives_what_the_norm_takes():
    """The kernels belong to the names: torch's convolution, in plain NumPy."""
    values = np.load(FILES / "torch.npz")
    kernel = onnx_file.read(FILES / "torch_dynamo.onnx").tensors["conv1.weight"]
    windows = np.lib.stride_tricks.sliding_window_view(values["x"], (3, 3), axis=(2, 3))
    y = np.einsum("ncxyhw,ochw->noxy", windows, kernel)
    np.testing.assert_allclose(values["bn1.x"], y, rtol=1e-4, atol=1e-5)


def test_folded_norms_are_explained():
    checkpoint = onnx_file.read(FILES / "torch_folded.onnx")
    assert checkpoint.norms == []
    assert "optimize=False" in checkpoint.no_norms
    assert "do_constant_folding=False" in checkpoint.no_norms
    assert checkpoint.tensors["0.weight"].shape == (4, 3, 3, 3)


# --- models made here ----------------------------------------------------------------------------


def model_of(nodes, tensors=(), inputs=("x",), **options):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in dict(tensors).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], **options)


def four(prefix="n.", dtype=np.float32, size=3):
    names = ("scale", "B", "running_mean", "running_var")
    return {f"{prefix}{name}": np.full(size, i + 1.0).astype(dtype) for i, name in enumerate(names)}


def norm_node(*inputs, x="x", y="y", **options):
    return helper.make_node("BatchNormalization", [x, *inputs], [y], **options)


def save(model, tmp_path):
    file = tmp_path / "model.onnx"
    file.write_bytes(model.SerializeToString())
    return file


def test_norm_by_defaults(tmp_path):
    tensors = four()
    (norm,) = norms_of(save(model_of([norm_node(*tensors)], tensors), tmp_path)).values()
    assert (norm.name, norm.eps, norm.momentum) == ("n", 1e-5, 0.1)
    assert norm.dimensions is None  # nothing in the graph tells
    assert {k: v[0] for k, v in norm.arrays.items()} == {
        "weight": 1, "bias": 2, "running_mean": 3, "running_var": 4,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("mean", "var", "node", "expected"),
    [
        ("bn1.running_mean", "bn1.running_var", "/bn1/BatchNormalization", "bn1"),
        ("features.0.running_mean", "features.0.running_var", "", "features.0"),
        ("res2_bn_rm_0", "res2_bn_riv_0", "", "res2_bn"),
        ("net0_batchnorm1_running_mean", "net0_batchnorm1_running_var", "", "net0_batchnorm1"),
        ("model/bn/moving_mean", "model/bn/moving_variance", "", "model.bn"),
        ("input_mean", "input_var", "norm_3", "norm_3"),
        ("onnx::BatchNormalization_12", "onnx::BatchNormalization_13", "/a/b/BN", "a.b.BN"),
        ("12", "13", "", "y"),
        ("val_12", "val_13", "model/bn/FusedBatchNormV3", "model.bn"),
    ],
)
def test_names(mean, var, node, expected, tmp_path):
    tensors = dict(zip(("s", "b", mean, var), four().values(), strict=True))
    model = model_of([norm_node(*tensors, name=node)], tensors)
    assert list(norms_of(save(model, tmp_path))) == [expected]


def test_a_layer_that_is_called_twice_is_one_and_another_of_its_name_is_not(tmp_path):
    tensors = four()
    nodes = [
        norm_node(*tensors, y="a"),
        norm_node(*tensors, x="a", y="b"),
        norm_node(*tensors, x="b", epsilon=0.5),
    ]
    found = norms_of(save(model_of(nodes, tensors), tmp_path))
    assert {name: norm.eps for name, norm in found.items()} == {"n": 1e-5, "n_2": 0.5}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([("Conv", ["x", "k4"], "a")], [], 2),
        ([("Conv", ["x", "k4"], "r"), ("Relu", ["r"], "a")], [], 2),
        ([("Conv", ["x", "k3"], "r"), ("Add", ["r", "r"], "a")], [], 1),
        ([("Gemm", ["x", "k2"], "a")], [], 1),
        ([("Relu", ["x"], "a")], [("Relu", ["b"], "c"), ("Conv", ["c", "k5"], "y")], 3),
        ([("Squeeze", ["x"], "a")], [], None),
    ],
)
def test_dimensions_from_the_graph(before, after, expected, tmp_path):
    kernels = {f"k{n}": np.ones((3,) * n, np.float32) for n in (2, 3, 4, 5)}
    nodes = [helper.make_node(kind, inputs, [y]) for kind, inputs, y in before]
    nodes += [norm_node(*four(), x="a", y="b")]
    nodes += [helper.make_node(kind, inputs, [y]) for kind, inputs, y in after]
    model = model_of(nodes, four() | kernels)
    assert norms_of(save(model, tmp_path))["n"].dimensions == expected


def test_norm_in_a_branch_takes_constants_from_around(tmp_path):
    outer = four()
    last = outer.popitem()
    branch = helper.make_graph(
        [norm_node(*outer, last[0], y="inside")],
        "then",
        [],
        [helper.make_tensor_value_info("inside", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(last[1], last[0])],
    )
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch, name="if")
    checkpoint = onnx_file.read(save(model_of([node], outer, ("x", "c")), tmp_path))
    assert [norm.name for norm in checkpoint.norms] == ["n"]
    assert last[0] in checkpoint.tensors
    assert len(checkpoint.tensors) == 5  # the other branch has one of the same name


def test_constants_that_are_passed_on_or_repeated(tmp_path):
    tensors = four("s.")
    one = {"one": np.ones(1, np.float32), "shape": np.array([3])}
    nodes = [
        helper.make_node("Constant", [], ["zero"], value_float=0.0),
        helper.make_node("Expand", ["one", "shape"], ["w"]),
        helper.make_node("Expand", ["zero", "shape"], ["b0"]),
        helper.make_node("Cast", ["b0"], ["b"], to=1),
        helper.make_node("Identity", ["s.running_mean"], ["t.running_mean"]),
        norm_node("w", "b", "t.running_mean", "s.running_var"),
    ]
    (norm,) = norms_of(save(model_of(nodes, tensors | one), tmp_path)).values()
    assert norm.arrays["weight"].tolist() == [1, 1, 1]
    assert norm.arrays["bias"].tolist() == [0, 0, 0]
    assert norm.arrays["running_mean"].tolist() == [3, 3, 3]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_dtypes(dtype, tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    model = model_of([norm_node(*four())], four(dtype=kind))
    norm = norms_of(save(model, tmp_path))["n"]
    assert norm.arrays["running_var"].dtype == kind
    assert (norm.arrays["running_var"] == 4).all()


def without(kind):
    """Models of which no norm can be had; the other tensors can."""
    tensors = four()
    names = list(tensors)
    if kind == "computed":
        nodes = [helper.make_node("Neg", [names[0]], ["w"]), norm_node("w", *names[1:])]
        return model_of(nodes, tensors), "computed in the graph, by Neg"
    if kind == "input":
        return model_of([norm_node(*names)], dict(list(tensors.items())[:3])), "an input of"
    if kind == "circle":
        nodes = [
            helper.make_node("Identity", ["w"], ["v"]),
            helper.make_node("Identity", ["v"], ["w"]),
            norm_node("w", *names[1:]),
        ]
        return model_of(nodes, tensors), "computed in the graph, by Identity"
    if kind == "spatial":
        return model_of([norm_node(*names, spatial=0)], tensors), "spatial=0"
    if kind == "inputs":
        return model_of([norm_node(*names[:3])], tensors), "has 4 inputs, expected 5"
    if kind == "repeated":
        nodes = [helper.make_node("Expand", names[:2], ["w"]), norm_node("w", *names[1:])]
        return model_of(nodes, tensors), "3 values that are repeated"
    function = helper.make_function(
        "own", "Block", ["x", *"abcd"], ["y"], [norm_node(*"abcd")], [helper.make_opsetid("", 15)]
    )
    node = helper.make_node("Block", ["x", *names], ["y"], domain="own")
    return model_of([node], tensors, functions=[function]), "inline_local_functions"


@pytest.mark.parametrize(
    "kind", ["computed", "input", "circle", "spatial", "inputs", "repeated", "function"]
)
def test_norms_that_cannot_be_had(kind, tmp_path):
    model, message = without(kind)
    checkpoint = onnx_file.read(save(model, tmp_path))
    assert checkpoint.norms == []
    assert message in checkpoint.no_norms
    assert checkpoint.tensors["n.scale"].tolist() == [1, 1, 1]


def test_without_convolutions_nothing_is_said_to_be_folded(tmp_path):
    checkpoint = onnx_file.read(save(model_of([helper.make_node("Relu", ["x"], ["y"])]), tmp_path))
    assert checkpoint.no_norms == "has no BatchNormalization node"


def test_without_onnx(monkeypatch, tmp_path):
    file = save(model_of([]), tmp_path)
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "onnx":
            raise ImportError("No module named 'onnx'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"pip install 'fastbn\[onnx\]'"):
        onnx_file.read(file)


# --- tensors in other files ----------------------------------------------------------------------


def external(folder, location, offset=None, length=None, dims=(3,), extra=()):
    model = model_of([norm_node(*four())], four())
    tensor = model.graph.initializer.add(name="far", data_type=1, dims=dims, data_location=1)
    entries = {"location": location, "offset": offset, "length": length} | dict(extra)
    for key, value in entries.items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return save(model, folder)


@pytest.fixture
def folder(tmp_path):
    inside = tmp_path / "model"
    (inside / "sub").mkdir(parents=True)
    secret = np.arange(100, dtype=np.float32).tobytes()
    for file in (tmp_path / "secret", inside / "data", inside / "sub" / "data"):
        file.write_bytes(secret)
    (inside / "link").symlink_to(tmp_path / "secret")
    (inside / "inner").symlink_to("data")
    return inside


@pytest.mark.parametrize(
    ("location", "offset", "length", "first"),
    [
        ("data", None, None, 0),
        ("data", 8, 12, 2),
        ("./sub/data", 4, None, 1),
        ("inner", 0, 12, 0),
        ("data", 388, 12, 97),
    ],
)
def test_external_data(location, offset, length, first, folder):
    tensors = onnx_file.read(external(folder, location, offset, length)).tensors
    assert tensors["far"].tolist() == [first, first + 1, first + 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"location": "../secret"}, "not within"),
        ({"location": "sub/../../secret"}, "not within"),
        ({"location": "link"}, "not within"),
        ({"location": "/etc/passwd"}, "not within"),
        ({"location": ""}, "not within"),
        ({"location": "."}, "not within"),
        ({"location": "sub"}, "no plain file"),
        ({"location": "absent"}, "No such file"),
        ({"location": "data\0"}, "null"),
        ({"location": "data", "offset": 390}, "claims 12 bytes from 390"),
        ({"location": "data", "offset": -4}, "claims"),
        ({"location": "data", "length": -4}, "claims"),
        ({"location": "data", "offset": "x"}, "invalid literal"),
        ({"location": "data", "length": 400}, "its shape takes 12"),
        ({"location": "data", "length": 8}, "reshape"),
        ({"location": "data", "dims": (2**62,)}, "claims"),
        ({"location": "data", "dims": (-3,)}, "shape"),
    ],
)
def test_external_data_that_is_refused(options, message, folder):
    checkpoint = onnx_file.read(external(folder, **options))
    with pytest.raises(ValueError, match=message) as caught:
        checkpoint.tensors["far"]
    assert "'far'" in str(caught.value)
    assert len(checkpoint.norms) == 1  # the rest is there


def test_external_data_that_is_shown_over_and_over(folder):
    (folder / "data").write_bytes(bytes(1 << 20))
    model = model_of([])
    for i in range(100):
        tensor = model.graph.initializer.add(
            name=f"t{i}", data_type=1, dims=[1 << 18], data_location=1
        )
        tensor.external_data.add(key="location", value="data")
    with pytest.raises(ValueError, match="104857600 bytes in files of 1048576"):
        onnx_file.read(save(model, folder))


def test_external_data_of_a_pipe_does_not_wait(folder):
    os.mkfifo(folder / "pipe")
    with pytest.raises(ValueError, match="no plain file"):
        onnx_file.read(external(folder, "pipe")).tensors["far"]


# --- broken files --------------------------------------------------------------------------------


def test_cut_off_anywhere(tmp_path):
    whole = (FILES / "helper.onnx").read_bytes()
    file = tmp_path / "cut.onnx"
    for length in [*range(40), *range(40, len(whole), 7)]:
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cut off"):
            onnx_file.read(file)


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"\x80\2", b"hello" * 9, bytes(99), b"\n" * 9])
def test_no_onnx_at_all(content, tmp_path):
    file = tmp_path / "x.onnx"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"no ONNX model|cut off"):
        onnx_file.read(file)


def test_changed_bytes_give_clear_errors_or_a_model(tmp_path, rng):
    whole = (FILES / "helper.onnx").read_bytes()
    file = tmp_path / "changed.onnx"
    for _ in range(600):
        content = bytearray(whole)
        for at in rng.integers(0, len(whole), 3):
            content[at] = rng.integers(256)
        file.write_bytes(content)
        try:
            checkpoint = onnx_file.read(file)
            for name in checkpoint.tensors:
                assert isinstance(name, str)
                checkpoint.tensors[name]
        except ValueError as error:
            assert str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ({"dims": [2**40], "data_type": 1, "raw_data": b"1234"}, "claims the shape"),
        ({"dims": [2**62, 2**62], "data_type": 1, "raw_data": b"1234"}, "claims the shape"),
        ({"dims": [2**40], "data_type": 1, "float_data": [1.0]}, "reshape"),
        ({"dims": [2**40], "data_type": 22, "raw_data": b"1234"}, "claims the shape"),
        ({"dims": [-1], "data_type": 1, "raw_data": b"1234"}, "claims the shape"),
        ({"dims": [1], "data_type": 99, "raw_data": b"1234"}, "99"),
        ({"dims": [3], "data_type": 1, "raw_data": b"12345"}, "multiple"),
        ({"dims": [2], "data_type": 1}, "reshape"),
    ],
)
def test_tensors_that_claim_more_than_there_is(tensor, message, tmp_path):
    model = model_of([])
    model.graph.initializer.append(TensorProto(name="t", **tensor))
    checkpoint = onnx_file.read(save(model, tmp_path))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message):
            checkpoint.tensors["t"]
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_texts_are_no_tensors(tmp_path):
    model = model_of([helper.make_node("Constant", [], ["t"], value_string="text")])
    model.graph.initializer.append(TensorProto(name="s", data_type=8, string_data=[b"x"]))
    assert not onnx_file.read(save(model, tmp_path)).tensors


def test_the_largest_model(tmp_path):
    file = tmp_path / "large.onnx"
    with file.open("wb") as stream:
        stream.truncate(2**31)
    with pytest.raises(ValueError, match="at most 2147483647"):
        onnx_file.read(file)


def test_data_is_small():
    size = sum(file.stat().st_size for file in Path(DATA).rglob("*") if file.is_file())
    assert size < 150_000
