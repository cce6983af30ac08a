"""Files of Keras 3 and Keras 2, and broken ones."""

import builtins
import io
import json
import tracemalloc
import zipfile

import numpy as np
import pytest

import fastbn
from fastbn.checkpoint import keras_file
from tests.checkpoint_files import assert_same_evaluation, unpack

h5py = pytest.importorskip("h5py")

OWN = {  # eps, momentum, dimensions, axis
    "first": (0.01, 0.1, 2, -1),
    "block.inner": (1e-3, 0.01, 2, -1),
    "along": (1e-3, 0.01, 1, -1),
    "rows": (1e-3, 0.01, 1, 1),
    "last": (1e-3, 0.01, 1, None),  # of two axes the last is also the second
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return {name: unpack(name, tmp_path_factory.mktemp(name)) for name in ("keras", "tf_keras")}


def values_of(folder, name):
    """What Keras computed; the names of norms in a model in the model are dotted here."""
    values = np.load(folder / f"{name}.npz")
    return {key.replace("inner", "block.inner"): values[key] for key in values}


# --- files that Keras wrote ----------------------------------------------------------------------


@pytest.mark.parametrize("framework", ["keras", "tf_keras"])
@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_whole_models(framework, suffix, files):
    folder = files[framework]
    checkpoint = keras_file.read(folder / f"model.{suffix}")
    assert_same_evaluation(checkpoint.norms, values_of(folder, "model"))
    assert checkpoint.ordered
    for norm in checkpoint.norms:
        *arguments, axis = OWN[norm.name]
        assert [norm.eps, norm.momentum, norm.dimensions] == arguments
        assert axis in (norm.axis, None)


@pytest.mark.parametrize("framework", ["keras", "tf_keras"])
@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_by_the_public_function(framework, suffix, files):
    values = values_of(files[framework], "model")
    layers = fastbn.load_batch_norms(files[framework] / f"model.{suffix}")
    assert list(layers) == list(OWN)
    for name, layer in layers.items():
        y = layer(values[f"{name}.x"])
        np.testing.assert_allclose(y, values[f"{name}.y"], rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("framework", ["keras", "tf_keras"])
def test_arrays_that_are_left_out(framework, files):
    for norm in keras_file.read(files[framework] / "model.keras").norms:
        expected = {"running_mean", "running_var"}
        expected |= {"bias"} if norm.name not in ("along", "last") else set()
        expected |= {"weight"} if norm.name not in ("block.inner", "last") else set()
        assert norm.arrays.keys() == expected


def test_weights_of_keras_3(files):
    """Without arguments of layers: by their arrays, with Keras's defaults."""
    folder = files["keras"]
    norms = keras_file.read(folder / "plain.weights.h5").norms
    assert {norm.dimensions for norm in norms} == {None}
    dimensions = {"first": 2, "block.inner": 2, "along": 1, "last": 1}
    norms = [norm._replace(dimensions=dimensions[norm.name]) for norm in norms]
    assert_same_evaluation(norms, values_of(folder, "plain"))
    assert {(n.eps, n.momentum, n.axis) for n in norms} == {(1e-3, 0.01, -1)}


def test_weights_of_keras_2(files):
    folder = files["tf_keras"]
    checkpoint = keras_file.read(folder / "plain.h5")
    assert checkpoint.ordered
    assert_same_evaluation(checkpoint.norms, values_of(folder, "plain"))


def test_weights_of_keras_2_with_numbers_for_names(files):
    """They do not even have the layers' names: classes, numbered."""
    folder = files["tf_keras"]
    ours = {
        "batch_normalization": ("first", 2),
        "sequential.batch_normalization": ("block.inner", 2),
        "batch_normalization_1": ("along", 1),
        "batch_normalization_2": ("last", 1),
    }
    norms = [
        norm._replace(name=ours[norm.name][0], dimensions=ours[norm.name][1])
        for norm in keras_file.read(folder / "plain.weights.h5").norms
    ]
    assert_same_evaluation(norms, values_of(folder, "plain"))


@pytest.mark.parametrize("framework", ["keras", "tf_keras"])
@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_kernels(framework, suffix, files):
    folder = files[framework]
    tensors = keras_file.read(folder / f"model.{suffix}").tensors
    shapes = {name: tensors.shape(name) for name in tensors if name.endswith("kernel")}
    depthwise = "depthwise_kernel" if (framework, suffix) == ("tf_keras", "h5") else "kernel"
    assert list(shapes.items()) == [
        ("conv.kernel", (3, 3, 3, 4)),
        (f"block.depthwise.{depthwise}", (3, 3, 4, 1)),
        ("sequence.kernel", (3, 4, 5)),
        ("dense.kernel", (5, 3)),
    ]
    values = np.load(folder / "model.npz")
    windows = np.lib.stride_tricks.sliding_window_view(values["x"], (3, 3), axis=(1, 2))
    y = np.einsum("nxychw,hwco->nxyo", windows, tensors["conv.kernel"])
    np.testing.assert_allclose(values["first.x"], y, rtol=1e-4, atol=1e-5)


# --- files made here -----------------------------------------------------------------------------


def norm_arrays(size=3, count=4):
    return [np.full(size, i + 1, np.float32) for i in range(4)][-count:]


def weights(path, layers, name=None):
    """A file as Keras 3 writes it: groups with numbered arrays."""
    with h5py.File(path, "w") as file:
        for place, arrays in layers.items():
            group = file.create_group(f"{place}/vars")
            for i, array in enumerate(arrays):
                group[str(i)] = array
            if name:
                group.attrs["name"] = name
    return path


def archive(path, layers, config, **options):
    stream = io.BytesIO()
    weights(stream, layers)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("metadata.json", "{}")
        file.writestr("config.json", config if isinstance(config, str) else json.dumps(config))
        file.writestr("model.weights.h5", stream.getvalue(), **options)
    return path


def sequential(*layers):
    return {
        "class_name": "Sequential",
        "config": {
            "name": "s",
            "layers": [
                {"class_name": kind, "config": {"name": f"l{i}"} | config}
                for i, (kind, config) in enumerate(layers)
            ],
        },
    }


BN = "BatchNormalization"


def norm_with(tmp_path, *layers, arrays=None):
    place = {"layers/batch_normalization": norm_arrays() if arrays is None else arrays}
    return keras_file.read(archive(tmp_path / "m.keras", place, sequential(*layers)))


@pytest.mark.parametrize(
    ("before", "dimensions"),
    [
        ([("Conv2D", {})], 2),
        ([("Conv3DTranspose", {}), ("ReLU", {})], 3),
        ([("SeparableConv1D", {}), ("Activation", {})], 1),
        ([("Conv2D", {}), ("GlobalAveragePooling2D", {})], 1),
        ([("Conv2D", {}), ("GlobalAveragePooling2D", {"keepdims": True}), ("Dense", {})], 2),
        ([("InputLayer", {"batch_input_shape": [None, 3]}), ("Dense", {})], 1),
        ([("Reshape", {"target_shape": [2, 2, 3]})], 2),
        ([("Mine", {})], None),
    ],
)
def test_dimensions_by_the_layers_before(before, dimensions, tmp_path):
    (norm,) = norm_with(tmp_path, *before, (BN, {})).norms
    assert (norm.dimensions, norm.axis) == (dimensions, -1)


@pytest.mark.parametrize(
    ("axis", "expected"), [(-1, -1), ([3], -1), (3, -1), (1, 1), ([1], 1), (2, 2)]
)
def test_axis(axis, expected, tmp_path):
    (norm,) = norm_with(tmp_path, ("Conv2D", {}), (BN, {"axis": axis})).norms
    assert norm.axis == expected


def test_optimizers_and_other_layers_are_no_norms(tmp_path):
    place = {
        "optimizer": norm_arrays(),
        "layers/layer_normalization": norm_arrays(count=2),
        "layers/embedding": [np.ones((4, 3), np.float32)],
        "layers/separable_conv2d": [np.ones((3, 3, 2, 1)), np.ones((1, 1, 2, 4)), np.ones(4)],
    }
    checkpoint = keras_file.read(weights(tmp_path / "w.h5", place))
    assert checkpoint.norms == []
    assert checkpoint.no_norms == "has no batch norm among its 3 layers with arrays"
    assert sorted(checkpoint.tensors) == [
        "embedding.0", "layer_normalization.0", "layer_normalization.1",
        *(f"separable_conv2d.{name}" for name in ("bias", "depthwise_kernel", "pointwise_kernel")),
    ]  # fmt: skip


def test_layers_of_a_model_of_ones_own(tmp_path):
    """They lie under the names of attributes, and the configuration does not say more."""
    place = {"stem": [np.ones((3, 3, 2, 4), np.float32)], "blocks/block/norm": norm_arrays()}
    config = {"class_name": "Mine", "config": {"units": 3}}
    checkpoint = keras_file.read(archive(tmp_path / "m.keras", place, config))
    (norm,) = checkpoint.norms
    assert (norm.name, norm.eps, norm.dimensions) == ("blocks.block.norm", 1e-3, 2)
    assert "stem.kernel" in checkpoint.tensors


def test_folders_of_tensorflow_2_12(tmp_path):
    place = {"_layer_checkpoint_dependencies/batch_normalization": norm_arrays()}
    config = sequential((BN, {"epsilon": 0.5}))
    (norm,) = keras_file.read(archive(tmp_path / "m.keras", place, config)).norms
    assert (norm.name, norm.eps) == ("l0", 0.5)


def test_many_layers_have_their_names_in_parts(tmp_path):
    path = tmp_path / "w.h5"
    with h5py.File(path, "w") as file:
        for i in (0, 1):
            file.attrs[f"layer_names{i}"] = np.array([f"n{i}".encode()])
            group = file.create_group(f"n{i}")
            names = ["gamma", "beta", "moving_mean", "moving_variance"]
            group.attrs["weight_names"] = [f"n{i}_7/{name}:0" for name in names]
            for name, array in zip(names, norm_arrays(), strict=True):
                group[f"n{i}_7/{name}:0"] = array
    assert [norm.name for norm in keras_file.read(path).norms] == ["n0", "n1"]


def test_bfloat16(tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    arrays = [array.astype(ml_dtypes.bfloat16) for array in norm_arrays()]
    path = weights(tmp_path / "w.h5", {"layers/batch_normalization": arrays})
    with h5py.File(path, "a") as file:
        for dataset in file["layers/batch_normalization/vars"].values():
            dataset.attrs["dtype"] = "bfloat16"
    (norm,) = keras_file.read(path).norms
    assert norm.arrays["running_var"].astype(float).tolist() == [4, 4, 4]


@pytest.mark.parametrize("how", [{"compression": "gzip"}, {"chunks": (1,)}, {"dtype": ">f8"}])
def test_other_ways_to_store(how, tmp_path):
    path = tmp_path / "w.h5"
    with h5py.File(path, "w") as file:
        for i, array in enumerate(norm_arrays()):
            file.create_dataset(f"layers/batch_normalization/vars/{i}", data=array, **how)
    (norm,) = keras_file.read(path).norms
    assert norm.arrays["running_var"].tolist() == [4, 4, 4]
    assert norm.arrays["running_var"].dtype.isnative


@pytest.mark.parametrize(
    ("layer", "arrays", "message"),
    [
        ({}, norm_arrays(count=3), "by its configuration"),
        ({"scale": False}, norm_arrays(), "by its configuration"),
        ({"axis": [1, 2]}, None, "expected one integer"),
        ({"axis": "x"}, None, "expected one integer"),
        ({"epsilon": "x"}, None, "expected a number"),
        ({"momentum": None}, None, "expected a number"),
        ({"momentum": {"a": 1}}, None, "expected a number"),
    ],
)
def test_norms_that_cannot_be_had(layer, arrays, message, tmp_path):
    checkpoint = norm_with(tmp_path, (BN, layer), arrays=arrays)
    assert checkpoint.norms == []
    assert message in checkpoint.no_norms
    assert "'l0'" in checkpoint.no_norms
    assert len(checkpoint.tensors) == len(arrays or norm_arrays())


def test_weights_alone_do_not_say_which_array_is_left_out(tmp_path):
    place = {"layers/batch_normalization": norm_arrays(count=3)}
    checkpoint = keras_file.read(weights(tmp_path / "w.h5", place))
    assert checkpoint.norms == []
    assert "load the .keras file" in checkpoint.no_norms


def test_without_h5py(monkeypatch, tmp_path):
    path = weights(tmp_path / "w.h5", {})
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "h5py":
            raise ImportError("No module named 'h5py'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"pip install 'fastbn\[keras\]'"):
        keras_file.read(path)


# --- broken and malicious files ------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path):
    with h5py.File(tmp_path / "outside.h5", "w") as file:
        file["secret"] = norm_arrays()[0]
    return tmp_path / "outside.h5"


def external_link(vars, outside):
    vars["9"] = h5py.ExternalLink(str(outside), "/secret")


def soft_link(vars, outside):
    vars["9"] = h5py.SoftLink("/layers")


def external_storage(vars, outside):
    vars.create_dataset("9", (3,), "f4", external=[(str(outside), 0, 12)])


def virtual_dataset(vars, outside):
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource(str(outside), "secret", (3,))
    vars.create_virtual_dataset("9", layout)


def huge_chunked(vars, outside):
    vars.create_dataset("9", (1 << 40,), "f4", chunks=(1 << 10,))


def huge_compressed(vars, outside):
    vars.create_dataset("9", (1 << 40,), "f4", compression="gzip", chunks=(1 << 20,))[:9] = 1


def bomb(vars, outside):
    vars.create_dataset("9", data=np.zeros(1 << 22, "f4"), compression="gzip")


def unwritten(vars, outside):
    vars.create_dataset("9", (1 << 40,), "f4")


def null_space(vars, outside):
    vars["9"] = h5py.Empty("f4")


def unknown_filter(vars, outside):
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((3,))
    plist.set_filter(32001, h5py.h5z.FLAG_OPTIONAL)
    space = h5py.h5s.create_simple((3,))
    h5py.h5d.create(vars.id, b"9", h5py.h5t.NATIVE_FLOAT, space, plist)


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (external_link, "is a link to '.*outside.h5'"),
        (soft_link, "is a link to '/layers'"),
        (external_storage, "from other files"),
        (virtual_dataset, "from other files"),
        (huge_chunked, "claims the shape"),
        (huge_compressed, "claims the shape"),
        (bomb, "claims the shape"),
        (unwritten, "claims the shape"),
        (null_space, "is no array"),
        (unknown_filter, "filters"),
    ],
)
@pytest.mark.parametrize("kind", ["keras", "h5"])
def test_arrays_that_are_refused(attack, message, kind, outside, tmp_path):
    path = weights(tmp_path / "w.h5", {"layers/batch_normalization": norm_arrays()})
    with h5py.File(path, "a") as file:
        attack(file["layers/batch_normalization/vars"], outside)
    if kind == "keras":
        path = path.rename(tmp_path / "inner.h5")
        with zipfile.ZipFile(tmp_path / "w.keras", "w") as file:
            file.writestr("config.json", "{}")
            file.write(path, "model.weights.h5")
        path = tmp_path / "w.keras"
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message):
            keras_file.read(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["reference", "text", "record", "region"])
def test_arrays_that_hold_no_numbers(kind, tmp_path):
    path = weights(tmp_path / "w.h5", {"layers/lookup": [np.ones((2, 2))]})
    with h5py.File(path, "a") as file:
        group = file["layers/lookup/vars"]
        if kind == "reference":
            group.create_dataset("1", data=[group.ref], dtype=h5py.ref_dtype)
        elif kind == "region":
            region = group["0"].regionref[:1]
            group.create_dataset("1", data=[region], dtype=h5py.regionref_dtype)
        elif kind == "text":
            group["1"] = "text"
        else:
            group["1"] = np.zeros(2, [("a", "f4"), ("b", "i2")])
    tensors = keras_file.read(path).tensors
    first, second = tensors
    assert tensors[first].shape == (2, 2)
    with pytest.raises(ValueError, match="expected numbers"):
        tensors[second]


def test_groups_that_contain_themselves(tmp_path):
    path = weights(tmp_path / "w.h5", {"layers/batch_normalization": norm_arrays()})
    with h5py.File(path, "a") as file:
        file["layers/batch_normalization/again"] = file["layers"]
        file["layers/batch_normalization/root"] = file["/"]
    assert len(keras_file.read(path).norms) == 1


def test_groups_in_groups_in_groups(tmp_path):
    path = tmp_path / "w.h5"
    with h5py.File(path, "w") as file:
        group = file
        for _ in range(2000):
            group = group.create_group("g")
    with pytest.raises(ValueError, match="not of Keras"):
        keras_file.read(path)


def test_names_that_lead_elsewhere(tmp_path):
    path = tmp_path / "w.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = ["n"]
        file.create_group("n").attrs["weight_names"] = ["../../etc/passwd"]
    with pytest.raises(ValueError, match="not in it"):
        keras_file.read(path)


@pytest.mark.parametrize("value", [5, [1.5], np.zeros((2, 2)), h5py.Empty("f4")])
def test_names_that_are_none(value, tmp_path):
    path = weights(tmp_path / "w.h5", {"layers/batch_normalization": norm_arrays()})
    with h5py.File(path, "a") as file:
        file.attrs["layer_names"] = value
    with pytest.raises(ValueError, match="expected a text"):
        keras_file.read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": "{"}, "is no JSON"),
        ({"config": "[" * 100_000}, "is no JSON|nests too deep"),
        ({"config": b"\xff\xfe\xfd".decode("latin1")}, "is no JSON"),
        ({"compress_type": zipfile.ZIP_DEFLATED}, "compressed"),
    ],
)
def test_broken_archives(change, message, tmp_path):
    config = change.pop("config", "{}")
    path = archive(tmp_path / "m.keras", {"layers/dense": [np.ones((2, 2))]}, config, **change)
    with pytest.raises(ValueError, match=message):
        keras_file.read(path)


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "a/../../evil", "..\\evil"])
def test_archives_with_paths_out_of_them(name, tmp_path):
    path = archive(tmp_path / "m.keras", {"layers/batch_normalization": norm_arrays()}, "{}")
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(name, b"x")
    with pytest.raises(ValueError, match="a path out of its folder"):
        keras_file.read(path)


def test_archive_with_a_bomb_for_configuration(tmp_path):
    path = tmp_path / "m.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("config.json", b" " * (64 << 20))
        file.writestr("model.weights.h5", b"")
    with pytest.raises(ValueError, match="compressed"):
        keras_file.read(path)


@pytest.mark.parametrize("config", [[], '"x"', {"config": {"layers": [1, None, {"config": []}]}}])
def test_configurations_of_any_form(config, tmp_path):
    path = archive(tmp_path / "m.keras", {"layers/batch_normalization": norm_arrays()}, config)
    assert len(keras_file.read(path).norms) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.keras", b"", "no .keras file"),
        ("a.keras", b"PK\3\4", "zip file"),
        ("a.keras", b"\x89HDF\r\n\x1a\n", "no .keras file"),
        ("a.h5", b"", "no HDF5 file"),
        ("a.h5", b"\x89HDF\r\n\x1a\n", "no HDF5 file"),
        ("a.h5", b"hello" * 99, "no HDF5 file"),
    ],
)
def test_no_keras_at_all(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        keras_file.read(tmp_path / name)


def test_hdf5_of_somebody_else(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = np.ones(3)
    with pytest.raises(ValueError, match="not of Keras"):
        keras_file.read(tmp_path / "a.h5")


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "plain.weights.h5"])
def test_cut_off_anywhere(name, files, tmp_path):
    whole = (files["keras"] / name).read_bytes()
    for length in [*range(0, len(whole), 997), len(whole) - 1]:
        path = tmp_path / name
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"damaged|cut off|no \.keras file"):
            keras_file.read(path)


def test_a_heap_that_has_no_end(files, tmp_path):
    """HDF5 walks the free space of a heap in steps of its size; here it is 0."""
    content = bytearray((files["keras"] / "model.h5").read_bytes())
    heap = content.rindex(b"GCOL\1\0\0\0")
    size = int.from_bytes(content[heap + 8 : heap + 16], "little")
    content[heap + 16 : heap + size] = bytes(size - 16)
    (tmp_path / "m.h5").write_bytes(content)
    with pytest.raises(ValueError, match="an object of 0 bytes"):
        keras_file.read(tmp_path / "m.h5")


def test_a_file_that_changed_meanwhile(tmp_path):
    path = weights(tmp_path / "w.h5", {"layers/batch_normalization": norm_arrays()})
    tensors = keras_file.read(path).tensors
    weights(path, {"layers/other": norm_arrays()})
    with pytest.raises(ValueError, match="damaged"):
        tensors["batch_normalization.gamma"]


@pytest.mark.parametrize("kind", ["sequence", "reference"])
def test_names_of_a_dangerous_type(kind, tmp_path):
    """HDF5 can crash on sequences whose length is damaged, so only texts are read."""
    path = weights(tmp_path / "w.h5", {"layers/batch_normalization": norm_arrays()})
    with h5py.File(path, "a") as file:
        value = np.empty(1, object)
        value[0] = np.ones(3, np.uint8) if kind == "sequence" else file.ref
        dtype = h5py.vlen_dtype(np.uint8) if kind == "sequence" else h5py.ref_dtype
        file["layers/batch_normalization/vars"].attrs.create("name", value, dtype=dtype)
    with pytest.raises(ValueError, match="expected a text"):
        keras_file.read(path)
