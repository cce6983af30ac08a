"""Speed of every operation, shape, dtype and provider, next to what the machine can do."""

import numpy as np
import pytest

import fastbn
from benchmarks.copies import copies
from benchmarks.measure import measure_in_turn
from benchmarks.problem import LARGE, OPERATIONS, QUICK, problem
from benchmarks.providers import PROVIDERS, Fastbn, Unsupported
from tests.cases import MODELS, SPEED, Case

NETWORKS = ("ResNet", "MobileNet")  # float32, as they are used


def _grid(case, dtype, operation, name):
    """The smallest grid that a cell belongs to; each grid has the cells of those before."""
    if case in QUICK and dtype == "float32" and name.startswith("fastbn"):
        return "quick"
    if case in MODELS and operation == "statistics":
        return "full"
    if name == "NumPy" and case.size > LARGE:
        return "full"
    return "full" if case.name.startswith("MobileNetV2") and case.axis == -1 else "report"


def _cells():
    for case in SPEED:
        for dtype in ("float32", "float64"):
            if dtype == "float64" and (case.name.startswith(NETWORKS) or case.size > LARGE):
                continue
            for operation in OPERATIONS:
                if case.count == 1 and operation != "evaluation":
                    continue  # one value per channel has no batch statistics
                for name, provider in PROVIDERS.items():
                    if not hasattr(provider, operation):
                        continue
                    grid = _grid(case, dtype, operation, name)
                    yield pytest.param(
                        case, dtype, operation, name,
                        id=f"{case.name} {dtype} {operation} {name}".replace(":", ""),
                        marks=[] if grid == "quick" else getattr(pytest.mark, grid),
                    )  # fmt: skip


@pytest.mark.parametrize(("case", "dtype", "operation", "name"), list(_cells()))
def test_speed(benchmark, machine, case: Case, dtype, operation, name):
    provider = PROVIDERS[name]
    if provider.missing():
        pytest.skip(f"{name}: the package {provider.missing()} is not installed")
    p = problem(case, dtype)
    try:
        call = provider.call(operation, p)
    except Unsupported as reason:
        pytest.skip(str(reason))
    fastbn_call = Fastbn().call(operation, p)
    if case.size <= 2**20:
        got = np.asarray(call())
        expected = fastbn_call()
        if got.shape != expected.shape:
            got = np.moveaxis(got, 1, p.axis)
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)
    calls = {"call": call, **copies(p.x)}
    if name != Fastbn.name:
        calls["fastbn"] = fastbn_call
    measure_in_turn(benchmark, calls, operation, name, p, machine)


# --- what one call costs where there is hardly anything to compute: through a layer ------------

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
