"""Checks of arguments: arrays, numbers, ``out``, and their messages.

A check returns what a kernel can take, or raises an error that names the
argument, what came, what was expected, and the way out. No check changes anything.
"""

import math
import operator
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from fastbn._call import neighbours, overlap

#: Integers that statistics and `standardize` take as they are: what images have.
SMALL_INTEGERS = "uint8", "int8", "uint16", "int16"

# --- x --------------------------------------------------------------------------------------------


def as_array(name: str, x: Any, integers: bool = False) -> np.ndarray:
    """``x`` as a plain ndarray, or TypeError.

    One rule for all arguments that are read: an ndarray of any subclass is taken in its own
    memory. So is an array of another library that has ``__array__``, or ``__dlpack__`` on the CPU,
    where that library lends its memory; read-only memory will do. What comes out of a call is
    always NumPy's own array. Refused are what would be copied from a device or loaded from a file,
    a tensor whose gradient would be lost (``requires_grad``), masked arrays, lists and scalars.
    ``integers`` says that those of pictures may stay what they are.
    """
    if type(x) is np.ndarray:
        return x
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(
            f"{name} is a masked array, whose mask would be ignored; pass a plain array in which "
            f"the masked places have a value that may count: {name}.filled(value)"
        )
    if isinstance(x, np.ndarray):
        return x.view(np.ndarray)
    return neighbours.borrowed(name, x, integers)


def as_input(x: Any, name: str = "x", integers: bool = False) -> np.ndarray:
    """``x`` as a plain ndarray; without values, if Dask asks about the dtype alone."""
    x = as_array(name, x, integers)
    return x[(slice(0),) * x.ndim] if neighbours.is_question(x) else x


def as_output(name: str, out: Any) -> np.ndarray:
    """``out`` as a plain ndarray that shares its memory: here nothing but NumPy's is taken."""
    if not isinstance(out, np.ndarray):
        raise neighbours.not_numpy(name, out)
    return as_array(name, out)


def native(dtype: np.dtype) -> np.dtype:
    """``dtype`` in the byte order of the machine."""
    return np.dtype(dtype.type)


def check_dtype(name: str, dtype: np.dtype) -> None:
    """Refuse what is no floating-point number that kernels know, and name the fix."""
    if dtype.type in (np.float32, np.float64, np.float16) or dtype.name == "bfloat16":
        return
    if dtype.kind in "iub":
        fix = f"convert it first: {name}.astype(np.float32)"
        if name == "x" and is_small_integer(dtype):
            fix += "; fastbn.standardize and fastbn.channel_stats take such integers as they are"
    elif dtype.kind == "c":
        fix = f"normalize {name}.real and {name}.imag, or convert it: {name}.real"
    elif dtype.kind == "f":
        fix = f"convert it: {name}.astype(np.float64)"
    else:
        fix = f"convert it to numbers: {name}.astype(np.float32)"
    raise TypeError(
        f"{name} must be float32, float64, float16 or bfloat16, got dtype {dtype}; {fix}"
    )


def is_small_integer(dtype: np.dtype) -> bool:
    """Whether it is one of `SMALL_INTEGERS`, in any byte order."""
    return dtype.name in SMALL_INTEGERS


def as_axis(axis: Any, name: str = "axis") -> int:
    """``axis`` as an int; whether there is such an axis is for `describe` to say."""
    if type(axis) is int:
        return axis
    try:
        if isinstance(axis, (bool, np.bool_)):
            raise TypeError
        return operator.index(axis)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {axis!r}") from None


def channel_axis(shape: tuple[int, ...], axis: int) -> int:
    """``axis`` as a non-negative number, or an error that shows the shape."""
    if len(shape) < 2:
        raise ValueError(
            f"x must have at least 2 dimensions, samples and channels, got shape {shape}; "
            "a single sample of C channels is x[None]"
        )
    if not -len(shape) <= axis < len(shape):
        raise ValueError(
            f"axis {axis} is out of bounds for x of shape {shape}; "
            f"expected {-len(shape)} to {len(shape) - 1}"
        )
    return axis % len(shape)


def check_batch_count(shape: tuple[int, ...], count: int) -> None:
    """Batch statistics of one value per channel mean nothing: its variance is zero."""
    if count == 1:
        raise ValueError(
            f"expected more than 1 value per channel to take batch statistics of, got x of "
            f"shape {shape}: its variance would be 0 and the output just the bias; "
            "use running statistics (eval(), or training=False) or a larger batch"
        )


@lru_cache(maxsize=4096)
def describe(shape: tuple[int, ...], dtype: np.dtype, axis: int) -> tuple[int, int, int]:
    """Check ``x``; return its channel axis, number of channels, and values per channel."""
    check_dtype("x", dtype)
    position = channel_axis(shape, axis)
    channels = shape[position]
    count = math.prod(n for k, n in enumerate(shape) if k != position)
    return position, channels, count


def as_float64(name: str, given: Any) -> str:
    """How numbers of another dtype become such: a frame's may have missing ones among them."""
    how = "to_numpy" if neighbours.is_frame(given) else "astype"
    return f"{name}.{how}(np.float64)"


def describe_counted(
    shape: tuple[int, ...], dtype: np.dtype, axis: int, given: Any = None
) -> tuple[int, int, int]:
    """`describe` for statistics, which take small integers too. ``given`` is x as it came."""
    if is_small_integer(dtype):
        dtype = np.dtype(np.float32)
    elif dtype.kind in "iub":
        way = "x.view(np.uint8)" if dtype.kind == "b" else as_float64("x", given)
        raise TypeError(
            f"x must be {', '.join(SMALL_INTEGERS)}, float32, float64, float16 or bfloat16, got "
            f"dtype {dtype}; convert it: {way}"
        )
    return describe(shape, dtype, axis)


def check_gradient(dy: np.ndarray, x: np.ndarray, overwritten: bool) -> None:
    """Refuse a gradient that is not one of an output of ``x``, or an ``x`` that is gone."""
    check_dtype("dy", dy.dtype)
    if dy.shape != x.shape:
        raise ValueError(f"dy has shape {dy.shape}, expected the shape of x, {x.shape}")
    if native(dy.dtype) != native(x.dtype):
        raise ValueError(
            f"dy has dtype {dy.dtype}, expected the dtype of x, {x.dtype}; dy.astype(x.dtype)"
        )
    if overwritten:
        raise RuntimeError(
            "the forward wrote its output over x or the residual (out=x), so there is nothing left "
            "to differentiate; run the forward with another out, or without one"
        )


def check_same_shape(x: np.ndarray, shape: tuple[int, ...]) -> None:
    """Refuse an ``x`` that is not of the shape that the forward saw."""
    if x.shape != shape:
        raise RuntimeError(
            f"x has been given another shape since the forward, {x.shape}; "
            "reshape a view of it (x.reshape), or run the forward again"
        )


# --- vectors --------------------------------------------------------------------------------------


def check_finite(x: np.ndarray, axis: int, not_finite: Mapping[str, np.ndarray]) -> None:
    """Refuse a batch after which statistics would not be finite: say which channels, and why.

    ``not_finite`` says of each channel whether the statistics of ``x``, or a running one after it,
    are not.
    """
    for name, channels in not_finite.items():
        bad = np.flatnonzero(channels)
        if not bad.size:
            continue
        if name != "x":
            why = f"would make {name} infinite in channel {some_of(bad)}"
            way = "keep running statistics in float64 (a layer's dtype)"
        else:
            holds = np.array([c for c in bad if not np.isfinite(x.take(c, axis)).all()])
            why, way = f"holds NaN or infinity in channel {some_of(holds)}", "clean x"
            if not holds.size:
                why, way = (
                    f"is finite, but its statistics overflow in channel {some_of(bad)}",
                    "scale x",
                )
        raise ValueError(
            f"x of shape {x.shape} {why}, and on_nonfinite is 'raise'; {way}, or leave such "
            "batches out of the running statistics with 'skip'"
        )


def some_of(channels: Sequence[int] | np.ndarray) -> str:
    """The first five of them, as messages have it."""
    return ", ".join(map(str, channels[:5])) + (", ..." if len(channels) > 5 else "")


def check_parameter(name: str, value: Any, shape: tuple[int, ...], of: str) -> np.ndarray:
    """``value`` as a plain array of floating-point numbers of a shape.

    ``of`` says where that shape comes from. An x without channels takes any number of them: so
    Dask asks a function which dtype it returns.
    """
    value = as_array(name, value)
    check_dtype(name, value.dtype)
    if value.shape != shape and not (0 in shape and value.ndim == len(shape)):
        one = value.ndim == len(shape) == 1
        came = f"length {value.shape[0]}" if one else f"shape {value.shape}"
        raise ValueError(f"{name} has {came}, but {of}; expected {name} of shape {shape}")
    return value


def check_variance(name: str, value: np.ndarray) -> np.ndarray:
    """Refuse what no variance can be."""
    if not (value >= 0).all():
        raise ValueError(f"{name} holds negative values or NaN, which no variance can be")
    return value


def kernel_vector(value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """``value`` itself if a kernel can take it, else a copy in ``dtype``."""
    if value.dtype == dtype and value.flags.carray:
        return value
    return converted(value, dtype)


def converted(value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A copy in ``dtype``, whose range may be smaller."""
    with np.errstate(over="ignore", under="ignore"):
        return np.array(value, dtype, order="C")


def check_statistics(name: str, value: np.ndarray) -> np.ndarray:
    """Running statistics have 32 or 64 bits: in fewer, small steps would be lost."""
    if value.dtype.itemsize == 2:
        raise TypeError(
            f"{name} must be float32 or float64, got dtype {value.dtype}; keep it in "
            f"{name}.astype(np.float32)"
        )
    return value


def check_groups(shape: tuple[int, ...], axis: int, groups: int) -> None:
    """Channels on an axis behind that of the samples, in so many groups of equal size."""
    if axis == 0:
        raise ValueError("axis 0 has the samples, and axis must be that of the channels")
    if groups and shape[axis] % groups:
        raise ValueError(
            f"num_groups={groups} must divide the number of channels, and x of shape {shape} has "
            f"{shape[axis]}"
        )


def check_group_size(shape: tuple[int, ...], groups: int) -> None:
    """Statistics of one value mean nothing."""
    if 0 not in shape and math.prod(shape[1:]) == groups:
        raise ValueError(
            f"expected more than 1 value in each of {groups} groups, got x of shape {shape}: "
            "their variance would be 0 and the output just the bias"
        )


def check_last_axes(shape: tuple[int, ...], normalized: tuple[int, ...]) -> None:
    """What is normalized must be at the end; axes of no length are as in `check_parameter`."""
    last = shape[-len(normalized) :]
    if last != normalized and (len(last) != len(normalized) or any(last)):
        raise ValueError(
            f"x has shape {shape}, and its last axes must be normalized_shape, {normalized}"
        )


def check_running(running_mean: Any, running_var: Any) -> bool:
    """Whether there are running statistics; one without the other is an error."""
    if (running_mean is None) != (running_var is None):
        missing, given = (
            ("running_mean", "running_var") if running_mean is None
            else ("running_var", "running_mean")
        )  # fmt: skip
        raise ValueError(
            f"{given} was given without {missing}; pass both running statistics or neither"
        )
    return running_mean is not None


def check_updatable(
    running_mean: np.ndarray,
    running_var: np.ndarray,
    counter: Any,
    inputs: Mapping[str, np.ndarray | None],
) -> None:
    """Training updates running statistics in place, and a layer's counter with them."""
    for name, value in (("running_mean", running_mean), ("running_var", running_var)):
        if not value.flags.writeable:
            raise ValueError(
                f"{name} is read-only, but training updates it in place; "
                f"pass a writable array (np.array({name})) or training=False"
            )
        if overlap.overlaps_itself(value):
            raise ValueError(
                f"{name} has strides {value.strides}: elements share memory, but training "
                f"updates each of them; pass an array of its own ({name}.copy())"
            )
    check_apart("running_mean", running_mean, {"running_var": running_var, **inputs})
    check_apart("running_var", running_var, inputs)
    if counter is not None:
        check_counter(counter)


def check_counter(counter: Any) -> np.ndarray:
    """A layer's number of batches, which each update counts up in place."""
    if (
        isinstance(counter, np.ndarray)
        and counter.shape == ()
        and counter.dtype == np.int64
        and counter.flags.carray
    ):
        return counter
    raise TypeError(
        f"num_batches_tracked must be a writable int64 array of shape (), got {counter!r}; "
        "change its value in place: bn.num_batches_tracked[...] = 0"
    )


def check_apart(name: str, array: np.ndarray, others: Mapping[str, np.ndarray | None]) -> None:
    """Refuse an array that is updated if it shares memory with another."""
    for other, value in others.items():
        if value is not None and overlap.shares_memory(array, value):
            raise ValueError(
                f"{name} and {other} share memory, but training updates {name} in place; "
                f"pass an array of its own ({name}.copy())"
            )


def check_out(
    out: Any, shape: tuple[int, ...], dtype: np.dtype, inputs: Mapping[str, np.ndarray | None],
    shape_of: str = "the shape of x", dtype_of: str = "the dtype of x",
) -> np.ndarray:  # fmt: skip
    """``out`` as a plain array that may be written, or an error, which says what it should be of.

    It may be one of ``inputs`` itself, element for element; any other overlap is refused.
    """
    plain = as_output("out", out)
    if plain.shape != shape:
        raise ValueError(f"out has shape {plain.shape}, expected {shape_of}, {shape}")
    if plain.dtype != dtype:
        raise ValueError(f"out has dtype {plain.dtype}, expected {dtype_of}, {dtype}")
    if not plain.flags.writeable:
        raise ValueError("out is read-only, expected a writable array")
    if overlap.overlaps_itself(plain):
        raise ValueError(
            f"out has strides {plain.strides}: elements share memory, as in a broadcast or "
            "windowed view; expected an array of its own, such as np.empty_like(x)"
        )
    for name, array in inputs.items():
        if array is not None:
            check_overlap(plain, name, array)
    return plain


def check_overlap(out: np.ndarray, name: str, array: np.ndarray) -> None:
    """Refuse an ``out`` that shares memory with ``array``, unless they are the same elements."""
    if (
        out is not array
        and overlap.shares_memory(out, array)
        and not overlap.same_elements(out, array)
    ):
        raise ValueError(
            f"out overlaps {name} without being the same array; expected out is {name} (in "
            "place) or an array of its own, such as np.empty_like(x)"
        )
