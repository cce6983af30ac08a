"""How long a process takes from its start to its first result: its caches warm, and cold."""

import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import cold, trees
from benchmarks.providers import PROVIDERS

ROUNDS = 7
PROGRAMS = {
    "fastbn": """
import numpy as np, fastbn
x, v = np.ones((8, 16, 8, 8), np.float32), np.ones(16, np.float32)
fastbn.batch_norm(x, v, v, v, v)
""",
    "torch": """
import torch
x, v = torch.ones(8, 16, 8, 8), torch.ones(16)
torch.nn.functional.batch_norm(x, v, v, v, v)
""",
}


def _start(name):
    root = str(Path(__file__).parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-c", PROGRAMS[name]]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path})


@pytest.mark.report
@pytest.mark.parametrize("name", PROGRAMS)
def test_start(benchmark, machine, name):
    if PROVIDERS[name].missing():
        pytest.skip(f"{name}: the package {PROVIDERS[name].missing()} is not installed")
    seconds = []

    def other():
        start = time.perf_counter()
        _start("fastbn")
        seconds.append(time.perf_counter() - start)

    benchmark.group, benchmark.name = "start", name
    _start(name)
    benchmark.pedantic(_start, (name,), setup=other, rounds=ROUNDS, iterations=1)
    own = benchmark.stats.stats.data
    ratios = [a / b for a, b in zip(own, seconds, strict=True)]
    benchmark.extra_info.update(
        case="process start", operation="start", provider=name, dtype="float32", shape=[],
        axis=1, bytes=0, moved=0, seconds=statistics.median(own), calls_per_round=1,
        ratio_to_fastbn=statistics.median(ratios), **machine,
    )  # fmt: skip


@pytest.mark.parametrize("case", cold.CASES)
def test_cold(benchmark, tmp_path, case):
    benchmark.group, benchmark.name = "cold", case
    tree = trees.working_tree(tmp_path)
    found = benchmark.pedantic(cold.measure, (tree, case), rounds=1)
    benchmark.extra_info.update(functions=found.functions, cpu_seconds=found.cpu)
    assert cold.judged(found, cold.BARS.get(case, math.inf)) == ""
