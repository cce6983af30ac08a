"""How synchronized batch norm scales: measured on a few ranks here, and a model of many.

Measured: forward and backward of ResNet-50's 53 batch norms, by every rank on a batch of its own,
with statistics of that batch alone (``plain``) and of all (``sync``); and ``MPI_Allgather`` alone.

The model of P ranks has three parts:

- compute: what a rank does without any exchange, measured here;
- joins: what a rank does besides, measured here with a communicator that copies and has no network,
  as if it had P ranks: messages are made, compared and joined, and what batch norm does in one call
  of native code takes two;
- network: each collective takes ``ceil(log2(P)) * latency`` and the time of its bytes. Of an
  allgather of m bytes a rank these are ``(P - 1) * m``, of an alltoall ``P * m / 2`` in each of
  log2(P) steps, or ``(P - 1) * m`` in P - 1 steps where that takes less (Thakur, Rabenseifner &
  Gropp, "Optimization of Collective Communication Operations in MPICH", 2005). Bytes are counted
  of the way whose time is taken, those that a rank passes on for others included.

It leaves out: ranks that come late, for which all wait; ranks that share a network card or are on
one machine; congestion; and the rest of the network, which takes most of a training step.
"""

import json
import math
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.results import ROOT, Unusable
from benchmarks.scaling_ranks import LAYERS, alone
from fastbn.distributed.exchange import LARGEST
from fastbn.distributed.headers import BYTES as HEADER

PAGE = ROOT / "benchmarks" / "SCALING.md"
#: Ranks that are measured, and those of the model.
MEASURED, MODELLED = (1, 2, 4), (2, 8, 64, 1024)
#: Of the model: latency of a step in microseconds and bandwidth in Gbit/s, as of a 100 Gbit/s
#: fabric with remote memory access; samples of a rank.
LATENCY, BANDWIDTH, BATCH, ROUNDS = 2.0, 100.0, 8, 5
#: Bytes of a message besides its header, for each channel.
PER_CHANNEL = 16


def sliced(ranks: int, channels: int) -> bool:
    """Whether messages go in slices."""
    return ranks * (HEADER + PER_CHANNEL * channels) > LARGEST


def collectives(ranks: int, channels: int, latency: float, gap: float) -> tuple[float, float]:
    """Seconds of an exchange on the network, and bytes that a rank receives.

    ``latency`` in seconds, ``gap`` in seconds per byte.
    """
    steps = math.ceil(math.log2(ranks))
    message = HEADER + PER_CHANNEL * channels
    if not sliced(ranks, channels):
        nbytes = (ranks - 1) * message
        return steps * latency + nbytes * gap, nbytes
    width = math.ceil(channels / ranks)
    part, results = HEADER + PER_CHANNEL * width, (ranks - 1) * PER_CHANNEL * width
    ways = (steps, steps * ranks // 2 * part), (ranks - 1, (ranks - 1) * part)
    seconds, nbytes = min((n * latency + moved * gap, moved) for n, moved in ways)
    return seconds + steps * latency + results * gap, nbytes + results


def network(ranks: int, latency: float, gap: float) -> tuple[float, float]:
    """The same of a whole step: forward and backward of all layers."""
    each = [
        (2 * number, collectives(ranks, channels, latency, gap))
        for (channels, _), number in LAYERS.items()
    ]
    return sum(n * seconds for n, (seconds, _) in each), sum(n * nb for n, (_, nb) in each)


def mpiexec() -> str:
    """That beside Python (the wheel ``mpich`` brings one), or another."""
    beside = Path(sys.executable).parent / "mpiexec"
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        raise Unusable("no mpiexec; pip install '.[mpi-test]'")
    return found


def measured(ranks: int, batch: int, rounds: int) -> dict:
    """What so many ranks measure, each with one thread."""
    variables = {**os.environ, "FASTBN_NUM_THREADS": "1"}
    command = [mpiexec(), "-n", str(ranks), sys.executable, "-m", "benchmarks.scaling_ranks"]
    done = subprocess.run(
        [*command, str(batch), str(rounds)], cwd=ROOT, env=variables, capture_output=True, text=True
    )
    if done.returncode:
        raise Unusable(f"{ranks} ranks have failed: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout)


def _table(titles: list[str], rows: list[list[object]]) -> str:
    from tabulate import tabulate

    return tabulate(rows, titles, tablefmt="github", floatfmt=".3g")


def measured_table(found: dict[int, dict], latency: float, gap: float) -> str:
    """Times of a step in ms, and bytes of a rank."""
    rows = [
        [
            ranks, run["plain"] * 1e3, run["sync"] * 1e3, (run["sync"] - run["plain"]) * 1e3,
            run["sync"] / run["plain"], network(ranks, latency, gap)[1] / 1e6 if ranks > 1 else 0,
        ]
        for ranks, run in found.items()
    ]  # fmt: skip
    return _table(["ranks", "plain, ms", "sync, ms", "more, ms", "sync / plain", "MB in"], rows)


def allgather_table(found: dict[int, dict]) -> str:
    """Microseconds of an allgather by bytes per rank."""
    sizes = list(next(iter(found.values()))["allgather"])
    rows = [[n, *(run["allgather"][s] * 1e6 for s in sizes)] for n, run in found.items() if n > 1]
    return _table(["ranks", *(f"{size} bytes, us" for size in sizes)], rows)


def model_table(here: dict[str, float], batch: int, latency: float, gap: float) -> str:
    """The model's three parts in ms, and the batch at which the exchange takes half of the time."""
    rows, compute = [], here["plain"]
    for ranks in MODELLED:
        seconds, nbytes = network(ranks, latency, gap)
        joins = max(0.0, here[str(ranks)] - compute)
        exchange = joins + seconds
        rows.append([
            ranks, compute * 1e3, joins * 1e3, seconds * 1e3, nbytes / 1e6,
            f"{100 * exchange / (compute + exchange):.0f} %", exchange / (compute / batch),
        ])  # fmt: skip
    titles = ["ranks", "compute, ms", "joins, ms", "network, ms", "MB in", "exchange", "even at"]
    return _table(titles, rows)


TEXT = """# How synchronized batch norm scales

Written by `{command}` on {machine}.

All times are of one step: forward and backward of ResNet-50's 53 batch norms, float32, {batch}
samples of 224x224 pixels a rank, one thread a rank. A step has 106 exchanges. In each a rank sends
16 bytes a channel and {header} more; or, where the messages of all ranks are more than {largest}
bytes, so much of a slice of the channels to each rank, and then its joined slice to all.

## Measured here

`plain` is batch norm without an exchange, by so many processes at once. With more ranks than
processors, or with other work on them, a rank that waits for a message first waits for the
others to get a processor: before this run {load:.1f} other processes wanted one of {processors}.

{measured}

`MPI_Allgather` alone ({mpi}):

{allgather}

## Model of more ranks

Latency {latency:g} us a step, {bandwidth:g} Gbit/s (`--latency`, `--bandwidth`). Compute and joins
were measured here, the network is worked out. "exchange" is the share of joins and network in the
whole; with so many samples a rank as "even at" says, they take as long as the compute.

{model}

The formulas, and what the model leaves out, stand in `benchmarks/scaling.py`. It leaves out most of
what makes real steps longer: ranks that come late, shared network cards, congestion. It leaves out
what makes the share smaller as well: convolutions take most of a step.

## What it says

- Few ranks: the time of Python for each call and the latency decide, not bytes. Messages do not
  grow with the batch, so larger local batches make up for both.
- Many ranks: an allgather of all statistics grows with their number ({whole:.0f} MB with
  {most} ranks, a step). So large messages go in slices, of which {slices:.1f} MB come in, most to
  be passed on.
- Below the batch of "even at", take statistics over groups of ranks, such as those of one
  machine (`comm.Split(comm.rank // 8)`): 8 ranks of a few samples already give fair statistics.
- A layer needs its statistics before it can go on, so its exchange hides behind nothing of the
  same batch. Halves of a batch in turns, one in a layer and one in an exchange, would hide it, with
  statistics of the halves; fastbn does not do that by itself.
"""


def scaling(
    batch: int = BATCH, rounds: int = ROUNDS, latency: float = LATENCY,
    bandwidth: float = BANDWIDTH, to: Path = PAGE,
) -> None:  # fmt: skip
    """Measure, print the page and write it."""
    import fastbn

    gap, load = 8 / (bandwidth * 1e9), os.getloadavg()[0]
    found = {ranks: measured(ranks, batch, rounds) for ranks in MEASURED}
    threads = fastbn.get_num_threads()
    fastbn.set_num_threads(1)
    try:
        here = alone(batch, rounds, MODELLED)
    finally:
        fastbn.set_num_threads(threads)
    most = MODELLED[-1]
    channels = sum(2 * number * c for (c, _), number in LAYERS.items())
    page = TEXT.format(
        command=" ".join(["python -m benchmarks scaling", *sys.argv[2:]]),
        machine=f"{platform.machine()} with {os.cpu_count()} processors, {platform.system()}",
        batch=batch, load=load, processors=os.cpu_count(),
        measured=measured_table(found, latency * 1e-6, gap),
        mpi=next(iter(found.values()))["mpi"], allgather=allgather_table(found),
        latency=latency, bandwidth=bandwidth,
        model=model_table(here, batch, latency * 1e-6, gap), most=most,
        whole=(most - 1) * (PER_CHANNEL * channels + 106 * HEADER) / 1e6,
        slices=network(most, latency * 1e-6, gap)[1] / 1e6, header=HEADER, largest=LARGEST,
    )  # fmt: skip
    to.write_text(page, encoding="utf-8")
    print(page)
    print(f"Written: {to}")
