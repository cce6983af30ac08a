"""What is given as X becomes an array of floating-point numbers, copied only where it must be."""

from typing import Any, NamedTuple

import numpy as np

from fastbn._call import arguments, overlap
from fastbn._system import outputs

_KEPT = np.float64, np.float32, np.float16


class Table(NamedTuple):
    """An array, its channel axis, and whether it is a copy that nobody else sees."""

    values: np.ndarray
    axis: int
    own: bool

    def target(self, copy: bool) -> np.ndarray:
        """Where the result goes: X itself if that is wished and can be, else a new array."""
        x = self.values
        plain = x.flags.writeable and x.dtype.isnative and not overlap.overlaps_itself(x)
        if plain and (self.own or not copy):
            return x
        return outputs.new_output(x, arguments.native(x.dtype))


def as_table(x: Any, axis: Any, of: str) -> Table:
    """Check X; integers and other numbers become float64, as in scikit-learn."""
    axis = arguments.as_axis(axis)
    if hasattr(x, "tocsr"):
        raise TypeError(
            f"X is a sparse matrix ({type(x).__name__}), and {of} takes dense arrays: centering "
            "would fill it. X.toarray() makes it dense; scikit-learn's StandardScaler or "
            "MaxAbsScaler scale sparse matrices"
        )
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(
            "X is a masked array; X.filled(np.nan) makes what is masked NaN, which fit leaves out"
        )
    given = x
    if type(x) is not np.ndarray:
        x = x.view(np.ndarray) if isinstance(x, np.ndarray) else np.asarray(x)
    converted = not (x.dtype.type in _KEPT or x.dtype.name == "bfloat16")
    if converted:
        x = _float64(given, x)
    if x.ndim < 2:
        raise ValueError(
            f"expected X of two or more dimensions, samples and features, got shape {x.shape}. "
            "Reshape your data: X.reshape(-1, 1) is one feature, X.reshape(1, -1) one sample"
        )
    position = arguments.channel_axis(x.shape, axis)
    _check_not_empty(x.shape, position, of)
    return Table(x, position, converted)


def _float64(given: Any, x: np.ndarray) -> np.ndarray:
    kind = x.dtype.kind
    if kind == "c":
        raise ValueError("Complex data not supported: scale X.real and X.imag, or np.abs(X)")
    if kind == "O" and hasattr(given, "to_numpy"):  # pandas: its missing values become NaN
        return given.to_numpy(dtype=np.float64, na_value=np.nan)
    if kind not in "biufOUS":
        raise ValueError(
            f"X must hold numbers, got dtype {x.dtype}; convert it first: X.astype(np.float64)"
        )
    return x.astype(np.float64)


def _check_not_empty(shape: tuple[int, ...], axis: int, of: str) -> None:
    if shape[axis] == 0:
        raise ValueError(
            f"Found array with 0 feature(s) (shape={shape}) while a minimum of 1 is required by "
            f"{of}."
        )
    if 0 in shape:
        raise ValueError(
            f"Found array with 0 sample(s) (shape={shape}) while a minimum of 1 is required by "
            f"{of}."
        )


def as_weights(weights: Any, x: np.ndarray, axis: int) -> np.ndarray:
    """``sample_weight`` as float64, one for each sample."""
    if axis == 0:
        raise ValueError(
            "sample_weight needs the samples on the first axis of X, and axis=0 has the features"
        )
    values = np.asarray(weights, np.float64)
    if values.ndim == 0:
        values = np.full(len(x), float(values))
    if values.shape != x.shape[:1]:
        raise ValueError(
            f"sample_weight has shape {values.shape}, expected ({len(x)},): one number for each "
            "sample of X"
        )
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise ValueError("sample_weight must be finite and not negative")
    if not values.any():
        raise ValueError("sample_weight must hold a weight other than zero")
    return values
