"""The picture of ``fastbn stats --plot``. Matplotlib is imported when it is drawn."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from fastbn import DatasetStats

__all__ = ["draw"]

#: Red, green and blue that colour-blind people can tell apart by brightness.
RGB = "#D62728", "#2CA02C", "#1F4FD8"
#: Matplotlib adds and multiplies coordinates: larger ones are drawn in a unit of their own.
FAR = 1e100
#: Panels of a picture.
DRAWN = 16


def draw(found: "DatasetStats", file: Path) -> None:
    """A panel for each channel: its histogram, its mean, and one std on either side."""
    import matplotlib  # type: ignore[import-not-found, unused-ignore]

    matplotlib.use("Agg")
    from matplotlib import pyplot

    channels = found.stats.mean.size
    drawn = min(channels, DRAWN)
    columns = 1 if drawn <= 4 else 2 if drawn <= 8 else 4
    rows = -(-drawn // columns)
    colors = _colors(found)
    of_integers = found.dtype != "floating point"
    settings: Any = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    with pyplot.rc_context(settings):
        figure, panels = pyplot.subplots(
            rows, columns, squeeze=False, layout="constrained", sharex=of_integers,
            figsize=(8.0 if columns == 1 else 4.5 * columns, 1.0 + 2.1 * rows),
        )  # fmt: skip
        some = f", the first {drawn} of {channels} channels" if channels > drawn else ""
        figure.suptitle(f"{found.files:,} file{'s' * (found.files != 1)}, {found.dtype}{some}")
        for c, panel in enumerate(panels.flat):
            if c < drawn:
                _panel(panel, found, c, *colors[c])
            else:
                panel.set_visible(False)
        handles, labels = panels[0, 0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False)
        unit = f"value, {found.dtype}" if of_integers else "value"
        for column in range(columns):
            lowest = panels[(drawn - 1 - column) // columns, column]
            lowest.set_xlabel(lowest.get_xlabel() or unit)
            lowest.tick_params(labelbottom=True)
        figure.savefig(file, dpi=120)
        pyplot.close(figure)


def _colors(found: "DatasetStats") -> list[tuple[str, str]]:
    """Colour and name of each channel; three of unsigned integers are most likely of images."""
    channels = found.stats.mean.size
    if channels == 3 and found.dtype.startswith("uint"):
        names = zip(RGB, ("red", "green", "blue"), strict=True)
        return [(color, f"channel {c}, {name}") for c, (color, name) in enumerate(names)]
    return [("#0072B2", f"channel {c}") for c in range(channels)]


def _panel(panel: Any, found: "DatasetStats", c: int, color: str, name: str) -> None:
    histograms = found.histograms
    if histograms is None:
        raise ValueError("there are no histograms to draw: dataset_stats(..., histogram=True)")
    mean, std = found.stats.mean[c], found.stats.std()[c]
    words = f"{name}: mean {mean:.5g}, std {std:.5g}"
    edges, counts = histograms.edges[c], histograms.counts[c]
    most = abs(edges).max()
    if most > FAR:
        unit = 10.0 ** np.floor(np.log10(most))
        edges, mean, std = edges / unit, mean / unit, std / unit
        panel.set_xlabel(f"value / {unit:g}")
    outside = int(histograms.below[c] + histograms.above[c])
    total = max(1, int(counts.sum()) + outside)
    one = edges[1] - edges[0] == 1
    shift = 0.5 if one and float(edges[0]).is_integer() else 0.0  # bars are over their values
    share = 100 * counts / total
    panel.stairs(share, edges - shift, fill=True, color=color, alpha=0.55, linewidth=0)
    panel.stairs(share, edges - shift, color=color, linewidth=0.8)
    if np.isfinite(mean) and np.isfinite(std):
        panel.axvspan(mean - std, mean + std, color="#EEEEEE", zorder=0, label="mean ± std")
        panel.axvline(mean, color="black", linewidth=1.4, label="mean")
        for end in (mean - std, mean + std):
            panel.axvline(end, color="black", linewidth=0.9, linestyle=(0, (4, 3)))
    seen = np.flatnonzero(counts)
    if seen.size and found.dtype not in ("uint8", "int8"):
        room = max(1, (seen[-1] - seen[0]) // 20)
        last = min(len(edges) - 1, seen[-1] + 1 + room)
        panel.set_xlim(edges[max(0, seen[0] - room)], edges[last])
    elif found.dtype in ("uint8", "int8"):
        panel.set_xlim(edges[0] - 0.5, edges[-1] - 0.5)
    _limit(panel, share)
    beyond = f", {100 * outside / total:.2g} % outside" if outside else ""
    panel.set_title(f"{words}{beyond}", loc="left", fontsize=10, color="black")
    panel.set_ylabel("share of values (%)" if one else "share per bin (%)")
    panel.grid(axis="y", color="#dddddd", linewidth=0.8)
    panel.set_axisbelow(True)


def _limit(panel: Any, share: np.ndarray) -> None:
    """A single full bin, black borders say, must not flatten the rest; its height is written."""
    highest = np.sort(share)[::-1]
    usual = highest[min(4, highest.size - 1)]
    if usual > 0 and highest[0] > 3 * usual:
        panel.set_ylim(0, 1.6 * usual)
        panel.text(
            0.995, 0.97, f"highest bin: {highest[0]:.3g} %", transform=panel.transAxes,
            ha="right", va="top", fontsize=8,
        )  # fmt: skip
    else:
        panel.set_ylim(0, max(1.08 * highest[0], 1e-9))
