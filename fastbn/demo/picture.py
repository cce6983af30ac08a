"""The picture of ``fastbn demo --small-batches FILE``. Matplotlib is imported when it is drawn."""

from pathlib import Path
from typing import Any

from fastbn.demo.small_batches import GHOST, Found
from fastbn.kernels import formulas

__all__ = ["draw"]

#: Colours that colour-blind people can tell apart (Okabe and Ito), and markers in case not.
STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#D55E00", "marker": "o"},
    {"color": "#CC79A7", "marker": "D"},
    {"color": "#E69F00", "marker": "s", "linestyle": (0, (4, 2))},
    {"color": "#0072B2", "marker": "^"},
    {"color": "#009E73", "marker": "v"},
)
LAYERS: tuple[dict[str, Any], ...] = (
    {"color": "#56B4E9", "marker": "P"},
    {"color": "#8A6D00", "marker": "X"},
    {"color": "#222222", "marker": "*", "markersize": 9},
)


def draw(found: Found, file: Path) -> None:
    """Two panels over the size of a batch: errors of the variance, and of the trained networks."""
    import matplotlib  # type: ignore[import-not-found, unused-ignore]

    matplotlib.use("Agg")
    from matplotlib import pyplot

    settings: Any = {
        "font.size": 12,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with pyplot.rc_context(settings):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(11.5, 4.9), layout="constrained")
        _draw_errors(left, found)
        _draw_accuracies(right, found)
        for panel in (left, right):
            panel.set(xscale="log", yscale="log", xlabel="samples in a batch")
            panel.set_xticks(found.sizes, [str(size) for size in found.sizes])
            panel.minorticks_off()
            panel.grid(axis="y", color="#dddddd", linewidth=0.8)
            panel.legend(frameon=False, loc="upper right", fontsize=11)
        left.set_ylim(top=12)  # a place for words
        _percent(left, (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2))
        _percent(right, (0.02, 0.05, 0.1, 0.2, 0.5, 1))
        figure.savefig(file, dpi=130)
        pyplot.close(figure)
    if file.suffix == ".png":
        from PIL import Image  # type: ignore[import-not-found, unused-ignore]  # matplotlib's

        picture = Image.open(file).convert("RGB").quantize(64)
        picture.save(file, optimize=True)  # a third of the size


def _draw_errors(panel: Any, found: Found) -> None:
    label = "if all were independent"
    for (name, (positions, errors)), style in zip(
        reversed(found.errors.items()), reversed(LAYERS), strict=True
    ):
        values = f"{positions} value{'s' * (positions > 1)} a sample"
        panel.plot(found.sizes, errors, label=f"{name}, {values}", linewidth=2.2, **style)
    for positions, _ in found.errors.values():
        expected = [formulas.variance_error(positions * size) for size in found.sizes]
        panel.plot(
            found.sizes, expected, color="#777777", linewidth=1.3, linestyle=(0, (1, 1.5)),
            label=label, zorder=5,
        )  # fmt: skip
        label = "_"  # once in the legend
    panel.set_ylabel("relative standard error")
    panel.set_title("How far off a batch's variance is")


def _draw_accuracies(panel: Any, found: Found) -> None:
    for (name, shares), style in zip(found.accuracies.items(), STYLES, strict=True):
        wrong = {size: 1 - share for size, share in zip(found.sizes, shares, strict=True)}
        if name.startswith("ghost"):  # before, it is batch norm
            wrong = {size: error for size, error in wrong.items() if size >= GHOST}
        panel.plot(list(wrong), list(wrong.values()), label=name, linewidth=2.2, **style)
    panel.set_ylabel("held-out digits read wrong")
    panel.set_title("What networks trained with such batches do")


def _percent(panel: Any, ticks: tuple[float, ...]) -> None:
    panel.set_yticks(ticks, [f"{tick:.0%}" for tick in ticks])
