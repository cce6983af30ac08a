"""What one call costs where there is hardly anything to compute: through a layer."""

import pytest

import fastbn
from benchmarks.measure import measure_in_turn
from benchmarks.problem import problem
from benchmarks.providers import PROVIDERS
from tests.cases import SPEED

SMALL = next(case for case in SPEED if case.name.startswith("small"))


def _fastbn(p):
    layer = fastbn.BatchNorm2d(p.case.channels).eval()
    return lambda: layer(p.x)


def _torch(p):
    import torch

    layer, x = torch.nn.BatchNorm2d(p.case.channels).eval(), torch.from_numpy(p.x)

    def call():
        with torch.inference_mode():
            return layer(x)

    return call


@pytest.mark.parametrize(
    ("name", "make"),
    [("fastbn", _fastbn), pytest.param("torch", _torch, marks=pytest.mark.report)],
)
def test_layer(benchmark, machine, name, make):
    if PROVIDERS[name].missing():
        pytest.skip(f"{name}: the package {PROVIDERS[name].missing()} is not installed")
    p = problem(SMALL, "float32")
    calls = {"call": make(p)}
    if name != "fastbn":
        calls["fastbn"] = _fastbn(p)
    measure_in_turn(benchmark, calls, "layer evaluation", name, p, machine)
