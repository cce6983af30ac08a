"""Checks of numbers and names: settings of a layer, options of a call.

A check returns what is to be kept, or raises an error that names the argument, what came, what was
expected, and the way out.
"""

import math
import numbers
import operator
import re
import sys
from typing import Any, Literal, get_args

import numpy as np

#: What a batch with NaN or infinity does to running statistics.
OnNonfinite = Literal["propagate", "skip", "raise"]
#: Where a layer is: on the CPU, on the current NVIDIA GPU, or on one by its number.
Device = (
    Literal["cpu", "cuda", "cuda:0", "cuda:1", "cuda:2", "cuda:3"]
    | Literal["cuda:4", "cuda:5", "cuda:6", "cuda:7"]
    | None
)


def check_eps(eps: Any) -> float:
    """``eps`` as a float; it must be positive, or 1 / sqrt(var + eps) has no bound."""
    if type(eps) is float and 0.0 < eps < math.inf:
        return eps
    if isinstance(eps, bool) or not isinstance(eps, numbers.Real):
        raise TypeError(f"eps must be a positive number, got {eps!r} ({type(eps).__name__})")
    value = _float(eps)
    if not 0.0 < value < math.inf:
        raise ValueError(f"eps must be positive and finite, got {eps!r}; the usual value is 1e-5")
    return value


def _float(number: Any) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf


def check_momentum(momentum: Any) -> float:
    """``momentum`` as a float from 0 to 1."""
    if type(momentum) is float and 0.0 <= momentum <= 1.0:
        return momentum
    if isinstance(momentum, bool) or not isinstance(momentum, numbers.Real):
        raise TypeError(
            f"momentum must be a number, got {momentum!r} ({type(momentum).__name__}); "
            "a cumulative average (None) needs a layer, which counts its batches"
        )
    value = _float(momentum)
    if not 0.0 <= value <= 1.0:
        raise ValueError(
            f"momentum must be 0 to 1, the weight of the new batch, got {momentum!r}; "
            "the usual value is 0.1"
        )
    return value


def check_slope(value: Any) -> float:
    """``negative_slope`` as a float."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"negative_slope must be a number, got {value!r} ({type(value).__name__})")
    slope = _float(value)
    if not math.isfinite(slope):
        raise ValueError(f"negative_slope must be finite, got {value!r}; the usual value is 0.01")
    return slope


def _index(value: Any) -> int | None:
    """``value`` as an int, None if it is no integer."""
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        return operator.index(value)
    except TypeError:  # arrays have an __index__ too
        return None


def _is_array(value: Any) -> bool:
    return bool(getattr(value, "shape", ()))


def _came(value: Any) -> str:
    """What came, in a few words: not the values of an array."""
    if _is_array(value):
        return f"an array of shape {tuple(value.shape)}"
    return f"{value!r} ({type(value).__name__})"


def check_virtual_batch_size(value: Any) -> int | None:
    """A number of samples as a positive int, or None."""
    if value is None:
        return None
    number = _index(value)
    if number is None:
        raise TypeError(
            "virtual_batch_size must be a positive integer, the samples of a group, or None, got "
            f"{_came(value)}"
        )
    if number < 1:
        raise ValueError(
            f"virtual_batch_size must be a positive integer, got {value!r}; None takes the "
            "statistics of the whole batch"
        )
    return number


#: The least that a limit of batch renormalization can be: then it is batch norm.
_LEAST = {"r_max": 1.0, "d_max": 0.0}


def check_limit(name: str, limit: Any, step: int | None = None) -> Any:
    """``r_max`` or ``d_max``: a number as a float; or a callable as it is, where none was called.

    ``step`` is what a callable was called with.
    """
    if step is None and callable(limit):
        return limit
    least, when = _LEAST[name], "" if step is None else f" at step {step}"
    kind = "a number" if step is not None else "a number or a callable of the step"
    if isinstance(limit, bool) or not isinstance(limit, numbers.Real):
        raise TypeError(f"{name} must be {kind}, got {limit!r} ({type(limit).__name__}){when}")
    value = _float(limit)
    if not value >= least:
        raise ValueError(
            f"{name} must be {least:g} or more, got {limit!r}{when}; at r_max=1 and d_max=0 batch "
            "renormalization is batch normalization"
        )
    return value


def check_bool(name: str, value: Any) -> bool:
    """``value`` as a bool: a number in its place is an argument gone astray."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def check_num_features(value: Any, name: str = "num_features") -> int:
    """A number of channels as a positive int."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be a positive integer, got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        if isinstance(value, np.ndarray):
            raise TypeError(
                f"{name} must be a positive integer, the number of channels, got an array of "
                f"shape {value.shape}; make the layer first, then call it: layer({name})(x)"
            ) from None
        raise TypeError(
            f"{name} must be a positive integer, got {value!r} ({type(value).__name__})"
        ) from None
    if not 1 <= number <= sys.maxsize // 8:  # bytes of float64
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return number


def check_num_groups(value: Any) -> int:
    """``num_groups`` as a positive int."""
    number = _index(value)
    if number is None:
        way = "; num_groups comes second, then weight and bias" if _is_array(value) else ""
        raise TypeError(f"num_groups must be a positive integer, got {_came(value)}{way}")
    if number < 1:
        raise ValueError(f"num_groups must be a positive integer, got {value!r}")
    return number


def check_channel_axis(value: Any) -> int:
    """``axis`` of channels of a batch of any number of dimensions: not that of the samples."""
    number = _index(value)
    if number is None:
        raise TypeError(f"axis must be an integer, got {_came(value)}")
    if number == 0:
        raise ValueError("axis must be that of the channels, got 0, which has the samples")
    return number


def check_normalized_shape(value: Any) -> tuple[int, ...]:
    """``normalized_shape`` as a tuple: sizes of the last axes; a number is that of the last."""
    sizes = value if isinstance(value, (tuple, list)) else (value,)
    try:
        shape = tuple(operator.index(n) for n in sizes)
    except TypeError:
        way = "; weight comes third, and the sizes of its axes second" if _is_array(value) else ""
        raise TypeError(
            "normalized_shape must be a positive integer or a tuple of them, the sizes of the last "
            f"axes of x, got {_came(value)}{way}"
        ) from None
    if not shape or min(shape) < 1:
        raise ValueError(f"normalized_shape must be of positive integers, got {value!r}")
    return shape


def parameter_dtype(dtype: Any) -> np.dtype:
    """The dtype of a layer's parameters and statistics; None is float32."""
    try:
        found = np.dtype(np.float32 if dtype is None else dtype)
    except Exception:  # strings are parsed, and fail in many ways
        raise TypeError(f"dtype must be float32 or float64, got {dtype!r}") from None
    if found not in (np.float32, np.float64):
        raise ValueError(f"dtype must be float32 or float64, got {dtype!r}")
    return np.dtype(found.type)  # in the byte order of the machine


def check_device(device: Any) -> str:
    """Where a layer is to be, as a string; whether there is such a device is not asked here."""
    if device is None:
        return "cpu"
    if isinstance(device, str) and re.fullmatch(r"cpu|cuda(:\d+)?", device):
        return device
    raise ValueError(
        "device must be None, 'cpu', 'cuda' (the current NVIDIA GPU) or 'cuda:0', 'cuda:1' and so "
        f"on, got {device!r}; leave it out to compute on the CPU"
    )


def check_on_nonfinite(value: Any) -> str:
    """One of the three policies."""
    if not (isinstance(value, str) and value in get_args(OnNonfinite)):
        raise ValueError(f"on_nonfinite must be 'propagate', 'skip' or 'raise', got {value!r}")
    return value
