"""The measurements of ``fastbn bench``, and their picture."""

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import fastbn

__all__ = ["Figure", "count", "draw", "figures"]

SHAPES = (
    (1, 64, 16, 16), (4, 64, 32, 32), (8, 64, 56, 56), (32, 64, 56, 56), (80, 64, 56, 56),
)  # fmt: skip
QUICK = SHAPES[:3]
OPERATIONS = ("evaluation", "training", "backward")
#: Arrays of x's size that an operation has to move, if each is read or written once.
MOVED = {"evaluation": 2, "training": 2, "backward": 3}
EPS = np.float32(1e-5)


class Figure(NamedTuple):
    """One operation on one shape; times in seconds, medians of repeats that take turns."""

    operation: str
    shape: tuple[int, ...]
    seconds: float
    copy: float
    numpy: float | None
    bandwidth: float  # GB/s


def count(quick: bool) -> int:
    """How many figures there will be."""
    return len(OPERATIONS) * len(QUICK if quick else SHAPES)


def figures(quick: bool) -> Iterator[Figure]:
    """Measure one after the other."""
    for shape in QUICK if quick else SHAPES:
        calls, numpy, copy = _calls(shape)
        for operation in OPERATIONS:
            times = _times([calls[operation], copy, numpy.get(operation)], quick)
            seconds, of_copy, of_numpy = times
            nbytes = MOVED[operation] * 4 * int(np.prod(shape))
            yield Figure(operation, shape, seconds, of_copy, of_numpy, nbytes / seconds / 1e9)


def _calls(shape):
    """Calls of fastbn and of NumPy by operation, and a copy."""
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, *shape), np.float32)
    bn = fastbn.BatchNorm2d(shape[1])
    out = np.empty_like(x)
    _, cache = bn.forward_with_cache(x)
    served = fastbn.BatchNorm2d(shape[1]).eval()
    along = (slice(None), None, None)
    mean, var, weight, bias = (
        v[along] for v in (bn.running_mean, bn.running_var, bn.weight, bn.bias)
    )

    def evaluation() -> np.ndarray:
        return (x - mean) / np.sqrt(var + EPS) * weight + bias

    def training() -> np.ndarray:
        of_batch, spread = x.mean((0, 2, 3)), x.var((0, 2, 3))
        return (x - of_batch[along]) / np.sqrt(spread + EPS)[along] * weight + bias

    return (
        {
            "evaluation": lambda: served(x, out=out),
            "training": lambda: bn(x, out=out),
            "backward": lambda: fastbn.batch_norm_backward(dy, cache, out=out),
        },
        {"evaluation": evaluation, "training": training},
        lambda: np.copyto(out, x),
    )


def _times(calls: list[Callable | None], quick: bool) -> list:
    """Medians; None for a call that is not there."""
    rounds, least = (5, 0.01) if quick else (9, 0.03)
    counts = [1 if call is None else _repeats(call, least) for call in calls]
    found: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, repeats, times in zip(calls, counts, found, strict=True):
            if call is not None:
                start = time.perf_counter()
                for _ in range(repeats):
                    call()
                times.append((time.perf_counter() - start) / repeats)
    return [statistics.median(times) if times else None for times in found]


def _repeats(call: Callable, least: float) -> int:
    """Calls that take about so long together; the first call may compile."""
    call()
    start = time.perf_counter()
    call()
    return max(1, int(least / max(1e-7, time.perf_counter() - start)))


def draw(found: list[Figure], file: Path) -> None:
    """Bandwidth over size, beside that of a copy."""
    import matplotlib  # type: ignore[import-not-found, unused-ignore]

    matplotlib.use("Agg")
    from matplotlib import pyplot

    styles = {"evaluation": ("#0072B2", "o"), "training": ("#D55E00", "s"),
              "backward": ("#009E73", "^")}  # fmt: skip
    settings: Any = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}
    with pyplot.rc_context(settings):
        figure, panel = pyplot.subplots(figsize=(7.5, 4.6), layout="constrained")
        for operation, (color, marker) in styles.items():
            some = [f for f in found if f.operation == operation]
            sizes = [4 * np.prod(f.shape) / 2**20 for f in some]
            panel.plot(sizes, [f.bandwidth for f in some], color=color, marker=marker,
                       label=operation)  # fmt: skip
        some = [f for f in found if f.operation == "evaluation"]
        sizes = [4 * np.prod(f.shape) / 2**20 for f in some]
        copies = [2 * 4 * np.prod(f.shape) / f.copy / 1e9 for f in some]
        panel.plot(sizes, copies, color="black", linestyle="--", label="a copy")
        threads = f"{fastbn.get_num_threads()} threads"
        panel.set(
            xscale="log", xlabel="size of the array (MiB)", ylabel="bandwidth (GB/s)",
            title=f"fastbn {fastbn.__version__}, {threads}, float32",
        )  # fmt: skip
        panel.set_xticks(sizes, [f"{size:.3g}" for size in sizes])
        panel.minorticks_off()
        panel.set_ylim(bottom=0)
        panel.grid(axis="y", color="#dddddd", linewidth=0.8)
        panel.legend(frameon=False)
        figure.savefig(file, dpi=120)
        pyplot.close(figure)
