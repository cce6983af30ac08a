"""Checks of a state dict: everything is read and checked before anything is stored."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class IncompatibleKeys(NamedTuple):
    """Keys that a non-strict load has passed over, as in torch."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def read_state(
    state: Any, prefix: str, current: dict[str, np.ndarray], strict: bool
) -> tuple[dict[str, np.ndarray], IncompatibleKeys]:
    """New values for ``current`` by name, and which keys did not match; or an error.

    ``current`` gives the expected shapes and dtypes. Keys of ``state`` that do not
    begin with ``prefix`` belong to somebody else.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"state must be a mapping of names to arrays, got {type(state).__name__}")
    if not isinstance(prefix, str):
        raise TypeError(f"prefix must be a string, got {prefix!r}")
    for key in state:
        if not isinstance(key, str):
            raise TypeError(f"keys of state must be strings, got {key!r}")
    missing = [prefix + name for name in current if prefix + name not in state]
    expected = {prefix + name for name in current}
    unexpected = [key for key in state if key.startswith(prefix) and key not in expected]
    if strict and (missing or unexpected):
        raise KeyError(_describe_keys(missing, unexpected, prefix, state))
    values = {
        name: _read_array(prefix + name, state[prefix + name], array)
        for name, array in current.items()
        if prefix + name in state
    }
    return values, IncompatibleKeys(missing, unexpected)


def _describe_keys(missing: list[str], unexpected: list[str], prefix: str, state: Mapping) -> str:
    parts = []
    if missing:
        parts.append(f"missing {', '.join(map(repr, missing))}")
    if unexpected:
        parts.append(f"unexpected {', '.join(map(repr, unexpected))}")
    came = ", ".join(map(repr, list(state)[:8])) or "no keys at all"
    return (
        f"state does not fit: {'; '.join(parts)} (prefix {prefix!r}; state has {came}). Nothing "
        "was loaded; pass the right prefix, or strict=False to load what matches"
    )


def _read_array(key: str, value: Any, current: np.ndarray) -> np.ndarray:
    """``value`` as a new array of ``current``'s shape and dtype, or an error that names the key."""
    try:
        array = np.asarray(value)
    except Exception as error:
        raise ValueError(f"{key!r} cannot be read as an array: {error}") from error
    integral = current.dtype.kind == "i"
    if array.dtype.kind not in ("iu" if integral else "iuf"):
        kind = "an integer" if integral else "a real number"
        raise ValueError(f"{key!r} must hold {kind}, got dtype {array.dtype}; nothing was loaded")
    if array.shape != current.shape:
        raise ValueError(
            f"{key!r} has shape {array.shape}, expected {current.shape}; nothing was loaded"
        )
    if key.endswith("running_var") and not (array >= 0).all():
        raise ValueError(
            f"{key!r} holds negative values or NaN, which no variance can be; nothing was loaded"
        )
    if integral and not ((array >= 0) & (array <= np.iinfo(np.int64).max)).all():
        raise ValueError(f"{key!r} must be 0 to 2**63 - 1, got {array}; nothing was loaded")
    with np.errstate(over="ignore"):
        values = array.astype(current.dtype)
    if not integral and not np.array_equal(np.isinf(values), np.isinf(array)):
        raise ValueError(f"{key!r} holds values too large for {current.dtype}; nothing was loaded")
    return values
