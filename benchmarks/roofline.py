"""The picture: bandwidth that everybody reaches, next to that of plain and streaming copies."""

import io
import math
import statistics
from collections.abc import Callable
from pathlib import Path

from benchmarks.results import Cell, Run

OPERATIONS = ("evaluation", "training", "backward")
LAYOUT, DTYPE = "channels first", "float32"
ALLOCATING = "fastbn"

#: Colours that colour-blind people can tell apart (Okabe and Ito), and markers in case not.
STYLES = {
    "fastbn out=": {"color": "#0072B2", "marker": "o", "linewidth": 2.6, "zorder": 5},
    "fastbn": {"color": "#56B4E9", "marker": "s", "linewidth": 2.2, "zorder": 4},
    "torch": {"color": "#D55E00", "marker": "^"},
    "ONNX Runtime": {"color": "#CC79A7", "marker": "v"},
    "JAX": {"color": "#009E73", "marker": "D"},
    "NumPy": {"color": "#8A6D00", "marker": "X"},
}
COPY_STYLES = {
    "copy": {"color": "#444444", "linestyle": (0, (4, 2))},
    "streaming copy": {"color": "#000000", "linestyle": (0, (1, 1.5))},
}
#: Sizes within this factor share a point.
BIN = 4.0
#: Smaller arrays cost the call alone: they would squeeze the rest.
LEAST_BYTES = 2**14

Points = list[tuple[float, float]]


def draw(run: Run, to: Path) -> None:
    """One panel for each operation: gigabytes that must be moved per second, over the size."""
    import matplotlib
    import PIL.Image  # comes with matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    settings = {"font.size": 12, "axes.spines.top": False, "axes.spines.right": False}
    with pyplot.rc_context(settings):
        figure, panels = pyplot.subplots(
            1, len(OPERATIONS), sharex=True, sharey=True, figsize=(11.5, 4.9), layout="constrained"
        )
        for panel, operation in zip(panels, OPERATIONS, strict=True):
            _draw_panel(panel, run, operation)
        panels[0].set_ylim(bottom=panels[0].get_ylim()[0] / 2)  # a place for words
        panels[0].set_ylabel("GB/s that must at least move")
        panels[len(panels) // 2].set_xlabel(f"size of x ({LAYOUT}, {DTYPE})")
        handles = {}
        for panel in panels:
            for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        figure.legend(
            handles.values(), handles, loc="outside lower center", frameon=False, handlelength=3,
            ncols=max(1, math.ceil(len(handles) / 2)),
        )  # fmt: skip
        file = io.BytesIO()
        figure.savefig(file, dpi=130)
        pyplot.close(figure)
    PIL.Image.open(file).convert("RGB").quantize(64).save(to, optimize=True)  # a fifth of the size


def _draw_panel(panel, run: Run, operation: str) -> None:
    cells = [
        c for c in run.cells
        if (c.operation, c.layout, c.dtype) == (operation, LAYOUT, DTYPE) and c.bytes >= LEAST_BYTES
    ]  # fmt: skip
    for name, style in STYLES.items():
        own = [cell for cell in cells if cell.provider == name]
        points = _points(own, lambda c: c.moved / c.seconds / 1e9)
        if points:
            panel.plot(*_xy(points), label=name, markersize=5, **style)
    reference = [cell for cell in cells if cell.provider == ALLOCATING]
    for name, style in COPY_STYLES.items():
        attribute = "seconds_of_" + name.replace(" ", "_")
        points = _points(reference, lambda c, a=attribute: _copy_bandwidth(c.bytes, getattr(c, a)))
        if points:
            panel.plot(*_xy(points), label=name, linewidth=1.8, **style)
    panel.set_title(operation)
    panel.set(xscale="log", yscale="log")
    _mark_sizes(panel, run)


def _copy_bandwidth(count: int, seconds: float | None) -> float | None:
    """A copy reads every byte and writes it."""
    return 2 * count / seconds / 1e9 if seconds else None


def _points(cells: list[Cell], bandwidth: Callable[[Cell], float | None]) -> Points:
    """The median bandwidth of each bin of sizes, at the middle of its sizes."""
    bins: dict[int, Points] = {}
    for cell in cells:
        value = bandwidth(cell)
        if value is not None:
            bins.setdefault(round(math.log(cell.bytes, BIN)), []).append((cell.bytes, value))
    return [(BIN**index, statistics.median(y for _, y in bins[index])) for index in sorted(bins)]


def _xy(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _mark_sizes(panel, run: Run) -> None:
    """Ticks in bytes, and a line where the last-level cache ends."""
    ticks = {2**16: "64 KiB", 2**20: "1 MiB", 2**24: "16 MiB", 2**28: "256 MiB"}
    panel.set_xticks(list(ticks), ticks.values())
    panel.minorticks_off()
    panel.yaxis.set_major_formatter("{x:g}")
    panel.grid(axis="y", color="#dddddd", linewidth=0.8)
    panel.axvline(run.cache, color="#999999", linewidth=1)
    panel.annotate(
        "last-level\ncache ends", (run.cache, 0), xycoords=("data", "axes fraction"),
        xytext=(-4, 4), textcoords="offset points", ha="right", va="bottom",
        fontsize=10, color="#666666",
    )  # fmt: skip
