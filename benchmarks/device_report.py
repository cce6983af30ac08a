"""What is made of measurements on a device: the bars and whether they are met, and tables."""

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from benchmarks.device_checks import Check
from benchmarks.device_times import OPERATIONS, PEERS, Cell, Sample
from benchmarks.report import NOTHING, mebibytes, number, table

LARGE = 256e6
#: Of a multiprocessor's 256 KB of registers, those that can hold data.
ON_CHIP = 2**17
#: What a bar is for: how many times the bytes of the tensor are read and written at least. A copy
#: reads and writes each once.
COPY_MOVES = 2


@dataclass(frozen=True)
class Outcome:
    """A bar, what the worst cell (or the mean) reached, and whether that is enough."""

    bar: str
    limit: float
    cells: int
    reached: float | None
    worst: str
    met: bool | None


@dataclass(frozen=True)
class _FloorBar:
    """A least part of the time that moving so many times the tensor's bytes takes."""

    operation: str
    moves: int
    limit: float
    #: Tensors of which a channel must fit on the chip, or must not; None if it does not matter.
    tensors: int | None = None
    fits: bool = True

    @property
    def name(self) -> str:
        where = "" if self.tensors is None else (
            ", channel fits on chip" if self.fits else ", channel too large"
        )  # fmt: skip
        return f"{self.operation}, 256 MB and more{where}: part of the {self.moves}S floor"

    def chooses(self, cell: Cell, on_chip: int) -> bool:
        if cell.operation != self.operation or cell.bytes < LARGE:
            return False
        return self.tensors is None or ((self.tensors * cell.channel_bytes <= on_chip) == self.fits)

    def figure(self, cell: Cell) -> float | None:
        ratio = cell.ratio("copy")
        return ratio and ratio * self.moves / COPY_MOVES


FLOORS = (
    _FloorBar("evaluation", 2, 0.92),
    _FloorBar("training", 2, 0.80, 1),
    _FloorBar("training", 3, 0.90, 1, False),
    _FloorBar("backward", 3, 0.80, 2),
    _FloorBar("backward", 5, 0.90, 2, False),
)
LEAST_MEAN = 1.5


def outcomes(cells: Iterable[Cell], multiprocessors: int, launch: float) -> list[Outcome]:
    """Every bar; ``launch`` is what a launch costs in seconds."""
    cells = [cell for cell in cells if cell.operation in OPERATIONS]
    on_chip = multiprocessors * ON_CHIP
    found = [
        _worst(bar.name, bar.limit, (c for c in cells if bar.chooses(c, on_chip)), bar.figure)
        for bar in FLOORS
    ]
    for peer in PEERS[:2]:
        name = f"{peer} is not faster, beyond a launch"
        found.append(_worst(name, 1.0, cells, lambda cell, peer=peer: _beyond(cell, peer, launch)))
        ratios = [ratio for cell in cells if (ratio := cell.ratio(peer))]
        mean = statistics.geometric_mean(ratios) if ratios else None
        found.append(Outcome(
            f"{peer} as a multiple of fastbn, geometric mean", LEAST_MEAN, len(ratios), mean, "",
            None if mean is None else mean >= LEAST_MEAN,
        ))  # fmt: skip
    return found


def _beyond(cell: Cell, peer: str, launch: float) -> float | None:
    """The peer's time and that of a launch over fastbn's."""
    theirs, ours = cell.seconds(peer), cell.seconds("fastbn")
    return (theirs + launch) / ours if theirs and ours else None


def _worst(
    name: str, limit: float, cells: Iterable[Cell], figure: Callable[[Cell], float | None]
) -> Outcome:
    found = [(value, cell) for cell in cells if (value := figure(cell)) is not None]
    if not found:
        return Outcome(name, limit, 0, None, "", None)
    value, cell = min(found, key=lambda pair: pair[0])
    return Outcome(name, limit, len(found), value, _name(cell), value >= limit)


def _name(cell: Cell) -> str:
    return f"{cell.operation} {cell.case} {cell.dtype}"


# --- tables -----------------------------------------------------------------------------------


def checks(found: Iterable[Check]) -> str:
    """The checks that are given, in a table."""
    rows = [
        [
            check.arrays, check.dtype, check.quantity, check.case, check.note[:80],
            "yes" if check.met else "FAILED", f"{check.error:.1e}", f"{check.bar:.0e}",
        ]
        for check in found
    ]  # fmt: skip
    head = ["arrays", "dtype", "quantity", "worst case", "note", "met", "error", "bar"]
    return table(head, rows, texts=6)


def times(cells: Iterable[Cell]) -> str:
    """A row a cell: seconds of the copy over fastbn's, and the peers' over fastbn's."""
    rows = []
    for cell in cells:
        ours = cell.samples.get("fastbn")
        notes = [f"{name}: {error[:60]}" for name, error in cell.errors.items()]
        if ours and not ours.ahead:
            notes.append("waits for the device")
        rows.append([
            _name(cell), "; ".join(notes), mebibytes(cell.bytes), str(cell.sets),
            number(ours and ours.device * 1e6), number(ours and ours.host * 1e6),
            number(cell.ratio("fastbn", "copy")), *(number(cell.ratio(peer)) for peer in PEERS),
        ])  # fmt: skip
    head = ["cell", "notes", "MiB", "sets", "µs on the device", "µs to launch", "times a copy"]
    return table([*head, *(f"{peer} ÷ fastbn" for peer in PEERS)], rows, texts=2)


def launches(launch: Sample, cells: Iterable[Cell]) -> str:
    """What a launch costs, and what a call of the smallest tensor does."""
    cells = [cell for cell in cells if "fastbn" in cell.samples]
    text = f"an empty kernel: {launch.host * 1e6:.1f} µs to launch, {launch.device * 1e6:.1f} µs on"
    text += " the device"
    least = min((cell.bytes for cell in cells), default=0)
    for cell in (cell for cell in cells if cell.bytes == least):
        host = {name: f"{found.host * 1e6:.1f}" for name, found in cell.samples.items()}
        text += f"\n{_name(cell)}, µs to launch: " + ", ".join(f"{k} {v}" for k, v in host.items())
    return text


def bars(found: Iterable[Outcome]) -> str:
    """The bars, in a table."""
    met = {True: "met", False: "NOT MET", None: NOTHING + " not measured"}
    rows = [
        [o.bar, o.worst, met[o.met], str(o.cells), f"≥ {o.limit:g}", number(o.reached)]
        for o in found
    ]
    return table(["bar", "worst cell", "", "cells", "limit", "reached"], rows, texts=3)


def line(cell: Cell) -> str:
    """A cell in a few words."""
    found = {name: f"{sample.device * 1e6:.1f} µs" for name, sample in cell.samples.items()}
    return f"{_name(cell)}: " + ", ".join(f"{name} {text}" for name, text in found.items())
