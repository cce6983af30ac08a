"""What ``compare`` runs in a process of each commit: times one cell after the other, as asked.

Uses the public API of fastbn alone and imports nothing from this folder, so that it runs beside
any commit. Reads a request in JSON per line, answers with the seconds of the fastest call.
"""

import json
import signal
import sys
import time
from functools import lru_cache
from pathlib import Path

import numpy as np

import fastbn

#: Calls that take less are repeated until a sample takes about as long as this.
SAMPLE_SECONDS = 1e-4
PAGE = 4096


def evaluation(x, dy, axis, vectors):
    mean, var, weight, bias = vectors
    out = placed(x)
    return lambda: fastbn.batch_norm(x, mean, var, weight, bias, axis=axis, out=out)


def training(x, dy, axis, vectors):
    mean, var, weight, bias = vectors
    out = placed(x)
    return lambda: fastbn.batch_norm(x, mean, var, weight, bias, True, axis=axis, out=out)


def backward(x, dy, axis, vectors):
    _, _, weight, bias = vectors
    out = placed(x)
    _, cache = fastbn.batch_norm_forward(x, weight=weight, bias=bias, training=True, axis=axis)
    return lambda: fastbn.batch_norm_backward(dy, cache, out=out)


def statistics(x, dy, axis, vectors):
    return lambda: fastbn.channel_stats(x, axis)


def _layer(x):
    kinds = {2: fastbn.BatchNorm1d, 3: fastbn.BatchNorm1d, 4: fastbn.BatchNorm2d}
    return kinds[x.ndim](x.shape[1])


def layer_evaluation(x, dy, axis, vectors):
    layer = _layer(x).eval()
    return lambda: layer(x)


def layer_step(x, dy, axis, vectors):
    layer = _layer(x)
    return lambda: layer.backward(layer(x))


OPERATIONS = {
    "evaluation": evaluation,
    "training": training,
    "backward": backward,
    "statistics": statistics,
    "layer evaluation": layer_evaluation,
    "layer step": layer_step,
}


def placed(values, k=0):
    """A copy at the same place of a page in every process: small arrays feel where they lie."""
    raw = np.empty(values.nbytes + 2 * PAGE, np.uint8)
    start = -raw.ctypes.data % PAGE + k * PAGE // 8
    there = raw[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    there[...] = values
    return there


@lru_cache(maxsize=1)
def arrays(dtype, shape, axis):
    """Input, gradient, axis and vectors; cells of the same array come one after the other."""
    rng = np.random.default_rng(0)
    some = rng.standard_normal(100_003).astype(dtype)  # more would take longer than measuring
    x = placed(np.resize(some + some.dtype.type(2), shape))
    dy = placed(np.resize(some[::-1], shape))
    vectors = [placed(rng.uniform(0.5, 2, shape[axis]).astype(dtype), k) for k in range(1, 5)]
    return x, dy, axis, vectors


def sample(call, n):
    """Seconds that a call takes, of ``n`` in a row."""
    start = time.perf_counter()
    for _ in range(n):
        call()
    return (time.perf_counter() - start) / n


def calls_per_sample(call):
    sample(call, 1)  # compiles, or loads what is compiled
    seconds = sample(call, 1)
    if seconds < 10 * SAMPLE_SECONDS:
        seconds = min(seconds, *(sample(call, 1) for _ in range(5)))
    return max(1, round(SAMPLE_SECONDS / seconds))


def fastest(call, n, seconds):
    """The fastest of the samples that fit into ``seconds``, and of one at least.

    What else the machine does makes a call slower, never faster.
    """
    best, end = sample(call, n), time.perf_counter() + seconds
    while time.perf_counter() < end:
        best = min(best, sample(call, n))
    return best


def main(threads):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its parent ends it, by closing stdin
    here = Path(__file__).resolve().parent
    if here not in Path(fastbn.__file__).resolve().parents:
        raise SystemExit(f"{fastbn.__file__} is not the commit to measure")
    # a number that is set holds while others want the processors, too
    fastbn.set_num_threads(threads or fastbn.get_num_threads())
    ready, call, n = None, None, 0
    for line in sys.stdin:
        *cell, seconds = json.loads(line)
        if cell != ready:
            ready = call = None  # drops the output of the cell before
            try:
                operation, dtype, shape, axis = cell
                call = OPERATIONS[operation](*arrays(dtype, tuple(shape), axis))
                n = calls_per_sample(call)
            except (TypeError, AttributeError) as error:  # an older API
                print(json.dumps(str(error)), flush=True)
                continue
            ready = cell
        print(fastest(call, n, seconds), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
