"""Files that other frameworks have written, and what these frameworks computed with them."""

import zipfile
from pathlib import Path

import numpy as np

import fastbn

DATA = Path(__file__).parent / "data"


def unpack(name: str, folder: Path) -> Path:
    """The files of ``tests/data/NAME.zip``."""
    with zipfile.ZipFile(DATA / f"{name}.zip") as archive:
        archive.extractall(folder)
    return folder


def layer_of(norm):
    """A layer, by its constructor and state dict alone."""
    kind = {1: fastbn.BatchNorm1d, 2: fastbn.BatchNorm2d, 3: fastbn.BatchNorm3d, None: None}
    kind = kind[norm.dimensions]
    affine = bool(norm.arrays.keys() & {"weight", "bias"})
    size = len(norm.arrays["running_var"])
    layer = kind(size, norm.eps, norm.momentum, affine, bias="bias" in norm.arrays, axis=norm.axis)
    state = dict(norm.arrays)
    if affine:
        state.setdefault("weight", np.ones(size, np.float32))
    layer.load_state_dict(state)
    return layer.eval()


def assert_same_evaluation(norms, expected):
    """Each norm gives what its framework gave, to the accuracy of float32."""
    names = {name.removesuffix(".y") for name in expected if name.endswith(".y")}
    assert {norm.name for norm in norms} == names
    for norm in norms:
        y = expected[f"{norm.name}.y"]
        assert np.ptp(y) > 0.1  # there is something to get wrong
        np.testing.assert_allclose(
            layer_of(norm)(expected[f"{norm.name}.x"]), y, rtol=2e-6, atol=1e-6, err_msg=norm.name
        )
