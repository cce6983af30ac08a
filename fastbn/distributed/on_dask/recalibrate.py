"""Running statistics taken anew from batches that Dask holds."""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, overload

from fastbn.distributed.on_dask.arrays import library, on_one_thread
from fastbn.layers.base import BatchNorm
from fastbn.recalibrate import (
    Measured,
    checked_forward,
    checked_layers,
    measure_all,
    watching,
)
from fastbn.stats import ChannelStats

__all__ = ["recalibrate"]

#: Layers that a batch came to and that have no new statistics yet, in order; with the statistics of
#: what it fed to those that are measured.
_Calls = list[tuple[int, ChannelStats | None]]


@overload
def recalibrate(
    layer: BatchNorm, batches: Any, *, forward: Callable[[Any], Any] | None = None
) -> ChannelStats: ...


@overload
def recalibrate(
    layer: Sequence[BatchNorm], batches: Any, *, forward: Callable[[Any], Any] | None = None
) -> list[ChannelStats]: ...


def recalibrate(
    layer: BatchNorm | Sequence[BatchNorm],
    batches: Any,
    *,
    forward: Callable[[Any], Any] | None = None,
) -> ChannelStats | list[ChannelStats]:
    """`fastbn.recalibrate` over batches of Dask's: workers run the network and take statistics.

    Each batch becomes the statistics of what it feeds to the layer, on the worker that has it.
    These are merged here in the order of the batches, so that the result is, bit for bit, that of
    `fastbn.recalibrate` on the same batches (where they are contiguous, as all are that were sent
    to a process). Several layers take a pass each, as there.

    Parameters
    ----------
    layer : BatchNorm or BatchRenorm layer, or a list of them
        As `fastbn.recalibrate` has it.
    batches : dask.bag.Bag, or list of Delayed
        Each element is a batch: an input of the layer, or whatever ``forward`` takes. Of an array
        whose chunks are batches: ``x.to_delayed().ravel().tolist()``.
    forward : callable, optional
        Takes a batch and runs the network, which calls the layers. Workers get a copy of it and of
        the layers, pickled together: it has to hold the layers, as a function of a script or
        notebook does, or a method of the network. That of an imported module which finds the
        layers in that module would call others.

    Returns
    -------
    ChannelStats, or a list of them
        What was measured, for each layer.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `fastbn.recalibrate`; no layer has changed then.

    Notes
    -----
    A bag takes Dask's scheduler of processes where there is no client, which in a script needs
    ``if __name__ == "__main__":``; ``with dask.config.set(scheduler="threads")`` takes threads.

    Examples
    --------
    >>> import dask, fastbn, numpy as np
    >>> from fastbn.distributed import on_dask
    >>> def read(k):
    ...     return np.random.default_rng(k).normal(3, 2, (50, 2)).astype(np.float32)
    >>> bn, same = fastbn.BatchNorm1d(2), fastbn.BatchNorm1d(2)
    >>> stats = on_dask.recalibrate(bn, [dask.delayed(read)(k) for k in range(4)])
    >>> _ = fastbn.recalibrate(same, [read(k) for k in range(4)])
    >>> np.array_equal(bn.running_mean, same.running_mean), stats.count
    (True, array([200., 200.]))
    """
    layers, single = checked_layers(layer)
    forward = checked_forward(forward, layers)
    over = _checked_batches(batches)
    measured = Measured(layers)
    network = library("cloudpickle").dumps((layers, forward))

    def begin() -> Iterable[_Calls]:
        return over(partial(_calls_of, known=_known(measured)), network)

    def replay(calls: _Calls) -> None:
        for number, stats in calls:
            measured.called(number, partial(_given, stats))

    watch, unwatch = watching(layers, _refuse)  # nobody else may recalibrate them meanwhile
    try:
        deque(watch, maxlen=0)
        measure_all(measured, begin, replay, progress=False)
    finally:
        deque(unwatch, maxlen=0)
    found = measured.store()
    return found[0] if single else found


def _known(measured: Measured) -> tuple[Any, ...]:
    """What a worker has to know: the layer to be measured, those that are, what normalizes."""
    return measured.now, frozenset(measured.found), measured.running


def _refuse(number: int, *given: Any) -> Any:
    raise RuntimeError("a layer was called here while it is being recalibrated on workers")


def _given(stats: ChannelStats | None) -> ChannelStats:
    assert stats is not None
    return stats


def _calls_of(batch: Any, network: bytes, known: tuple[Any, ...]) -> _Calls:
    """Run a batch through a copy of the network, on a worker."""
    layers, forward = pickle.loads(network)
    now, found, running = known
    calls: _Calls = []

    def see(number: int, x: Any, axis: int, mask: Any) -> tuple[Any, Any]:
        if number not in found:
            wanted = now is None or number == now
            stats = ChannelStats.from_array(x, axis, mask=mask) if wanted else None
            calls.append((number, stats))
        return running[number]

    deque(watching(layers, see)[0], maxlen=0)
    on_one_thread(forward, batch)
    return calls


def _checked_batches(batches: Any) -> Callable[[Callable[..., _Calls], bytes], Iterable[_Calls]]:
    """What calls a function with each batch and the network, and returns the answers in order."""
    dask = library("dask")
    if isinstance(batches, library("dask.bag").Bag):
        return lambda call, network: batches.map(call, network=dask.delayed(network)).compute()
    if isinstance(batches, (list, tuple)):
        for each in batches:
            if not hasattr(each, "dask") and not hasattr(each, "client"):  # or a client's future
                raise TypeError(
                    "batches must be a bag or a list of Delayed, got a list with "
                    f"{type(each).__name__}; fastbn.recalibrate takes batches that are there"
                )
        task = dask.delayed

        def compute(call: Callable[..., _Calls], network: bytes) -> Iterable[_Calls]:
            shared = task(network)
            return list(dask.compute(*(task(call)(each, shared) for each in batches)))

        return compute
    if hasattr(batches, "to_delayed") and hasattr(batches, "chunks"):
        raise TypeError(
            "batches must be a bag or a list of Delayed, got an array; where its chunks are "
            "batches, pass x.to_delayed().ravel().tolist()"
        )
    raise TypeError(
        f"batches must be a dask.bag.Bag or a list of Delayed, got {type(batches).__name__}"
    )
