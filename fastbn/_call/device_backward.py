"""Gradients of a call on an NVIDIA GPU: every check first, then the launches."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fastbn._call.device_arrays import (
    DeviceArray,
    described,
    empty_like,
    gpu_of,
    stream_of,
    vector_like,
    working_on,
)
from fastbn._call.device_launch import launcher, scratch, turn
from fastbn._call.device_streams import in_order
from fastbn._call.device_tensor import PARAMETERS, Tensor, absent, check_out, numbers, tensor_of
from fastbn._call.operations import ForwardCache
from fastbn.kernels.cuda.kernels import kernels_of
from fastbn.kernels.cuda.steps import PLAIN, Extra


@dataclass(slots=True, eq=False, repr=False)
class DeviceCache(ForwardCache):
    """With the stream that writes its statistics, weight and bias."""

    stream: int = 0


class _Given(NamedTuple):
    """Arrays of a call; the last two are None where there was no residual."""

    dy: DeviceArray
    x: DeviceArray
    dx: DeviceArray
    residual: DeviceArray | None
    #: Where the gradient in the residual goes.
    target: DeviceArray | None

    @property
    def all(self) -> list[DeviceArray]:
        """Those that there are."""
        return [array for array in self if array is not None]


def backward(dy: Any, cache: DeviceCache, out: Any) -> tuple[Any, ...]:
    """Gradients in x, weight and bias, and in the residual if there was one, on the device."""
    with working_on(gpu_of(cache.x)):
        given, returned = _checked(dy, cache, out)
        target = [] if given.target is None else [given.target]
        written = {array.stream for array in (given.dx, *target)} | {cache.stream}
        with in_order(given.x, *given.all, cached=cache.stream, written=written):
            d_weight, d_bias = _backward(given, cache)
        return returned, d_weight, d_bias, *(array.given for array in target)


def _checked(dy: Any, cache: DeviceCache, out: Any) -> tuple[_Given, Any]:
    x, gradient = described("x", cache.x), described("dy", dy)
    check_gradient(gradient, x, cache.overwritten)
    residual = None if cache.epilogue is None else cache.epilogue.epilogue.residual
    residual = None if residual is None else described("residual", residual)
    returned = empty_like(x) if out is None else out
    dx = described("out", returned)
    check_out(dx, x, gradient, *(() if residual is None else (residual,)))
    target = None if residual is None else described("residual", empty_like(x))
    return _Given(gradient, x, dx, residual, target), returned


def check_gradient(gradient: DeviceArray, x: DeviceArray, overwritten: bool) -> None:
    """Refuse a gradient that does not lie as x does, or that nothing is left to compute with."""
    if overwritten:
        raise RuntimeError(
            "the forward wrote its output over x (out=x) or over the residual, so there is nothing "
            "left to differentiate; run the forward with another out, or without one"
        )
    if (gradient.shape, gradient.dtype, gradient.order) != (x.shape, x.dtype, x.order):
        raise ValueError(
            f"dy has shape {gradient.shape}, dtype {gradient.dtype} and axes {gradient.order} in "
            f"memory, expected those of x: {x.shape}, {x.dtype} and {x.order}; copy it into "
            "an array that lies as x does: in torch, torch.empty_like(x).copy_(dy)"
        )


def _backward(given: _Given, cache: DeviceCache) -> tuple[Any, Any]:
    x = given.x
    extra, more = _through(given, cache)
    tensor = tensor_of(x, cache.axis, *(a for a in given.all if a is not x), reads=2, extra=extra)
    channels = tensor.cut.channels
    found = [vector_like(x, channels, tensor.parameters) for _ in range(2)]
    d_weight, d_bias = (described("d", vector).flat for vector in found)
    if 0 in x.shape:
        for vector in (d_weight, d_bias):
            vector.copy_to_device(np.zeros(channels, tensor.parameters), stream=stream_of(x))
    else:
        if given.target is not None and extra == PLAIN:
            # before dx, which may be written over dy
            given.target.flat.copy_to_device(given.dy.flat, stream=stream_of(x))
        _launch(tensor, given, cache, (d_weight, d_bias), more)
    return found[0], found[1]


def _through(given: _Given, cache: DeviceCache) -> tuple[Extra, tuple[Any, ...]]:
    """What dy goes through before it is the gradient of a plain call."""
    if cache.epilogue is None or cache.epilogue.epilogue.activation is None:
        return PLAIN, ()
    (activation, slope, _), bias, _ = cache.epilogue
    bias = absent(PARAMETERS[given.x.dtype]) if bias is None else bias
    extra, more = Extra(activation, given.residual is not None), (bias, slope)
    if given.residual is None or given.target is None:
        return extra, more
    return extra, (*more, given.residual.flat, given.target.flat)


def _launch(tensor: Tensor, given: _Given, cache: DeviceCache, found: Any, more: tuple) -> None:
    cut, kernels, stream = tensor.cut, tensor.kernels, given.x.stream
    dy, x, dx = given.dy.flat, given.x.flat, given.dx.flat
    weight = absent(tensor.parameters) if cache.weight is None else cache.weight
    frozen, blocks = not cache.batch_statistics, cut.tiles * cut.parts
    shared = scratch(cut, stream)
    if cut.once:
        with turn(cut, stream):
            launcher(tensor.once.backward, blocks, stream)(
                dy, x, dx, cache.statistics, weight, *found, *shared, frozen, *cut.shape,
                cut.tiles, cut.parts, more,
            )  # fmt: skip
        return
    sums = numbers(tensor, 2 * cut.channels)
    launcher(kernels.products, blocks, stream)(
        dy, x, cache.statistics, weight, sums, *found, *shared, *cut.shape, cut.parts, more,
    )  # fmt: skip
    if given.target is not None:  # what dy has become is there
        dy, kernels, more = given.target.flat, kernels_of(*tensor.way), ()
    launcher(kernels.gradient, blocks, stream)(
        dy, x, dx, cache.statistics, sums, weight, frozen, *cut.shape, cut.parts, True, more,
    )  # fmt: skip
