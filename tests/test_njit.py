"""Batch norm in compiled code of users: the bits of fastbn's functions, whoever calls."""

import os
import subprocess
import sys
import threading

import numba
import numpy as np
import pytest

import fastbn
import fastbn.njit
from fastbn.njit import (
    batch_norm_line,
    batch_norm_row,
    merge_moments,
    normalizing_terms,
    row_moments,
)
from tests import reference

PLAIN = bool(numba.config.DISABLE_JIT)
DTYPES = np.float32, np.float64
#: Around the number of values of a vector, and of what begins with aligned stores.
SIZES = (1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 64, 255, 256, 259, 1000)


@numba.njit
def rows(x, terms, out):
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            batch_norm_row(x[n, c], terms, c, out[n, c])


@numba.njit(parallel=True, nogil=True)
def rows_in_parallel(x, terms, out):
    for n in numba.prange(x.shape[0]):
        for c in range(x.shape[1]):
            batch_norm_row(x[n, c], terms, c, out[n, c])


@numba.njit(fastmath=True)
def rows_fast(x, terms, out):
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            batch_norm_row(x[n, c], terms, c, out[n, c])


@numba.njit
def some_row(values, start, size, terms, channel, out, to):
    batch_norm_row(values[start : start + size], terms, channel, out[to : to + size])


@numba.njit
def lines(x, terms, out):
    for n in range(x.shape[0]):
        batch_norm_line(x[n], terms, out[n])


@numba.njit
def moments(row):
    return row_moments(row)


@numba.njit(parallel=True)
def channel_moments(x):
    """Rows in parallel, and merged in their order."""
    each = np.empty((x.shape[0], x.shape[1], 3))
    for n in numba.prange(x.shape[0]):
        for c in range(x.shape[1]):
            each[n, c, 0], each[n, c, 1], each[n, c, 2] = row_moments(x[n, c])
    found = np.zeros((x.shape[1], 3))
    for c in range(x.shape[1]):
        for n in range(x.shape[0]):
            a, b = found[c], each[n, c]
            a[0], a[1], a[2] = merge_moments(a[0], a[1], a[2], b[0], b[1], b[2])
    return found


def same_bits(got, wanted, what=""):
    got, wanted = np.ascontiguousarray(got), np.ascontiguousarray(wanted)
    assert got.dtype == wanted.dtype
    different = got.tobytes() != wanted.tobytes()
    assert not different or np.array_equal(got, wanted, equal_nan=True), what


def vectors_of(rng, channels, dtype):
    return rng.uniform(0.5, 2, (4, channels)).astype(dtype)


# --- rows and lines -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given", ["all", "weight", "bias", "none"])
def test_rows_have_the_bits_of_an_evaluation(given, dtype, rng):
    mean, var, weight, bias = vectors_of(rng, 3, dtype)
    weight = weight if given in ("all", "weight") else None
    bias = bias if given in ("all", "bias") else None
    terms = normalizing_terms(mean, var, weight, bias, 1e-3, dtype)
    assert (terms.shape, terms.dtype, terms.flags.c_contiguous) == ((3, 3), dtype, True)
    for size in SIZES:
        x = (rng.normal(1, 2, (2, 3, size)) * 10.0 ** rng.integers(-3, 4)).astype(dtype)
        before, out = x.copy(), np.full_like(x, 7)
        wanted = fastbn.batch_norm(x, mean, var, weight, bias, eps=1e-3)
        rows(x, terms, out)
        same_bits(out, wanted, size)
        np.testing.assert_array_equal(x, before)
        rows(x, terms, x)  # in place
        same_bits(x, wanted, size)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_more_dimensions(dtype, rng):
    mean, var, weight, bias = vectors_of(rng, 3, dtype)
    terms = normalizing_terms(mean, var, weight, bias, dtype=dtype)
    x = rng.normal(1, 2, (4, 3, 5, 7)).astype(dtype)
    out = np.empty_like(x)
    wanted = fastbn.batch_norm(x, mean, var, weight, bias)
    for function in (rows, rows_in_parallel, rows_fast):
        out[...] = 7
        function(x, terms, out)
        same_bits(out, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_slices_that_begin_anywhere(dtype, rng):
    """Not where a vector of memory begins; and nothing beside the row is written."""
    mean, var, weight, bias = vectors_of(rng, 2, dtype)
    terms = normalizing_terms(mean, var, weight, bias, dtype=dtype)
    values = rng.normal(1, 2, 700).astype(dtype)
    wanted = fastbn.batch_norm(
        np.stack([values, values])[None], mean, var, weight, bias
    )[0, 1]  # fmt: skip
    for start in (0, 1, 3, 14):
        for to in (0, 1, 5):
            for size in (0, 1, 5, 16, 17, 300, 513):
                out = np.full(700, 7, dtype)
                some_row(values, start, size, terms, 1, out, to)
                same_bits(out[to : to + size], wanted[start : start + size], (start, to, size))
                assert (out[:to] == 7).all()
                assert (out[to + size :] == 7).all()


@pytest.mark.parametrize("size", [5, 16, 300])
def test_memory_that_is_not_aligned(size, rng):
    """Numba takes it for aligned, and so it must be right here."""
    mean, var, weight, bias = vectors_of(rng, 1, np.float32)
    terms = normalizing_terms(mean, var, weight, bias)
    x, out = (np.empty(4 * size + 1, np.uint8)[1:].view(np.float32) for _ in range(2))
    x[...] = rng.normal(1, 2, size)
    assert not x.flags.aligned
    some_row(x, 0, size, terms, 0, out, 0)
    same_bits(out, fastbn.batch_norm(x[None, None], mean, var, weight, bias)[0, 0])
    assert moments(x) == moments(x.copy())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 8, 15, 16, 17, 40, 100])
def test_lines_have_the_bits_of_an_evaluation(channels, dtype, rng):
    mean, var, weight, bias = vectors_of(rng, channels, dtype)
    terms = normalizing_terms(mean, var, weight, bias, dtype=dtype)
    x = rng.normal(1, 2, (6, channels)).astype(dtype)
    wanted, out = fastbn.batch_norm(x, mean, var, weight, bias), np.full_like(x, 7)
    lines(x, terms, out)
    same_bits(out, wanted)
    lines(x, terms, x)
    same_bits(x, wanted)


@pytest.mark.parametrize("function", [rows, rows_fast], ids=["plain", "fastmath"])
def test_values_that_are_not_finite(function, rng):
    """The caller's fastmath does not reach in: NaN and infinity go where they belong."""
    x = rng.normal(size=(1, 2, 40)).astype(np.float32)
    x[0, 0, [0, 17, 39]] = np.nan, np.inf, -np.inf
    x[0, 1, :3] = 1e38, -1e38, 1e-40
    mean, var = np.array([1e4, np.nan]), np.array([1e-8, 1])
    out = np.empty_like(x)
    function(x, normalizing_terms(mean, var), out)
    with np.errstate(all="ignore"):
        same_bits(out, fastbn.batch_norm(x, mean, var))


def test_terms_of_mixed_dtypes_have_the_bits_too(rng):
    """Parameters of float64 are rounded to x's float32, running statistics are not."""
    x = rng.normal(100, 2, (2, 3, 50)).astype(np.float32)
    for kinds in ([np.float64] * 4, [np.float32, np.float64, np.float64, np.float32],
                  [np.float64, np.float64, np.float16, np.float16]):  # fmt: skip
        vectors = [v.astype(k) for v, k in zip(vectors_of(rng, 3, float), kinds, strict=True)]
        vectors[0] += 100
        before = [v.copy() for v in vectors]
        out = np.empty_like(x)
        rows(x, normalizing_terms(*vectors), out)
        same_bits(out, fastbn.batch_norm(x, *vectors))
        for vector, was in zip(vectors, before, strict=True):
            np.testing.assert_array_equal(vector, was)


def test_rows_are_right(rng):
    """Not only as fastbn has them."""
    mean, var, weight, bias = vectors_of(rng, 3, np.float64)
    x = rng.normal(1, 2, (4, 3, 50))
    out = np.empty_like(x)
    rows(x, normalizing_terms(mean, var, weight, bias, 1e-5, float), out)
    along = (1, 3, 1)
    wanted = (x - mean.reshape(along)) / np.sqrt(var + 1e-5).reshape(along)
    wanted = wanted * weight.reshape(along) + bias.reshape(along)
    np.testing.assert_allclose(out, wanted, rtol=1e-12, atol=1e-12)


# --- moments --------------------------------------------------------------------------------------

HARD = {
    "normal": lambda rng, n: rng.normal(3, 2, n),
    "far": lambda rng, n: rng.normal(1e4, 1, n),
    "constant": lambda rng, n: np.full(n, 1.1),
    "outlier": lambda rng, n: np.where(np.arange(n) == n // 3, 1e19, rng.normal(size=n)),
    "huge": lambda rng, n: rng.normal(0, 1e25, n),
    "tiny": lambda rng, n: rng.normal(0, 1e-25, n),
    "infinity": lambda rng, n: np.where(np.arange(n) == n // 2, np.inf, 1.0),
    "NaN": lambda rng, n: np.where(np.arange(n) == n - 1, np.nan, 1.0),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hard", HARD)
def test_moments_have_the_bits_of_channel_stats(hard, dtype, rng):
    for size in (1, 2, 16, 17, 63, 64, 65, 1000, 4096, 5003, *(() if PLAIN else (300_001,))):
        row = HARD[hard](rng, size).astype(dtype)
        stats = fastbn.channel_stats(row.reshape(1, 1, -1))
        got = moments(row)
        assert all(type(each) is float for each in got)
        assert got[0] == size
        same_bits(np.array(got[1:]), np.array([stats.mean[0], stats.m2[0]]), size)


def test_moments_are_accurate(rng):
    row = rng.normal(1e4, 1, 20_000).astype(np.float32)
    count, mean, m2 = moments(row)
    exact = row.astype(np.longdouble)
    assert count == row.size
    np.testing.assert_allclose(mean, float(exact.mean()), rtol=1e-7)
    np.testing.assert_allclose(m2 / count, float(exact.var()), rtol=1e-5)


def test_moments_of_nothing_and_of_more_dimensions(rng):
    assert moments(np.empty(0, np.float32)) == (0.0, 0.0, 0.0)
    x = rng.normal(size=(5, 6, 7)).astype(np.float32)
    assert moments(x) == moments(x.reshape(-1))


def test_moments_of_channels(rng):
    x = rng.normal(3, 2, (6, 4, 50)).astype(np.float32)
    found = channel_moments(x)
    _, mean, var = reference.forward(x, np.ones(4), np.zeros(4), 1e-5, 1)
    np.testing.assert_array_equal(found[:, 0], 300)
    np.testing.assert_allclose(found[:, 1], mean.astype(float), rtol=1e-6)
    np.testing.assert_allclose(found[:, 2] / 300, var.astype(float), rtol=1e-5)


def test_merge(rng):
    a, b = rng.normal(3, 2, 20), rng.normal(-1, 5, 7)
    both = np.concatenate([a, b])
    parts = [(len(v), v.mean(), ((v - v.mean()) ** 2).sum()) for v in (a, b)]
    got = merge_moments(*parts[0], *parts[1])
    wanted = len(both), both.mean(), ((both - both.mean()) ** 2).sum()
    np.testing.assert_allclose(got, wanted, rtol=1e-13)
    assert merge_moments(0, 0.0, 0.0, 0, 0.0, 0.0) == (0.0, 0.0, 0.0)
    assert merge_moments(0, 0.0, 0.0, *parts[1]) == parts[1]
    assert merge_moments(*parts[0], 0, 0.0, 0.0) == parts[0]
    assert merge_moments(1, np.inf, np.nan, 1, 0.0, 0.0)[1] == np.inf
    stats = [fastbn.ChannelStats(*(np.array([float(e)]) for e in part)) for part in parts]
    merged = stats[0].merge(stats[1])
    np.testing.assert_allclose(got, [merged.count[0], merged.mean[0], merged.m2[0]], rtol=1e-14)


# --- refused --------------------------------------------------------------------------------------

F4 = np.ones(4, np.float32)
T4 = np.ones((3, 4), np.float32)
READ_ONLY = F4.copy()
READ_ONLY.flags.writeable = False

WRONG_TYPES = {
    "a list": (([1.0, 2.0], T4, 0, F4), r"row must be an array"),
    "integers": ((np.ones(4, int), T4, 0, F4), r"row must be of float32 or float64, got int64"),
    "16 bits": ((F4.astype(np.int16), T4, 0, F4), r"row must be of float32 .*astype"),
    "other terms": ((F4, T4.astype(float), 0, F4), r"dtype=np\.float32"),
    "terms of one row": ((F4, F4, 0, F4), r"terms must have 2 dimensions"),
    "a float channel": ((F4, T4, 0.0, F4), r"channel must be an integer"),
    "a slice": ((np.ones(8, np.float32)[::2], T4, 0, F4), r"row must be C-contiguous"),
    "out of another dtype": ((F4, T4, 0, F4.astype(float)), r"out is of float64"),
    "out of more dimensions": ((F4, T4, 0, F4[None].copy()), r"out must have 1 dim"),
    "read-only out": ((F4, T4, 0, READ_ONLY), r"out is read-only"),
}


@pytest.mark.parametrize("wrong", WRONG_TYPES)
def test_wrong_types_are_a_type_error(wrong):
    arguments, message = WRONG_TYPES[wrong]
    with pytest.raises(TypeError, match=message):
        batch_norm_row(*arguments)
    if wrong == "a list":  # which Numba itself warns of
        return

    @numba.njit
    def function(row, terms, channel, out):
        batch_norm_row(row, terms, channel, out)

    with pytest.raises((numba.core.errors.TypingError, TypeError), match=message):
        function(*arguments)


def test_read_only_rows_and_terms_are_read():
    out = F4.copy()
    terms = T4.copy()
    terms.flags.writeable = False
    batch_norm_row(READ_ONLY, terms, 3, out)
    np.testing.assert_array_equal(out, 1)


def test_wrong_shapes_are_a_value_error():
    out, buffer = np.zeros(4, np.float32), np.zeros(8, np.float32)
    for arguments, error, message in (
        ((F4, T4, 4, out), IndexError, "channel is out"),
        ((F4, T4, -1, out), IndexError, "channel is out"),
        ((F4, T4[:2].copy(), 0, out), ValueError, "terms must have 3 rows"),
        ((F4, T4, 0, out[:3]), ValueError, "same shape"),
        ((buffer[:4], T4, 0, buffer[2:6]), ValueError, "overlaps"),
        ((buffer[2:6], T4, 0, buffer[:4]), ValueError, "overlaps"),
    ):
        with pytest.raises(error, match=message):
            batch_norm_row(*arguments)
    for arguments, message in (
        ((F4[:3], T4, out[:3]), "as many values as terms"),
        ((F4, T4, out[:3]), "same size"),
        ((F4, T4[:2].copy(), out), "terms must have 3 rows"),
        ((buffer[:4], T4, buffer[1:5]), "overlaps"),
    ):
        with pytest.raises(ValueError, match=message):
            batch_norm_line(*arguments)
    np.testing.assert_array_equal(out, 0)
    np.testing.assert_array_equal(buffer, 0)


def test_terms_that_cannot_be():
    good = np.ones(3)
    for arguments, error, message in (
        ((good, np.ones(2)), ValueError, "running_var has length 2"),
        ((good, None), ValueError, "running_var"),
        ((np.ones((3, 1)), good), ValueError, r"shape \(C,\)"),
        ((good.astype(np.float16), good), TypeError, "running_mean must be float32 or float64"),
        ((good, good, np.ones(3, int)), TypeError, "weight must be float32"),
        (([1.0], good), TypeError, "running_mean must be a numpy"),
        ((good, good, None, None, -1.0), ValueError, "eps"),
        ((good, good, None, None, 1e-5, np.float16), TypeError, "dtype must be float32 or float64"),
        ((good, good, None, None, 1e-5, "x"), TypeError, "dtype must be float32 or float64"),
        ((good * [1, 1e38, 1], good), ValueError, "terms of channel 1"),
        ((good, good * [1, 1, 1e31]), ValueError, "terms of channel 2"),
        ((good, good, good * [1e-35, 1, 1]), ValueError, "terms of channel 0.*float64 rows"),
    ):
        with pytest.raises(error, match=message):
            normalizing_terms(*arguments)


def test_float64_rows_hold_what_float32_cannot(rng):
    mean, var = np.array([1e38, 0.0]), np.array([1.0, 1e31])
    x = rng.normal(size=(1, 2, 20)) * 1e16 + mean[:, None]
    out = np.empty_like(x)
    rows(x, normalizing_terms(mean, var, dtype=float), out)
    same_bits(out, fastbn.batch_norm(x, mean, var))


# --- around ---------------------------------------------------------------------------------------


def test_threads_that_release_the_gil(rng):
    mean, var, weight, bias = vectors_of(rng, 3, np.float32)
    terms = normalizing_terms(mean, var, weight, bias)
    x = rng.normal(1, 2, (4, 3, 500)).astype(np.float32)
    wanted, outs = fastbn.batch_norm(x, mean, var, weight, bias), [np.empty_like(x) for _ in "abcd"]

    @numba.njit(nogil=True)
    def work(x, terms, out):
        for n in range(x.shape[0]):
            for c in range(x.shape[1]):
                batch_norm_row(x[n, c], terms, c, out[n, c])

    threads = [threading.Thread(target=work, args=(x, terms, out)) for out in outs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for out in outs:
        same_bits(out, wanted)


def run(code, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, *arguments, "-c", code], capture_output=True, text=True, check=False,
        env={**os.environ, **environment}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_it_is_not_imported_with_fastbn():
    code = (
        "import sys, fastbn; print({'fastbn.njit', 'fastbn.kernels.user_code'} & set(sys.modules))"
    )
    assert run(code) == "set()"


USERS = """
import numba, numpy as np
from fastbn.njit import batch_norm_row, merge_moments, row_moments

@numba.njit(cache=True)
def work(x, terms, out):
    count = mean = m2 = 0.0
    for c in range(x.shape[0]):
        batch_norm_row(x[c], terms, c, out[c])
        count, mean, m2 = merge_moments(count, mean, m2, *row_moments(x[c]))
    return mean
"""


@pytest.mark.compiled
def test_the_cache_of_numba_keeps_users_code(tmp_path):
    """In a second process nothing is compiled, and what was kept gives the same."""
    (tmp_path / "users.py").write_text(USERS)
    code = (
        "import numpy as np, users; x = np.arange(60, dtype='f4').reshape(2, 30);"
        "out = np.empty_like(x); mean = users.work(x, np.ones((3, 2), 'f4'), out);"
        "print(sum(users.work.stats.cache_hits.values()), mean, out.sum())"
    )
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    answers = [
        run(code, PYTHONPATH=paths, NUMBA_CACHE_DIR=str(tmp_path / "cache")) for _ in range(2)
    ]
    assert answers == ["0 29.5 1770.0", "1 29.5 1770.0"]


@pytest.mark.compiled
def test_fastmath_of_users_does_not_get_into_fastbn():
    """Numba hands flags down to what is called, and inner functions are compiled once a process.

    With them, fastbn's own kernels would no longer see infinities.
    """
    code = """
import re, numba, numpy as np
from fastbn.njit import row_moments
from fastbn.kernels import compile
moments = numba.njit(fastmath=True)(lambda row: row_moments(row)[0])
moments(np.ones(30, np.float32))
made = [r.library.get_llvm_str() for _, d in compile._functions.values()
        for r in d.overloads.values()]
print(len(made) > 20, sum(bool(re.search(" = f[a-z]+ (fast|nnan)", text)) for text in made))
"""
    assert run(code) == "True 0"
