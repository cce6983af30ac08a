"""Running statistics taken anew, from all of the data at once: "precise BN"."""

from __future__ import annotations  # so that `help` shows types as they are written here

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import closing
from functools import partial
from itertools import count, repeat
from typing import Any, overload

from fastbn._call.settings import check_bool
from fastbn._system.progress import track
from fastbn.layers.base import BatchNorm
from fastbn.layers.measured import Measured
from fastbn.layers.state import LayerState
from fastbn.stats import ChannelStats

__all__ = ["recalibrate"]

#: Batches, or what begins a pass over them.
Batches = Iterable[Any] | Callable[[], Iterable[Any]]

_watch = vars(BatchNorm)["_watch"].__set__


@overload
def recalibrate(
    layer: BatchNorm,
    batches: Batches,
    *,
    forward: Callable[[Any], Any] | None = None,
    progress: bool = True,
) -> ChannelStats: ...


@overload
def recalibrate(
    layer: Sequence[BatchNorm],
    batches: Batches,
    *,
    forward: Callable[[Any], Any] | None = None,
    progress: bool = True,
) -> list[ChannelStats]: ...


def recalibrate(
    layer: BatchNorm | Sequence[BatchNorm],
    batches: Batches,
    *,
    forward: Callable[[Any], Any] | None = None,
    progress: bool = True,
) -> ChannelStats | list[ChannelStats]:
    """Take a layer's running statistics anew: those of all that the batches hold.

    What training leaves behind is an average over the last few batches, taken while the network
    was still changing. This sets ``running_mean`` to the mean of all values of a channel and
    ``running_var`` to their **unbiased** variance ``m2 / (count - 1)``, as of one array that holds
    all batches. The statistics of the batches are merged (`ChannelStats.merge`), so their sizes
    and order do not matter. (Averages over batches, as of torch's ``update_bn``, lack the variance
    between the batches' means, and give a smaller last batch the weight of a full one.)

    **Several layers** are measured one after the other, in the order in which ``forward`` comes to
    them, whatever their order in ``layer``: what goes into the second depends on the statistics of
    the first. So with n layers there are **n passes** over the batches; while one is measured,
    those before it evaluate with their new statistics. That is exact: each layer gets the
    statistics of what evaluation will feed it. Where the first batches bypass a layer, its place
    shows in a later one: then a pass begins anew.

    Parameters
    ----------
    layer : BatchNorm or BatchRenorm layer, or a list of them
        In any mode, frozen too; it stays in that mode. Its parameters do not change.
    batches : iterable, or callable that returns one
        Of inputs of the layer, or of whatever ``forward`` takes. A generator can be read once, so
        it does for one layer. For several pass a list, or a function that begins anew:
        ``lambda: read(path)``. Empty batches count for nothing.
    forward : callable, optional
        Takes a batch and runs the network, which calls the layers. What it returns is ignored.
        Needed for several layers. During it these layers evaluate, as after ``eval()``. All else
        in the network is yours to set: dropout, and norms that are not in ``layer``, which learn
        if they are in training mode. A ``mask`` in the call of a layer is honoured.
    progress : bool
        A bar on stderr, where it is known how many batches there are.

    Returns
    -------
    ChannelStats, or a list of them
        What was measured, in float64, for each layer; for several, in the order of ``layer``.

    Raises
    ------
    TypeError
        If an argument is not of these kinds; a single array as ``batches``, which would be read
        sample by sample; a generator for several layers.
    ValueError
        If there are no batches, no second value of a channel, values that are NaN or infinite
        (batches with such are passed over by a layer with ``on_nonfinite="skip"``), or a layer that
        has no running statistics or that ``forward`` does not call. If there is another number of
        batches in a later pass, or ``forward`` comes to two layers in one order and in the other.
    RuntimeError
        If a layer is being recalibrated already.

    Whatever is raised, Ctrl-C and errors of ``forward`` too, **no layer has changed**: statistics
    are stored at the end, those of all layers at once.

    Notes
    -----
    ``num_batches_tracked`` becomes the number of batches that were measured, so that a layer with
    ``momentum=None`` goes on averaging from there. That of batch renormalization is the step of its
    schedule, and stays. Like loading, this forgets the last training call. A layer that is called
    several times in one ``forward`` gets the statistics of all these inputs; where one of them
    depends on the layer's own output, that is computed with its old statistics. No other thread may
    call the layers meanwhile. float32 batches are summed as `ChannelStats.from_array` says.

    References
    ----------
    Wu & Johnson, 'Rethinking "Batch" in BatchNorm', 2021, section 3. Chan, Golub & LeVeque 1979.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> bn = fastbn.BatchNorm1d(1)
    >>> stats = fastbn.recalibrate(bn, [np.array([[1.0], [2.0]]), np.array([[6.0]])])
    >>> bn.running_mean, bn.running_var, int(bn.num_batches_tracked)
    (array([3.], dtype=float32), array([7.], dtype=float32), 2)

    Two layers, and the network around them:

    >>> first, second = fastbn.BatchNorm1d(2), fastbn.BatchNorm1d(2)
    >>> def network(x):
    ...     return second(np.maximum(first(x), 0) @ np.eye(2, dtype=np.float32))
    >>> data = np.random.default_rng(0).normal(3, 2, (4, 50, 2)).astype(np.float32)
    >>> _ = fastbn.recalibrate([first, second], list(data), forward=network)
    >>> y = np.concatenate([second.eval()(np.maximum(first.eval()(x), 0)) for x in data])
    >>> bool(abs(y.mean(0)).max() < 1e-6)
    True
    """
    layers, single = checked_layers(layer)
    forward = checked_forward(forward, layers)
    begin = _checked_batches(batches, len(layers))
    measured = Measured(layers)
    progress = check_bool("progress", progress)
    watch, unwatch = watching(layers, measured.see)
    try:
        deque(watch, maxlen=0)
        measure_all(measured, begin, forward, progress)
    finally:
        deque(unwatch, maxlen=0)  # one step of the interpreter, which no Ctrl-C divides
    found = measured.store()
    return found[0] if single else found


def watching(layers: list[BatchNorm], see: Any) -> tuple[Iterator[None], Iterator[None]]:
    """Let ``see(number, x, axis, mask)`` say what normalizes in each layer; and no longer.

    Nothing is done before one goes through the iterators.
    """
    return map(_watch, layers, map(partial, repeat(see), count())), map(
        _watch, layers, repeat(None)
    )


def measure_all(
    measured: Measured,
    begin: Callable[[], Iterable[Any]],
    forward: Callable[[Any], Any],
    progress: bool,
) -> None:
    """A pass over the batches for each layer, and what passes turned out to be in vain."""
    passes, total = len(measured.layers), None
    begun = 0
    for number in range(passes):
        label = "recalibrating" + (f", layer {number + 1} of {passes}" if passes > 1 else "")
        while True:
            items = begin()
            shown = len(items) if isinstance(items, Sized) else total  # else that of a whole pass
            begun += 1
            count = _pass(measured, items, forward, label, shown if progress else None)
            if measured.first is None:
                break
            measured.begin_anew(measured.first)
        _check_count(count, total, begun)
        measured.finish()
        total = count


def _pass(
    measured: Measured,
    items: Iterable[Any],
    forward: Callable[[Any], Any],
    label: str,
    total: int | None,
) -> int:
    """Batches of a pass, which ends early where it turns out to be in vain."""
    tracked = (item for item in items) if total is None else track(items, label, total)
    count = 0
    with closing(tracked):  # a bar is wiped at once, whatever is raised
        for item in tracked:
            measured.next_batch()
            forward(item)
            count += 1
            if measured.first is not None:
                break
    return count


def _check_count(count: int, before: int | None, passes: int) -> None:
    """Whether all passes went over the same batches, as far as their number tells."""
    again = "pass a list, or a function that begins anew; no layer was changed"
    if not count:
        text = f" in a second pass; {again}" if passes > 1 else "; no layer was changed"
        raise ValueError(f"batches gave nothing{text}")
    if before is not None and count != before:
        raise ValueError(
            f"batches gave {before} batches in one pass and {count} in a later one, and each layer "
            f"must be measured on the same data; {again}"
        )


# --- arguments ------------------------------------------------------------------------------------


def checked_layers(layer: Any) -> tuple[list[BatchNorm], bool]:
    """The layers, and whether there is one that was passed by itself."""
    single = isinstance(layer, LayerState)
    if not single and not isinstance(layer, (list, tuple)):
        way = "; pass list(layers.values())" if isinstance(layer, Mapping) else ""
        raise TypeError(
            f"layer must be a batch norm layer of fastbn or a list of them, got "
            f"{type(layer).__name__}{way}"
        )
    layers = [layer] if single else list(layer)
    if not layers:
        raise ValueError("layer is a list without layers")
    for each in layers:
        if not isinstance(each, BatchNorm):
            raise TypeError(
                f"layer must be BatchNorm or BatchRenorm layers of fastbn, got "
                f"{type(each).__name__}; other norms take the statistics of each sample"
            )
        if each.running_mean is None:
            raise ValueError(
                f"{each!r} has no running statistics: it takes those of each batch; make it with "
                "track_running_stats=True"
            )
        if each._watch is not None:
            raise RuntimeError(f"{each!r} is being recalibrated already")
    if len({id(each) for each in layers}) < len(layers):
        raise ValueError("layer has the same layer twice; it is enough to name it once")
    return layers, single


def checked_forward(forward: Any, layers: list[BatchNorm]) -> Callable[[Any], Any]:
    """What runs the network: a function, or the only layer."""
    if forward is None:
        if len(layers) > 1:
            raise TypeError(
                f"{len(layers)} layers need forward, a function that takes a batch and runs the "
                "network, which calls them: recalibrate(layers, batches, forward=network)"
            )
        return layers[0]
    if not callable(forward):
        raise TypeError(f"forward must be a function of a batch, got {type(forward).__name__}")
    return forward


def _checked_batches(batches: Any, passes: int) -> Callable[[], Iterable[Any]]:
    """What begins a pass over the batches."""
    if callable(batches) and not isinstance(batches, Iterable):
        return lambda: _checked_iterable(batches(), "batches()")
    _checked_iterable(batches, "batches")
    if passes > 1 and isinstance(batches, Iterator) and iter(batches) is batches:
        raise TypeError(
            f"{passes} layers take {passes} passes over the batches, and a "
            f"{type(batches).__name__} can be read once; pass a list, or a function that begins "
            "anew: lambda: read(path)"
        )
    return lambda: batches


def _checked_iterable(batches: Any, name: str) -> Iterable[Any]:
    if hasattr(batches, "shape"):
        raise TypeError(
            f"{name} must be an iterable of batches, got one array of shape "
            f"{tuple(batches.shape)}, which would be read sample by sample; pass [x]"
        )
    if not isinstance(batches, Iterable):
        raise TypeError(
            f"{name} must be an iterable of batches, got {type(batches).__name__}; or a function "
            "that returns one"
        )
    return batches
