"""How several processes share the processors: calls per second of all of them together.

A server starts worker processes that know nothing of each other. Each evaluates one batch after
the other for some seconds, all at the same time: with threads as they are by default, and with one
thread each.
"""

import os
import subprocess
import sys

from tabulate import tabulate

from benchmarks.results import ROOT, Unusable

#: A layer's batch in a network: small enough for the caches, large enough for threads.
SHAPE = (4, 64, 56, 56)
#: Numbers of processes, and how long they run.
COUNTS, SECONDS = (1, 2, 4), 4.0
CHOICES = {"default": None, "one thread each": "1"}

PROGRAM = """
import sys, time
import numpy as np
import fastbn

seconds, shape = float(sys.argv[1]), tuple(map(int, sys.argv[2:]))
x = np.random.default_rng(0).normal(size=shape).astype("f4")
bn, out = fastbn.BatchNorm2d(shape[1]).eval(), np.empty_like(x)
bn(x, out=out)
print("ready", flush=True)
sys.stdin.readline()
calls, end = 0, time.perf_counter() + seconds
while time.perf_counter() < end:
    bn(x, out=out)
    calls += 1
print(calls / seconds)
"""


def rate(workers: int, threads: str | None, seconds: float) -> float:
    """Calls per second of so many processes; ``threads`` is FASTBN_NUM_THREADS, if anything."""
    environment = {k: v for k, v in os.environ.items() if k != "FASTBN_NUM_THREADS"}
    if threads is not None:
        environment["FASTBN_NUM_THREADS"] = threads
    command = [sys.executable, "-c", PROGRAM, str(seconds), *map(str, SHAPE)]
    processes = [
        subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        for _ in range(workers)
    ]  # fmt: skip
    try:
        if not all(process.stdout.readline() for process in processes):
            raise Unusable("a process that shares the processors has ended")
        for process in processes:
            print(file=process.stdin, flush=True)
        return sum(float(process.stdout.readline()) for process in processes)
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def sharing(seconds: float = SECONDS) -> None:
    """Measure and print the table."""
    rows = [
        [count, *(round(rate(count, threads, seconds)) for threads in CHOICES.values())]
        for count in COUNTS
    ]
    shape = "x".join(map(str, SHAPE))
    print(f"{os.cpu_count()} processors; evaluation of {shape} float32 with out=.")
    print("Calls per second of all processes together:\n")
    print(tabulate(rows, ["processes", *CHOICES], tablefmt="github"))
