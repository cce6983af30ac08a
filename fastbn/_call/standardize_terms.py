"""Mean, std and scale as the terms of a pass: ``(x - center) * factor + shift`` of each channel."""

from typing import Any, NamedTuple

import numpy as np

from fastbn._call import arguments, neighbours
from fastbn.kernels.terms import LEAST_FACTOR, MOST_FACTOR

#: What terms are worked out in: more digits than float64 has, where the machine can.
EXACT = np.longdouble
#: What may be added to any float32, or taken from it, before anything overflows: half of the step
#: between its largest numbers, which rounding takes back.
FAR = 1e31


class Affine(NamedTuple):
    """``(x - center) * factor + shift``, a value of each for a channel."""

    center: np.ndarray
    factor: np.ndarray
    shift: np.ndarray

    def table(self, working: np.dtype) -> np.ndarray:
        """The terms, rounded; the shift makes up for what rounding has left of the center."""
        center = self.center.astype(working)
        shift = self.shift - (self.center - center) * self.factor
        return np.stack([center, self.factor.astype(working), shift.astype(working)])


def working_for(affine: Affine, read: str, written: str) -> str:
    """What to compute in: float32, if nothing is float64 and it can hold the terms."""
    if "float64" in (read, written):
        return "float64"
    far, size = abs(affine.center), abs(affine.factor)
    shift = abs(affine.shift) + far * size * np.finfo(np.float32).eps  # what is left of the center
    beyond = (far > FAR) | (shift > FAR) | (size < LEAST_FACTOR) | (size > MOST_FACTOR)
    return "float64" if beyond.any() else "float32"  # NaN is held


def checked_terms(
    mean: Any, std: Any, scale: Any, zero_std: Any, shape: tuple[int, ...], axis: int,
    inverse: bool,
) -> Affine:  # fmt: skip
    """The terms of `standardize`, or of its inverse."""
    factor = EXACT(number("scale", scale))
    if factor == 0:
        raise ValueError("scale must not be 0: it multiplies every value")
    means = _vector("mean", mean, shape, axis)
    _refuse("mean", means, ~np.isfinite(means), "finite")
    stds = _vector("std", std, shape, axis)
    _refuse("std", stds, ~np.isfinite(stds) | (stds < 0), "finite and more than 0")
    stds = _without_zeros(stds, zero_std)
    with np.errstate(over="ignore", under="ignore"):
        center, factors = means / factor, factor / stds
        if inverse:
            factors = stds / factor
        _check_range(center, factors, inverse)
    zeros = np.zeros_like(center)
    return Affine(zeros, factors, center) if inverse else Affine(center, factors, zeros)


def _check_range(center: np.ndarray, factors: np.ndarray, inverse: bool) -> None:
    """Refuse terms that float64 cannot hold, or not with all its digits."""
    ends, size = np.finfo(np.float64), abs(factors)
    name = "std / scale" if inverse else "scale / std"
    for what, wrong in (
        (name, (size < ends.smallest_normal) | (size > ends.max)),
        ("mean / scale", abs(center) > ends.max),
    ):
        if wrong.any():
            some = arguments.some_of(np.flatnonzero(wrong))
            raise ValueError(f"{what} is beyond the range of float64 in channel {some}")


def _without_zeros(stds: np.ndarray, zero_std: Any) -> np.ndarray:
    instead = None if zero_std is None else number("zero_std", zero_std)
    if instead is not None and not instead > 0:
        raise ValueError(f"zero_std must be more than 0, got {zero_std!r}")
    zero = stds == 0
    if not zero.any():
        return stds
    if instead is None:
        raise ValueError(
            f"std is 0 in channel {arguments.some_of(np.flatnonzero(zero))}, by which nothing can "
            "be divided; zero_std=1.0 takes 1 instead, which leaves such a channel at its distance "
            "from the mean"
        )
    return np.where(zero, EXACT(instead), stds)


def number(name: str, value: Any) -> Any:
    """A finite number, with all its digits."""
    array = numbers(name, value)
    if array is None or array.shape != ():
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not np.isfinite(array):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return array[()]


def numbers(name: str, value: Any) -> np.ndarray | None:
    """Real numbers with all their digits; None if it is something else."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask would be ignored; {name}.filled(1)")
    if neighbours.is_array(value):
        value = arguments.as_array(name, value)
    try:
        array = np.asarray(value)
        if array.dtype.kind in "iuf" or array.dtype.name == "bfloat16":
            return array.astype(EXACT)
    except Exception:  # of any library, for any reason
        return None
    return None


def _vector(name: str, value: Any, shape: tuple[int, ...], axis: int) -> np.ndarray:
    """A number for each channel."""
    array, channels = numbers(name, value), shape[axis]
    if array is None:
        raise TypeError(
            f"{name} must be a number, or {channels} of them, one for each channel, got {value!r}"
        )
    if array.ndim == 0:
        return np.full(channels, array[()])
    if channels == 0 and array.ndim == 1:
        return array[:0]  # any number of them: so Dask asks which dtype comes out
    if array.shape != (channels,):
        way = f"; {name}.reshape(-1)" if array.ndim > 1 and array.size == channels else ""
        if not way:
            axes = [k - len(shape) if k == len(shape) - 1 else k for k, n in enumerate(shape)
                    if n == array.size and array.ndim == 1]  # fmt: skip
            way = f"; did you mean axis={axes[0]}?" if axes else ""
        raise ValueError(
            f"{name} has shape {array.shape}, expected a number or shape ({channels},): x of shape "
            f"{shape} has {channels} channels on axis {axis}{way}"
        )
    return array


def _refuse(name: str, values: np.ndarray, wrong: np.ndarray, expected: str) -> None:
    if wrong.any():
        bad = np.flatnonzero(wrong)
        raise ValueError(
            f"{name} must be {expected}, got {float(values[bad[0]])} in channel "
            f"{arguments.some_of(bad)}"
        )
