"""A tensor on a device, and what is known of a call on it before it is launched."""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from fastbn._call import arguments, settings
from fastbn._call.device_arrays import DeviceArray, current, described, stream_of, vector_like
from fastbn._call.device_cut import Cut, cut_of
from fastbn._call.device_launch import together
from fastbn.kernels.activations import ACTIVATIONS
from fastbn.kernels.cuda.kernels import Kernels, kernels_of
from fastbn.kernels.cuda.once import OnceKernels, once_kernels_of
from fastbn.kernels.cuda.steps import PLAIN, Extra

#: Dtypes of parameters and running statistics, and bytes of a value, by the dtype of x.
PARAMETERS = {"float16": "float32", "bfloat16": "float32", "float32": "float32",
               "float64": "float64"}  # fmt: skip
BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@lru_cache(maxsize=16)
def _absent(device: int, dtype: str) -> Any:
    return cuda.device_array(0, dtype)


def absent(dtype: str) -> Any:
    """No values, for a parameter that is not there."""
    return _absent(current(), dtype)


class Tensor(NamedTuple):
    """An array, how work on it is cut, and the kernels for that."""

    x: DeviceArray
    axis: int
    cut: Cut
    #: How kernels read and compute.
    way: tuple[bool, int, int]
    kernels: Kernels
    once: OnceKernels
    parameters: str


def tensor_of(
    x: DeviceArray, axis: Any, *others: DeviceArray, reads: int = 1, may_wait: bool = True,
    extra: Extra = PLAIN,
) -> Tensor:  # fmt: skip
    """What is known of a call before it is launched; ``others`` are walked together with x.

    So many arrays are ``read``. Unless blocks ``may_wait`` there are no kernels that read once.
    """
    check_dtype(x)
    position = arguments.channel_axis(x.shape, arguments.as_axis(axis))
    channels = x.shape[position]
    place = x.order.index(position)
    samples = int(np.prod([x.shape[k] for k in x.order[:place]], dtype=np.int64))
    length = int(np.prod([x.shape[k] for k in x.order[place + 1 :]], dtype=np.int64))
    aligned = x.aligned and all(other.aligned for other in others)
    may_wait = may_wait and may_keep(extra, length == 1, reads)
    most, item = together(current()) if may_wait else 0, BYTES[x.dtype]
    if reads == 2 and extra.activation and length == 1:
        item = max(item, 4)  # four channels a thread: terms of eight, twice, are too many
    cut = cut_of(samples, channels, length, item, aligned, reads, most)
    way = x.dtype == "float64", cut.lanes, cut.width
    kernels = kernels_of(*way, extra), once_kernels_of(*way, extra)
    return Tensor(x, position, cut, way, *kernels, PARAMETERS[x.dtype])


def check_dtype(x: DeviceArray) -> None:
    """Refuse what kernels do not read."""
    if x.dtype not in PARAMETERS:
        raise TypeError(
            f"x must be float16, bfloat16, float32 or float64 on a device, got dtype {x.dtype}"
        )


def may_keep(extra: Extra, last: bool, reads: int) -> bool:
    """Whether kernels that read once have registers for what is done besides.

    With channels ``last``, a gradient through an activation takes the terms of several channels
    twice.
    """
    if reads == 2:
        return extra.activation is None or not last
    # for some GPUs such loops are not unrolled, and what should be in registers is in memory then
    return extra.activation is None or not ACTIVATIONS[extra.activation].exponential


def numbers(tensor: Tensor, count: int) -> Any:
    """New float64 numbers, from whoever allocates for the owner of x."""
    return described("numbers", vector_like(tensor.x, count, "float64")).flat


def parameter(
    name: str, value: Any, shape: tuple[int, ...], of_x: str, x: DeviceArray
) -> DeviceArray:
    """A parameter or running statistics of a call on x, which ``of_x`` says the size of."""
    array, dtype = described(name, value), PARAMETERS[x.dtype]
    if array.shape != shape:
        raise ValueError(
            f"{name} has shape {array.shape}, but {of_x}; expected {name} of shape {shape}"
        )
    if array.dtype != dtype:
        way_out = "; x.astype('float32'), or make the layer with dtype='float64'"
        raise TypeError(
            f"{name} has dtype {array.dtype}, expected {dtype} with x of {x.dtype}"
            f"{way_out if x.dtype == 'float64' else ''}"
        )
    return array


def copy_of(x: DeviceArray, values: Any) -> Any:
    """A parameter as it is now, whatever an optimizer does to it later; None without values."""
    if not values.size:
        return None
    copy = described("copy", vector_like(x, values.size, PARAMETERS[x.dtype])).flat
    copy.copy_to_device(values, stream=stream_of(x))
    return copy


def check_out(
    out: DeviceArray, x: DeviceArray, *inputs: DeviceArray, vectors: Iterable[DeviceArray] = ()
) -> None:
    """Refuse an output that does not lie as x does, is read-only, or overlaps what is read."""
    if (out.shape, out.dtype, out.order) != (x.shape, x.dtype, x.order):
        raise ValueError(
            f"out has shape {out.shape}, dtype {out.dtype} and axes {out.order} in memory, "
            f"expected those of x: {x.shape}, {x.dtype} and {x.order}"
        )
    if out.readonly:
        raise ValueError("out is read-only, expected a writable array")
    for array in (x, *inputs):
        if out.overlaps(array):
            raise ValueError(
                f"out overlaps {array.name} without being the same array; expected {array.name} "
                "itself (in place), or an array of its own"
            )
    for array in vectors:
        if out.shares(array):
            raise ValueError(f"out overlaps {array.name}; pass an array of its own")


def check_updatable(mean: DeviceArray, var: DeviceArray, others: Iterable[DeviceArray]) -> None:
    """Running statistics are moved in place, so they lie in memory of their own."""
    pairs = [(mean, var), *((one, other) for other in others for one in (mean, var))]
    for one, other in pairs:
        if one.shares(other):
            raise ValueError(
                f"{one.name} and {other.name} share memory, but training updates {one.name} "
                "in place; pass an array of its own"
            )
    for one in (mean, var):
        if one.readonly:
            raise ValueError(
                f"{one.name} is read-only, but training updates it in place; pass a copy"
            )


def momentum_of(momentum: Any, counter: Any) -> float:
    """The weight of a new batch; with None that of a cumulative average."""
    if momentum is None and counter is not None:
        return 1.0 / (int(counter) + 1)
    return settings.check_momentum(momentum)
