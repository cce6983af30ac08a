"""Random calls, valid and invalid: each outcome is right, or an error of fastbn's own.

    python -m tests.fuzz --seed 0 --calls 200000

A call that returns is compared with `tests.reference`. A call that raises must raise TypeError,
ValueError, RuntimeError or KeyError, with a message, from a line of fastbn, for a reason
(an argument that is wrong), and must have changed nothing: no argument and no layer. Every call
depends on the seed and its own number alone: ``--start K --calls 1`` plays one again.
"""

import argparse
import contextlib
import sys
import time
import traceback
import warnings
from collections import Counter

import numpy as np

from tests.fuzz_arguments import Caller, Wrong, pick
from tests.fuzz_around import call_fused, call_norm
from tests.fuzz_functions import call_function, call_stats
from tests.fuzz_layers import call_constructor, call_layer

KINDS = (
    call_function, call_function, call_function, call_stats, call_constructor, call_layer,
    call_fused, call_norm,
)  # fmt: skip


def one(seed, index):
    """Make call number ``index``; returns what came of it, or raises `Wrong`."""
    call = Caller(seed, index)
    kind = pick(call.rng, KINDS)
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return kind(call)
    except Wrong:
        raise
    except AssertionError as error:
        raise Wrong(str(error)) from error


def run(seed, calls, start=0, progress=None):
    """Counts of outcomes of ``calls`` calls; the first wrong one raises `Wrong`."""
    outcomes = Counter()
    for index in range(start, start + calls):
        try:
            outcomes[one(seed, index)] += 1
        except Exception as error:
            raise Wrong(
                f"call {index}: {error}\nreplay: python -m tests.fuzz --seed {seed} "
                f"--start {index} --calls 1"
            ) from error
        if progress is not None:
            progress(index + 1 - start, calls)
    return outcomes


class Progress:
    """One line on stderr: redrawn on a terminal, now and then elsewhere."""

    def __init__(self, stream):
        self.stream, self.terminal = stream, stream.isatty()
        self.started = self.last = time.monotonic()

    def __call__(self, done, total):
        now = time.monotonic()
        if now - self.last < (0.2 if self.terminal else 30) and done < total:
            return
        self.last = now
        rate = done / max(now - self.started, 1e-9)
        text = f"fuzz: {done}/{total} calls, {rate:.0f}/s, {(total - done) / rate:.0f} s left"
        end = "\n" if done == total or not self.terminal else ""
        with contextlib.suppress(OSError):
            self.stream.write(("\r\x1b[K" if self.terminal else "") + text + end)
            self.stream.flush()


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--calls", type=int, default=10_000, metavar="N")
    parser.add_argument(
        "--start", type=int, default=0, metavar="K", help="number of the first call"
    )
    arguments = parser.parse_args(argv)
    began = time.monotonic()
    try:
        outcomes = run(arguments.seed, arguments.calls, arguments.start, Progress(sys.stderr))
    except Wrong as error:
        traceback.print_exc()
        print(f"fuzz: FAILED: {error}")
        return 1
    for outcome, times in outcomes.most_common():
        print(f"{times:8d}  {outcome}")
    print(f"fuzz: {sum(outcomes.values())} calls in {time.monotonic() - began:.0f} s, all right "
          f"or an error of fastbn (seed {arguments.seed})")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
