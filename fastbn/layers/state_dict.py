"""Checks of a state dict: everything is read and checked before anything is stored."""

import difflib
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from fastbn._call import arguments, backend, neighbours, places
from fastbn.layers.names import COUNTER, KERAS, MEAN, TORCH, VAR

#: Keys and prefixes that a message shows; there may be hundreds.
_SHOWN = 3


class IncompatibleKeys(NamedTuple):
    """Keys that a non-strict load has passed over, as in torch."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def read_state(
    state: Any,
    prefix: str,
    current: dict[str, np.ndarray],
    strict: bool,
    has_no: Mapping[str, str],
) -> tuple[dict[str, np.ndarray], IncompatibleKeys]:
    """New values for ``current`` by name, and which keys did not match; or an error.

    ``current`` gives the expected shapes and dtypes. Keys of ``state`` that do not
    begin with ``prefix`` belong to somebody else. ``has_no`` has names that such a layer never has,
    and what to say of them.
    """
    _check_kinds(state, prefix)
    expected = {prefix + name: name for name in current}
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key.startswith(prefix) and key not in expected]
    # files from before torch 0.4.1, ONNX and hand-made ones have statistics and no counter
    starts_anew = prefix + COUNTER in missing and all(
        prefix + name in state for name in (MEAN, VAR)
    )
    if starts_anew:
        missing.remove(prefix + COUNTER)
    if strict and (missing or unexpected):
        needed = [key for key in missing if expected[key] != COUNTER]
        never = [way for name, way in has_no.items() if prefix + name in unexpected]
        hint = never[0] if never else _hint(prefix, state, current)
        raise KeyError(_describe_keys(needed, unexpected, prefix, state, current, hint))
    values = {
        name: _read_array(key, state[key], current[name])
        for key, name in expected.items()
        if key in state
    }
    if starts_anew:
        values[COUNTER] = np.zeros((), np.int64)
    return values, IncompatibleKeys(missing, unexpected)


def _check_kinds(state: Any, prefix: Any) -> None:
    if isinstance(state, (str, os.PathLike)):
        path = os.fsdecode(state)
        raise TypeError(
            f"state must be a mapping of names to arrays, got a path, {path!r}; read the file "
            f"first: fastbn.load_tensors({path!r})"
        )
    if not isinstance(state, Mapping):
        raise TypeError(f"state must be a mapping of names to arrays, got {type(state).__name__}")
    if not isinstance(prefix, str):
        raise TypeError(f"prefix must be a string, got {prefix!r}")
    for key in state:
        if not isinstance(key, str):
            raise TypeError(f"keys of state must be strings, got {key!r}")


# --- keys -----------------------------------------------------------------------------------------


def _describe_keys(
    missing: list[str],
    unexpected: list[str],
    prefix: str,
    state: Mapping[str, Any],
    current: dict[str, np.ndarray],
    hint: str,
) -> str:
    """What does not fit, in a few words however large the model, and the way out."""
    parts = [
        f"{kind} {_some(keys)}"
        for kind, keys in (("missing", missing), ("unexpected", unexpected))
        if keys
    ]
    parts += ["nothing was loaded", hint]
    if any(prefix + name in state for name in current):
        parts.append("strict=False loads what matches")
    return f"state does not fit, with prefix {prefix!r}: {'; '.join(parts)}"


def _some(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:_SHOWN]))
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _hint(prefix: str, state: Mapping[str, Any], current: dict[str, np.ndarray]) -> str:
    """The way out; ``state`` may be anybody's mapping, of anything."""
    if not current:
        return "this layer has no arrays to load"
    if not state:
        return "state has no keys at all"
    if any(prefix + name in state for name in TORCH):
        return "is it that of a layer with other options (affine, bias, track_running_stats)?"
    found = _prefixes(state, current)
    if found:
        nearest = sorted(found, key=lambda other: _distance(prefix, other))[:_SHOWN]
        more = f" {len(found)} prefixes fit;" if len(found) > _SHOWN else ""
        return f"{more} did you mean prefix={' or '.join(map(repr, nearest))}?".strip()
    for key in state:
        with suppress(Exception):
            if isinstance(state[key], Mapping) and _prefixes(state[key], current):
                return f"did you mean state[{key!r}]?"
    elsewhere = [key for key in state if key.rpartition(".")[2].rpartition("/")[2] in KERAS]
    if elsewhere:
        names = ", ".join(f"{theirs} to {ours}" for theirs, ours in KERAS.items())
        return f"{elsewhere[0]!r} looks like Keras; rename {names}"
    shape = next(iter(current.values())).shape
    return (
        f"no prefix in it has a batch norm of shape {shape} with these names; its keys are "
        f"{_some(list(state))}"
    )


def _distance(meant: str, found: str) -> tuple[bool, float, int]:
    """Sort key: first those that differ by a missing dot or a ``module.`` in front, then the most
    alike."""
    same = found.removesuffix(".") == meant or found.endswith("." + meant)
    likeness = difflib.SequenceMatcher(None, meant, found).ratio()
    return not (meant and same), -likeness, len(found)


def _prefixes(state: Mapping[str, Any], current: dict[str, np.ndarray]) -> list[str]:
    """Under which prefixes lies all that is needed, in the right shapes, and nothing else."""
    names: dict[str, set[str]] = {}
    for key in state:
        before, dot, name = key.rpartition(".")
        names.setdefault(before + dot, set()).add(name)
    needed = current.keys() - {COUNTER}
    return [
        prefix
        for prefix, found in names.items()
        if needed <= found <= current.keys()
        and (prefix or len(names) == 1)
        and all(_shape(state, prefix + name) == current[name].shape for name in needed)
    ]


def _shape(state: Mapping[str, Any], key: str) -> Any:
    with suppress(Exception):  # some values have no shape before they are used
        return tuple(map(int, state[key].shape))
    return None


# --- values ---------------------------------------------------------------------------------------


def _read_array(key: str, value: Any, current: np.ndarray) -> np.ndarray:
    """``value`` as a new array of ``current``'s shape and dtype, or an error that names the key."""
    try:
        array = _as_array(key, value)
    except Exception as error:
        raise ValueError(f"{key!r} cannot be read as an array: {error}") from error
    integral = current.dtype.kind == "i"
    bfloat16 = array.dtype.name == "bfloat16" and not integral
    if not bfloat16 and array.dtype.kind not in ("iu" if integral else "iuf"):
        kind = "an integer" if integral else "a real number"
        raise ValueError(f"{key!r} must hold {kind}, got dtype {array.dtype}; nothing was loaded")
    if array.shape != current.shape:
        raise ValueError(
            f"{key!r} has shape {array.shape}, expected {current.shape}; nothing was loaded"
        )
    if key.endswith(VAR):
        arguments.check_variance(f"{key!r}", array)
    if integral and not ((array >= 0) & (array <= np.iinfo(np.int64).max)).all():
        raise ValueError(f"{key!r} must be 0 to 2**63 - 1, got {array}; nothing was loaded")
    with np.errstate(over="ignore", under="ignore"):
        values = array.astype(current.dtype)
    if not integral and not np.array_equal(np.isinf(values), np.isinf(array)):
        raise ValueError(f"{key!r} holds values too large for {current.dtype}; nothing was loaded")
    return values


def _as_array(key: str, value: Any) -> np.ndarray:
    if places.on_device(value):
        return backend.to_numpy(value, key)
    if neighbours.is_bfloat16(value) and hasattr(value, "float"):
        value = value.float()  # torch's, which NumPy cannot read
    return np.asarray(value)
