"""What the first calls cost where nothing is compiled yet: processor time, and compiled functions.

How many functions are compiled depends on fastbn alone, neither on the machine nor on what else
runs there. So `BARS` are for their number: no feature can multiply it unseen. Processor time
varies; given another commit, it is compared with that.
"""

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from tabulate import tabulate

from benchmarks import trees
from benchmarks.results import Unusable
from benchmarks.trees import Tree

#: Each case: a small array and one that is worth threads; or all there is.
CASES = {
    "evaluation": """
fastbn.BatchNorm2d(8).eval()(small)
fastbn.BatchNorm2d(64).eval()(large)
""",
    "training step": """
for x, layer in (small, fastbn.BatchNorm2d(8)), (large, fastbn.BatchNorm2d(64)):
    layer.backward(layer(x))
""",
    "training step (N, C)": """
for x, layer in (small, fastbn.BatchNorm1d(8)), (large, fastbn.BatchNorm1d(64)):
    layer.backward(layer(x.reshape(-1, x.shape[1])))
""",
    "fused training step": """
for x in small, large:
    layer = fastbn.BatchNorm2d(x.shape[1], activation="relu")
    layer.backward(layer(x, residual=x))
""",
    "layer norm step": """
for x in small, large:
    layer = fastbn.LayerNorm(x.shape[-1])
    layer.backward(layer(x))
""",
    "group norm step": """
for x in small, large:
    layer = fastbn.GroupNorm(4, x.shape[1])
    layer.backward(layer(x))
""",
    "standardize, NHWC to NCHW": """
image = np.zeros((8, 64, 64, 3), np.uint8)
fastbn.standardize(image[0, 0], 0.5, 0.2, axis=-1, out_axis=0)
fastbn.standardize(image, 0.5, 0.2, axis=-1, out_axis=1)
""",
    "standardize, each layout": """
for image in np.zeros((16, 64, 3), np.uint8), np.zeros((8, 64, 64, 3), np.uint8):
    fastbn.standardize(image, 0.5, 0.2, axis=-1, out_axis=0)
    fastbn.standardize(image, 0.5, 0.2, axis=-1)
    fastbn.standardize(np.ascontiguousarray(np.moveaxis(image, -1, 0)), 0.5, 0.2, axis=0)
""",
    # several processes share it else: they are not listened to, and some functions they all need
    "warmup, one thread": "fastbn.set_num_threads(1); fastbn.warmup(progress=False)",
    "warmup": "fastbn.warmup(progress=False)",
}
#: The most functions that each case may compile, a fifth more than it did when this was written.
BARS = {
    "evaluation": 23,
    "training step": 70,
    "training step (N, C)": 90,
    "fused training step": 77,
    "layer norm step": 66,
    "group norm step": 70,
    "standardize, NHWC to NCHW": 9,
    "standardize, each layout": 14,
    "warmup, one thread": 300,
}
#: How many times as long as in another commit a case may take.
GROWTH = 1.25

# Numba tells its listeners of each pass over each function; that to machine code is the last.
# `resource` knows the time of children, too, and is missing on Windows.
PROGRAM = """
import json, os, time
import numpy as np
from numba.core import event
import fastbn

class Lowered(event.Listener):
    functions = 0

    def on_start(self, event):
        data = event.data
        lowering = data["name"].split(" ")[0] in ("native_lowering", "native_parfor_lowering")
        self.functions += lowering and (data["module"] or "").startswith("fastbn")

    def on_end(self, event):
        pass

listener = Lowered()
event.register("numba:run_pass", listener)
small = np.random.randn(4, 8, 5, 5).astype("float32")
large = np.random.randn(8, 64, 56, 56).astype("float32")
cpu, wall = sum(os.times()[:4]), time.perf_counter()
{case}
cpu, wall = sum(os.times()[:4]) - cpu, time.perf_counter() - wall
print(json.dumps([listener.functions, cpu, wall]))
"""


@dataclass(frozen=True)
class Cold:
    """What a case cost: compiled functions, processor time with that of children, time."""

    functions: int
    cpu: float
    wall: float


def measure(tree: Tree, case: str) -> Cold:
    """Run a case in a process and with a cache of its own."""
    with tempfile.TemporaryDirectory(dir=tree.folder) as cache:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.replace("{case}", CASES[case])],
            cwd=tree.folder, env=tree.environment(cache), text=True, stdout=subprocess.PIPE,
        )  # fmt: skip
    if done.returncode:
        raise Unusable(f"{case} failed in {tree.name}; its error is above")
    return Cold(*json.loads(done.stdout))


def chosen(pattern: str) -> list[str]:
    """The cases whose name has ``pattern`` in it."""
    found = [case for case in CASES if fnmatchcase(case, f"*{pattern}*")]
    if not found:
        raise Unusable(f"no case is called *{pattern}*; there are: {'; '.join(CASES)}")
    return found


def judged(now: Cold, bar: float, before: Cold | None = None) -> str:
    """What is wrong with a case, if anything."""
    if now.functions > bar:
        return "too many functions"
    return "slower" if before and now.cpu > GROWTH * before.cpu else ""


def cold(ref: str | None, cases: Sequence[str]) -> bool:
    """Print what each case costs, and whether all meet their bars."""
    from fastbn._system.progress import track

    head = ["first", "functions", "at most", "CPU s", "wall s"]
    if ref:
        head += [f"functions in {ref}", "CPU s", "ratio"]
    rows, fine = [], True
    with tempfile.TemporaryDirectory() as folder:
        new = trees.working_tree(Path(folder) / "new")
        old = trees.commit(ref, Path(folder) / "old") if ref else None
        for case in track(cases, "compiling"):
            now, before = measure(new, case), old and measure(old, case)
            verdict = judged(now, BARS.get(case, math.inf), before)
            if verdict == "slower":  # perhaps for what else the machine did
                now = min(now, measure(new, case), key=lambda cold: cold.cpu)
                verdict = judged(now, BARS.get(case, math.inf), before)
            row = [
                case,
                now.functions or "",
                BARS.get(case, ""),
                f"{now.cpu:.1f}",
                f"{now.wall:.1f}",
            ]
            if before:
                row += [before.functions or "", f"{before.cpu:.1f}", f"{now.cpu / before.cpu:.2f}"]
            rows.append([*row, verdict])
            fine = fine and not verdict
    print(tabulate(rows, [*head, ""], disable_numparse=True))
    return fine
