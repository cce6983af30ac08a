"""Speed of every operation, shape, dtype and provider, next to what the machine can do."""

import numpy as np
import pytest

from benchmarks.limits import limits
from benchmarks.measure import measure_in_turn
from benchmarks.problem import OPERATIONS, problem
from benchmarks.providers import PROVIDERS, Fastbn, Unsupported
from tests.cases import MODELS, SPEED, Case

#: Enough to notice a slower kernel of either layout, in cache and out of it.
QUICK = (
    "ResNet-50 batch 32: 32x256x56x56", "ResNet-50 batch 32: 32x256x56x56 last",
    "ResNet-50 batch 32: 32x2048x7x7", "ResNet-50 batch 1: 1x256x56x56",
    "ResNet-50 batch 1: 1x256x56x56 last", "ResNet-50 batch 1: 1x512x14x14",
    "segmentation: 1x16x1024x1024", "small: 1x64x1x1", "table: 8x16", "table: 10000x100",
    "table: 100000x64",
)  # fmt: skip


NETWORKS = ("ResNet", "MobileNet")  # float32, as they are used
#: Above this NumPy takes seconds, which only the full grid waits for.
LARGE = 2**23


def _grid(case, dtype, operation, name):
    """The smallest grid that a cell belongs to; each grid has the cells of those before."""
    if case.name in QUICK and dtype == "float32" and name.startswith("fastbn"):
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
                for name in PROVIDERS:
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
    if case.count == 1 and operation != "evaluation":
        pytest.skip("one value per channel has no batch statistics")
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
    calls = {"call": call, **limits(p.x)}
    if name != Fastbn.name:
        calls["fastbn"] = fastbn_call
    measure_in_turn(benchmark, calls, operation, name, p, machine)
