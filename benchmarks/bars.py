"""The bars that fastbn is held to, and whether a run meets them."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.results import LAYOUTS, Cell, Run

OUT, ALLOCATING = "fastbn out=", "fastbn"
FIRST, LAST = LAYOUTS[:1], LAYOUTS[1:]
#: Smaller arrays cost mostly the call, which has bars of its own.
LEAST_BYTES = 2**20
US = 1e-6


def beyond(cell: Cell, run: Run) -> bool:
    """Whether its output does not fit into the last-level cache."""
    return cell.bytes > run.cache


def within(cell: Cell, run: Run) -> bool:
    """Whether its output fits into the last-level cache, and is not small."""
    return LEAST_BYTES <= cell.bytes <= run.cache


def anywhere(cell: Cell, run: Run) -> bool:
    return True


def to_copy(cell: Cell, run: Run) -> float | None:
    return cell.ratio_to_copy


def to_fastbn(cell: Cell, run: Run) -> float | None:
    """How many times as long as fastbn a peer takes."""
    return cell.ratio_to_fastbn


def seconds(cell: Cell, run: Run) -> float | None:
    return cell.seconds


def to_torch(cell: Cell, run: Run) -> float | None:
    """The seconds as a part of torch's for the same."""
    torch = run.by_key().get((cell.case, cell.dtype, cell.operation, "torch"))
    return torch and cell.seconds / torch.seconds


@dataclass(frozen=True)
class Bar:
    """A limit for the figure of each chosen cell, or for the geometric mean of them."""

    group: str
    name: str
    operation: str
    provider: str
    figure: Callable[[Cell, Run], float | None]
    limit: float
    at_least: bool = False
    mean: bool = False
    layouts: tuple[str, ...] = LAYOUTS
    where: Callable[[Cell, Run], bool] = anywhere
    case: str | None = None
    unit: str = ""
    unit_size: float = 1.0

    def chooses(self, cell: Cell, run: Run) -> bool:
        return (
            (cell.operation, cell.provider) == (self.operation, self.provider)
            and self.case in (None, cell.case)
            and cell.layout in self.layouts
            and self.where(cell, run)
            and self.figure(cell, run) is not None
        )

    def met_by(self, figure: float) -> bool:
        return figure >= self.limit if self.at_least else figure <= self.limit


@dataclass(frozen=True)
class Outcome:
    """A bar with what a run reached; ``met`` is None where nothing was measured."""

    bar: Bar
    cells: int = 0
    meeting: int = 0
    reached: float | None = None
    median: float | None = None
    worst: Cell | None = None
    worst_figure: float | None = None
    met: bool | None = None


def outcome(bar: Bar, run: Run) -> Outcome:
    """What ``run`` reaches of ``bar``: the mean if it is about the mean, else the worst cell."""
    found = [(bar.figure(cell, run), cell) for cell in run.cells if bar.chooses(cell, run)]
    if not found:
        return Outcome(bar)
    figures = [figure for figure, _ in found]
    worst_figure, worst = (min if bar.at_least else max)(found, key=lambda pair: pair[0])
    reached = statistics.geometric_mean(figures) if bar.mean else worst_figure
    meeting = sum(map(bar.met_by, figures))
    return Outcome(
        bar, len(found), meeting, reached, statistics.median(figures), worst, worst_figure,
        bar.met_by(reached),
    )  # fmt: skip


COPY_GROUP = "Time as a multiple of a copy of the same bytes, `out=`, from 1 MiB on"
PEER_GROUP = "Time of a peer as a multiple of fastbn's, allocating"
TIME_GROUP = "Small arrays, and the start of a process"

#: (operation, limit beyond the last-level cache, limit in it)
COPY_LIMITS = (("evaluation", 0.80, 1.05), ("training", 1.25, 1.5), ("backward", 1.7, 2.2))
#: (operation, peers that are never faster, least geometric mean against torch)
PEER_LIMITS = (
    ("evaluation", ("torch", "ONNX Runtime", "JAX"), 5.0),
    ("training", ("torch", "JAX"), 8.0),
    ("backward", ("torch", "JAX"), 5.0),
)


def _copy_bars():
    for layouts, layout in ((FIRST, "channels first"), (LAST, "channels last and (N, C)")):
        for operation, limit_beyond, limit_within in COPY_LIMITS:
            for where, limit, place in (
                (beyond, limit_beyond, "beyond the last-level cache"),
                (within, limit_within, "in cache"),
            ):
                name = f"{operation}, {layout}, {place}"
                yield Bar(
                    COPY_GROUP, name, operation, OUT, to_copy, limit, layouts=layouts, where=where
                )


def _peer_bars():
    for operation, peers, least_mean in PEER_LIMITS:
        for peer in peers:
            name = f"{operation}, {peer}: every cell"
            yield Bar(PEER_GROUP, name, operation, peer, to_fastbn, 1.0, at_least=True)
        name = f"{operation}, torch: geometric mean"
        yield Bar(
            PEER_GROUP, name, operation, "torch", to_fastbn, least_mean, at_least=True, mean=True
        )


def _time_bars():
    def micro(name, operation, provider, case, limit):
        return Bar(
            TIME_GROUP, f"{name}, {case}", operation, provider, seconds, limit * US,
            case=case, unit=" µs", unit_size=US,
        )  # fmt: skip

    small, table = "small: 1x64x1x1", "table: 8x16"
    yield micro("evaluation by a layer, allocating", "layer evaluation", ALLOCATING, small, 2.5)
    yield micro("evaluation by the function, out=", "evaluation", OUT, small, 2.0)
    yield micro("training", "training", ALLOCATING, table, 5.0)
    yield micro("backward", "backward", ALLOCATING, table, 5.0)
    start = "process start to first result"
    yield Bar(TIME_GROUP, start, "start", ALLOCATING, seconds, 0.6, unit=" s")
    yield Bar(TIME_GROUP, f"{start}, part of torch's", "start", ALLOCATING, to_torch, 0.40)


BARS = (*_copy_bars(), *_peer_bars(), *_time_bars())
