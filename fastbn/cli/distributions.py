"""The picture of ``fastbn inspect --plot``. Matplotlib is imported when it is drawn."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastbn.checkpoint import ChannelTerms

__all__ = ["draw"]

#: Of Okabe and Ito, which colour-blind people can tell apart.
BLUE, RED = "#0072B2", "#D55E00"
#: Layers whose names fit below a panel.
NAMED = 40


def draw(
    layers: Sequence[ChannelTerms], title: str, file: Path, faulty: Collection[int] = ()
) -> None:
    """Four panels over the layers: scale, shift, running mean and variance of their channels.

    The line is the median, the dark band has 50 % of the channels, the pale one 90 %, the dots are
    the least and the greatest. Layers stand on red whose numbers, from 1 on, are ``faulty``. Zeros,
    which a logarithm has no place for, are a triangle at the bottom, and in no band.
    """
    import matplotlib  # type: ignore[import-not-found, unused-ignore]

    matplotlib.use("Agg")
    from matplotlib import pyplot

    settings: Any = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    with pyplot.rc_context(settings):
        width = min(24.0, max(8.0, 3.0 + 0.22 * len(layers)))
        figure, panels = pyplot.subplots(
            4, 1, figsize=(width, 10.5), sharex=True, layout="constrained"
        )
        marked = ", faulty ones on red" if faulty else ""
        figure.suptitle(f"{title}: {len(layers)} batch norms, channel by channel{marked}")
        for panel, (term, label, log) in zip(panels, _PANELS, strict=True):
            values = [getattr(layer, term) for layer in layers]
            _panel(panel, [np.abs(v) if log else v for v in values], label, log)
            for number in faulty:
                panel.axvspan(number - 0.5, number + 0.5, color=RED, alpha=0.15, linewidth=0)
        handles = {
            label: handle
            for panel in panels
            for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
        }
        panels[0].legend(
            handles.values(), handles, frameon=False, loc="lower left", bbox_to_anchor=(0, 1.0),
            ncols=len(handles) if len(handles) < 5 or width > 10 else 3,
        )  # fmt: skip
        numbers = range(1, len(layers) + 1)
        few = len(layers) <= NAMED
        names = [layer.name for layer in layers] if few else list(map(str, numbers))
        panels[-1].set_xticks(numbers, names, rotation=90, fontsize=8)
        if not few:
            panels[-1].set_xlabel("number of the layer in the table, which is the file's order")
        figure.savefig(file, dpi=110)
        pyplot.close(figure)


_PANELS = (
    ("scale", "scale\n|weight| / std", True),
    ("shift", "shift", False),
    ("mean", "running mean", False),
    ("var", "running variance", True),
)


def _panel(panel: Any, values: list[np.ndarray], label: str, log: bool) -> None:
    quantiles = np.array([_quantiles(v, log) for v in values]).T
    x = np.arange(1, len(values) + 1)
    least, low, first, median, third, high, most = quantiles
    panel.vlines(x, low, high, color=BLUE, alpha=0.25, linewidth=7, label="90 % of the channels")
    panel.vlines(x, first, third, color=BLUE, alpha=0.6, linewidth=7, label="50 %")
    panel.plot(x, median, "_", color="black", markersize=8, label="median")
    for ends, name in ((least, "least and greatest"), (most, None)):
        panel.plot(x, ends, ".", color=RED, markersize=4, label=name)
    panel.set_ylabel(label)
    panel.grid(axis="y", color="#dddddd", linewidth=0.8)
    if log and np.isfinite(quantiles).any():
        panel.set_yscale("log")
    if log:
        zeros = [k for k, v in enumerate(values, 1) if (v == 0).any()]
        if zeros:  # at the bottom of the panel, whatever its numbers are
            panel.plot(
                zeros, [0.0] * len(zeros), "v", color=RED, markersize=5, clip_on=False,
                transform=panel.get_xaxis_transform(), label="0, below the scale",
            )  # fmt: skip


def _quantiles(values: np.ndarray, log: bool) -> np.ndarray:
    kept = values[np.isfinite(values) & ((values > 0) | (not log))]
    if not kept.size:
        return np.full(7, np.nan)
    return np.quantile(kept, (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1))
