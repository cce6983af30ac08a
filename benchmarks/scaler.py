"""StandardScaler beside scikit-learn's: both take the same X in turn, on the same threads.

Results are new arrays, as in a pipeline. A ratio above 1 means that fastbn takes less time. Errors
are the largest of a scaled value against extended precision, of data far from zero.
"""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
from sklearn import preprocessing
from tabulate import tabulate
from threadpoolctl import threadpool_limits

import fastbn
from benchmarks.measure import repeats, rounds, sample

SHAPES = (1_000_000, 64), (100_000, 512)
SMALL = (1000, 16)
DTYPES = np.float32, np.float64
#: What the times of scikit-learn are to be at least, in times of fastbn.
BARS = {"fit": 4.0, "transform": 3.0}
#: Rows that errors are taken of, and how many standard deviations from zero their mean is.
ERROR_ROWS, FAR = 20_000, 1e4


def _calls(scaler: Any, x: np.ndarray) -> dict[str, Callable[[], object]]:
    scaler.fit(x)
    y = scaler.transform(x)

    def trusting() -> object:
        with sklearn.config_context(assume_finite=True):
            return scaler.transform(x)

    return {
        "fit": lambda: scaler.fit(x),
        "transform": lambda: scaler.transform(x),
        "transform, assume_finite": trusting,
        "fit_transform": lambda: scaler.fit_transform(x),
        "inverse_transform": lambda: scaler.inverse_transform(y),
    }


def _missing(x: np.ndarray) -> np.ndarray:
    """One value of a hundred is NaN."""
    x = x.copy()
    x.reshape(-1)[::101] = np.nan
    return x


def measured(shape: tuple[int, ...], dtype: type, least: int) -> list[dict[str, Any]]:
    """Milliseconds of both and the median of the ratios, of each call."""
    drawn = np.random.default_rng(0).standard_normal(shape, dtype)
    np.add(np.multiply(drawn, dtype(3), out=drawn), dtype(5), out=drawn)
    found = []
    for x, kind in ((drawn, ""), (_missing(drawn), " with NaN")):
        ours = _calls(fastbn.StandardScaler(), x)
        theirs = _calls(preprocessing.StandardScaler(), x)
        for name in ours if not kind else ("fit",):
            pair = {"fastbn": ours[name], "sklearn": theirs[name]}
            counts = {who: repeats(call) for who, call in pair.items()}
            times: dict[str, list[float]] = {who: [] for who in pair}
            for _ in range(least or max(7, rounds(pair))):
                for who, call in pair.items():
                    times[who].append(sample(call, counts[who]) / counts[who])
            ratio = statistics.median(
                b / a for a, b in zip(times["fastbn"], times["sklearn"], strict=True)
            )
            bar = None if kind or shape not in SHAPES else BARS.get(name)
            ms = {f"{who}, ms": 1e3 * statistics.median(of) for who, of in times.items()}
            of = f"{np.dtype(dtype).name} {'x'.join(map(str, shape))}"
            found.append({"call": f"{name}{kind}: {of}", **ms, "times": ratio, "bar": bar})
    return found


def errors(dtype: type, features: int = 8) -> dict[str, float]:
    """The largest error of a scaled value, by who scaled it."""
    x = np.random.default_rng(0).normal(FAR, 1, (ERROR_ROWS, features)).astype(dtype)
    wide = x.astype(np.longdouble)
    truth = (wide - wide.mean(0)) / wide.std(0)
    scalers = {"fastbn": fastbn.StandardScaler(), "sklearn": preprocessing.StandardScaler()}
    return {
        who: float(abs(scaler.fit(x).transform(x) - truth).max()) for who, scaler in scalers.items()
    }


def scaler(threads: int, least: int, to: Path | None) -> bool:
    """Measure and print the tables; whether every bar is met."""
    if threads:
        fastbn.set_num_threads(threads)
    number, rows = fastbn.get_num_threads(), []
    with threadpool_limits(number):
        for shape in (*SHAPES, SMALL):
            for dtype in DTYPES:
                rows += measured(shape, dtype, least)
    far = {np.dtype(dtype).name: errors(dtype) for dtype in DTYPES}
    if to is not None:
        to.write_text(json.dumps({"rows": rows, "errors": far}, indent=1) + "\n", encoding="utf-8")
    columns = ["call", "fastbn, ms", "sklearn, ms", "times", "bar"]
    table = [["" if row[c] is None else row[c] for c in columns] for row in rows]
    print(f"{number} threads, scikit-learn {sklearn.__version__}. Times as fast as it is:\n")
    print(tabulate(table, columns, tablefmt="github", floatfmt=".3g"))
    print(f"\nLargest error of a scaled value, mean / std = {FAR:g}:\n")
    print(tabulate([[name, *of.values()] for name, of in far.items()],
                   ["", "fastbn", "sklearn"], tablefmt="github", floatfmt=".1e"))  # fmt: skip
    missed = [row["call"] for row in rows if row["bar"] and row["times"] < row["bar"]]
    slower = [row["call"] for row in rows if row["times"] < 1]
    for what, calls in (("Below the bar", missed), ("Slower than scikit-learn", slower)):
        print(f"\n{what}: {'; '.join(calls) or 'none'}.")
    return not missed
