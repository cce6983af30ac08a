"""Everything private that tests touch. Tests themselves name no private module.

When a module moves or a field is renamed, this file changes and no test does. What is private of
calls on a device is in `internals_device`, of formulas in `internals_formulas`.
"""

import contextlib
import threading
import time

import numba
import numpy as np

from fastbn._call import (
    backend,
    blocks,
    exact,
    known,
    known_rows,
    masked,
    plan,
    prepared,
    row_plan,
    rows,
    work,
)
from fastbn._call import pieces as _pieces
from fastbn._call import views as _views
from fastbn._system import outputs, oversubscription, processor, progress, threads
from fastbn.checkpoint import terms as _terms
from fastbn.kernels import disk_cache, parts
from fastbn.kernels.frame import DTYPE

#: Modules whose own behaviour is under test, under names that will last.
pool = outputs
progress_bars = progress
thread_limits = threads
waited = oversubscription._waited

flat = _views.flat
PIECE = _pieces.PIECE


def describe_norms(monkeypatch, norms):
    """As if each file described these batch norms."""
    monkeypatch.setattr(_terms, "norms_of", lambda checkpoint: norms)


# --- plans ------------------------------------------------------------------------------------


def forget_plans():
    """Every call from now on is the first of its kind; what is compiled stays so."""
    plan.walk_of.cache_clear()
    row_plan.row_plan.cache_clear()
    work._walk_of_groups.cache_clear()
    work._walk_of_channels.cache_clear()
    known.forget()
    known_rows.forget()


def set_limits(
    monkeypatch, *, parallel_bytes=None, tile_bytes=None, tile_share=None, cache_bytes=None,
    shared_rows=None,
):  # fmt: skip
    """Change what plans are made from, and forget those that were made before."""
    for name, value in {
        "PARALLEL_BYTES": parallel_bytes,
        "TILE_BYTES": tile_bytes,
        "TILE_SHARE": tile_share,
        "SHARED_ROWS": shared_rows,
    }.items():
        if value is not None:
            monkeypatch.setattr(plan, name, value)
    if cache_bytes is not None:
        monkeypatch.setattr(processor, "last_level_cache", lambda: cache_bytes)
    forget_plans()


def without_float16(monkeypatch):
    """As if the processor could not convert float16."""
    monkeypatch.setattr(plan, "CONVERTS_FLOAT16", False)
    forget_plans()


class Made:
    """What plans have been made of since: ``(tiles, threads, streaming)`` of each frame."""

    def __init__(self, monkeypatch):
        self.frames = []
        original = parts.addresses

        def addresses(operation, layout, dtype, threads, tiles, streaming, with_wide):
            self.frames.append((bool(tiles), bool(threads), bool(streaming)))
            return original(operation, layout, dtype, threads, tiles, streaming, with_wide)

        monkeypatch.setattr(parts, "addresses", addresses)

    def tiles(self):
        return any(tiles for tiles, _, _ in self.frames)

    def threads(self):
        return any(threads for _, threads, _ in self.frames)

    def streaming(self):
        return any(streaming for _, _, streaming in self.frames)


def layout(x, axis):
    """How kernels walk ``x``: "first", "last", or None where they cannot."""
    found = work.walked(axis, x)
    return found and found.walk.layout


def flat_view(x, axis):
    """The view of ``x`` that a kernel gets."""
    (view,) = work.walked(axis, x).views
    return view


def can_be_walked(shape, itemsize, axis, *strides):
    return plan.walk_of(shape, itemsize, axis, strides) is not None


# --- calls like one before --------------------------------------------------------------------


def prepared_evaluate(*call):
    """What goes straight to the kernel, or None."""
    return prepared.evaluate(*call, None, 0.01, None)


def remembered_evaluations():
    return len(known.known["normalize"])


def remember_at_most(monkeypatch, number):
    monkeypatch.setattr(known, "MOST", number)


def count_numpy_calls(patch, count):
    """Let ``count(function)`` stand for each NumPy function that makes or fills an array."""
    for name in ("empty", "empty_like", "zeros", "zeros_like", "full", "array", "copyto"):
        patch.setattr(np, name, count(getattr(np, name)))
    patch.setattr(prepared, "empty", np.empty)


# --- how work is cut --------------------------------------------------------------------------


def tasks_of_sums(rows, channels, length):
    """Tasks that sums of an array with channels first are cut into, at least, by any operation."""
    dtype = np.dtype(np.float32)
    strides = tuple(4 * n for n in (channels * length, length, 1))
    found = []
    for operation in ("forward", "backward", "moments"):
        arrays = len(parts.OPERATIONS[operation].arrays)
        walk = plan.walk_of((rows, channels, length), 4, 1, (strides,) * arrays)
        frame = walk.plan(operation, dtype).frame(2, False)
        found.append(int(frame.view(DTYPE)["reduce_tasks"][0]))
    return min(found)


# --- threads ----------------------------------------------------------------------------------


def default_threads():
    """The number of threads by default, worked out anew."""
    threads._in_environment.cache_clear()
    try:
        return threads._default.__wrapped__()
    finally:
        threads._in_environment.cache_clear()


cgroup_quota = threads._cgroup_quota


def pretend_machine(monkeypatch, *, numba_threads=None, quota=...):
    """Limits of the machine that `default_threads` takes into account."""
    if numba_threads is not None:
        monkeypatch.setattr(threads, "_numba_threads", lambda: numba_threads)
    if quota is not ...:
        monkeypatch.setattr(threads, "_cgroup_quota", lambda: quota)


class Processors:
    """Stands for the clock, and for how long Linux says that the thread has waited."""

    def __init__(self, monkeypatch):
        self.seconds, self.waited = 1000.0, 0.0
        monkeypatch.setattr(oversubscription, "_waited", lambda: self.waited)
        monkeypatch.setattr(oversubscription, "monotonic", lambda: self.seconds)
        self.verdict = oversubscription.Verdict()
        monkeypatch.setattr(threads, "oversubscribed", self.verdict.oversubscribed)
        monkeypatch.setattr(threads, "_requested", None)  # nobody has set a number
        monkeypatch.setattr(threads, "_in_environment", lambda: None)
        monkeypatch.setattr(threads, "_default", lambda: 4)

    def pass_by(self, seconds, waiting):
        """Time in which the thread waits for that part of it; it calls every twentieth second."""
        for _ in range(round(seconds / 0.05)):
            self.seconds += 0.05
            self.waited += 0.05 * waiting
            threads.for_a_call()

    @property
    def threads(self):
        """How many threads a large call takes now."""
        return threads.for_a_call()


@contextlib.contextmanager
def threads_put_back():
    """The number of threads is afterwards as it was, also if nobody had set it."""
    before = threads._requested
    try:
        yield
    finally:
        threads._requested = before


def nobody_runs_on_threads():
    """Whether a call of another thread may run on several threads now."""
    found = []

    def ask():
        free = threads._region.acquire(blocking=False)
        if free:
            threads._region.release()
        found.append(free)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return found == [True]


class Granted:
    """Numbers of threads that calls were granted since, with Numba's own number in force."""

    def __init__(self, monkeypatch):
        self.numbers = []
        original = threads.launch

        def launch(entry, *args):
            def counted(*arguments):
                own = threads._region._is_owned()
                self.numbers.append(numba.get_num_threads() if own else 1)
                return entry(*arguments)

            return original(counted, *args)

        monkeypatch.setattr(threads, "launch", launch)


def write_frames_slowly(monkeypatch):
    """Let some time pass between any two fields that are added to what native code is told."""
    original = plan.set_fields

    def set_fields(frame, values):
        for name, value in values.items():
            original(frame, {name: value})
            time.sleep(0.01)

    monkeypatch.setattr(plan, "set_fields", set_fields)


# --- native code ------------------------------------------------------------------------------


class Native:
    """What native code has been compiled, and what loaded from the disk cache, since.

    Names of parts and entries, each as often as it came. What is found on disk and does not load
    is compiled.
    """

    def __init__(self, begun=lambda: None):
        """``begun`` is called before anything is loaded or compiled."""
        self._found, self._saved = [], []
        load, save = disk_cache.load, disk_cache.save

        def counted_load(name, digest):
            begun()
            content = load(name, digest)
            if content is not None:
                self._found.append((name, digest))
            return content

        def counted_save(name, digest, content):
            self._saved.append((name, digest))
            return save(name, digest, content)

        disk_cache.load, disk_cache.save = counted_load, counted_save

    @property
    def compiled(self):
        return sorted(name for name, _ in self._saved)

    @property
    def loaded(self):
        saved = set(self._saved)
        return sorted(name for name, digest in self._found if (name, digest) not in saved)

    @property
    def wide(self):
        """Parts that work in float64 for channels that float32 cannot hold."""
        return [name for name in self.compiled + self.loaded if "wide" in name]

    @property
    def all(self):
        """Every piece, by name and digest."""
        return {*self._found, *self._saved}


class Broken:
    """What a damaged file may hold: it pickles, and does not load."""

    def __reduce__(self):
        return _refuse, ()


def _refuse():
    raise RuntimeError("does not load")


def overwrite_cached(path, content):
    """Give a file of the cache another content, and the checksum that belongs to it."""
    name, digest, _ = path.name.split(".")
    before, folders = path.read_bytes(), disk_cache._folders
    disk_cache._folders = lambda: [path.parent]
    try:
        disk_cache.save(name, digest, content)
    finally:
        disk_cache._folders = folders
    assert path.read_bytes() != before


# --- layers -----------------------------------------------------------------------------------


def attributes(layer):
    """Names of all attributes that a layer may have, private ones included."""
    return [name for cls in type(layer).__mro__ for name in cls.__dict__.get("__slots__", ())]


# --- the long way, and pieces ---------------------------------------------------------------


class LongWay(Exception):
    """A call was not like one before."""


def refuse_long_ways(monkeypatch):
    """Let every call raise that does not go as one before did."""

    def refuse(*arguments):
        raise LongWay

    monkeypatch.setattr(backend, "forward", refuse)
    monkeypatch.setattr(backend, "backward", refuse)


def small_pieces(monkeypatch):
    """Let masked values be summed in pieces of few."""
    monkeypatch.setattr(masked, "PIECE", 500)


def small_copies(monkeypatch):
    """Let what is copied to be summed be copied in pieces of few values."""
    small_pieces(monkeypatch)
    monkeypatch.setattr(_pieces, "PIECE", 500)


def sum_at_most(monkeypatch, number):
    """Let a call sum so many integers of a channel."""
    monkeypatch.setattr(exact, "MOST", number)


def count_launches(monkeypatch):
    """A list that gets longer with each call of a kernel that sums integers."""
    calls, launch = [], exact.launch

    def counted(*arguments):
        calls.append(arguments)
        return launch(*arguments)

    monkeypatch.setattr(exact, "launch", counted)
    return calls


# --- norms of samples -------------------------------------------------------------------------


def refuse_checks_of_rows(monkeypatch):
    """Layer and RMS norms are like one before, or fail."""

    def check(*arguments):
        raise AssertionError("a call goes the long way")

    monkeypatch.setattr(rows.RowNorm, "_check", check)
    monkeypatch.setattr(rows, "checked_gradient", check)


def refuse_float64_rows(monkeypatch):
    """Rows of layer and RMS norms are done in x's precision, or fail."""

    def pieces(left, columns):
        raise AssertionError(f"rows are done again in float64: {left}")

    monkeypatch.setattr(rows, "_pieces", pieces)


def refuse_copies(monkeypatch):
    """Norms of samples go over arrays as they are, or fail."""

    def blocks_of(*arguments):
        raise AssertionError("an array is to be copied")

    monkeypatch.setattr(rows, "blocks", blocks_of)


def small_blocks(monkeypatch):
    """Let samples go in blocks of few bytes."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 4096)
    monkeypatch.setattr(blocks.processor, "last_level_cache", lambda: 1 << 20)
    monkeypatch.setattr(blocks, "CACHE_SHARE", 1 << 8)
