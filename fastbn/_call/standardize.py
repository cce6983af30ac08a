"""Calls of `standardize` and `destandardize`: checks, terms, and the short way of known calls.

Both are ``(x - center) * factor + shift`` from memory of one kind to memory of another. The terms
of a call are worked out in more than float64 and kept with its plan.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray

from fastbn._call import arguments, overlap, pieces
from fastbn._call.plan import KEPT
from fastbn._call.run import launch
from fastbn._call.standardize_plan import KEPT_CHANNELS, Plan, walk_of
from fastbn._call.standardize_terms import Affine, checked_terms, working_for
from fastbn._system import outputs
from fastbn.kernels.standardize.runs import Kinds

_FLOATS = "float32", "float64", "float16", "bfloat16"
#: Numbers that stay what they are, and equal to none that is refused or worked out otherwise.
_FIXED = frozenset(
    (int, float, type(None), np.float64, np.float32, np.float16, np.int64, np.int32, np.uint8)
)
#: Calls that are known at most; each holds mean and std, and a table of them.
KEPT_CALLS = 1024
#: Bytes from which on an output takes the memory of a dropped one. glibc keeps less than 32 MiB by
#: itself, but not while a program has temporaries of that size: a frame of 1080 x 1920 pixels then
#: took 15 to 25 ms, 1 of them for the work.
REUSED = 8 * 1024 * 1024
#: Plans by kinds and by how the arrays lie; None where no kernel can walk them.
_plans: dict[tuple, Plan | None] = {}
#: What calls that had everything checked go by: plan, table and shape of the output.
_known: dict[tuple, "Known"] = {}


class Known(NamedTuple):
    """A call that has been checked: of its arrays only the memory is new."""

    plan: Plan
    table: np.ndarray
    address: int
    shape: tuple[int, ...] | None  # of a new output in C order; None: as x lies
    dtype: np.dtype


class Call(NamedTuple):
    """A direction: its name, that of its first argument, and what goes in and comes out."""

    name: str
    x: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    inverse: bool


_ALL = (*arguments.SMALL_INTEGERS, *_FLOATS)
STANDARDIZE = Call("standardize", "x", _ALL, _FLOATS, inverse=False)
DESTANDARDIZE = Call("destandardize", "y", _FLOATS, (*_FLOATS, *arguments.SMALL_INTEGERS), True)


def known_call(
    call: Call, x: Any, mean: Any, std: Any, scale: Any, axis: Any, dtype: Any, out: Any,
    out_axis: Any, zero_std: Any,
) -> np.ndarray | None:  # fmt: skip
    """The result of a call like one before; None: go the long way."""
    if type(x) is not ndarray or type(axis) is not int:
        return None
    try:
        found = _known.get(_key(call, x, mean, std, scale, axis, dtype, out, out_axis, zero_std))
    except (TypeError, ValueError):  # something may change, or cannot be hashed
        return None
    if found is None or not (out is None or _apart(out, x, mean, std)):
        return None
    plan, _, address, shape, kind = found
    if call.inverse and kind.kind in "iu":
        _refuse_nan(x)
    if out is None:
        out = new_output(x, kind, shape)
    _run(plan, x, out, address)
    return out


def _key(
    call: Call, x: ndarray, mean: Any, std: Any, scale: Any, axis: int, dtype: Any, out: Any,
    out_axis: Any, zero_std: Any,
) -> tuple:  # fmt: skip
    """Calls with the same one differ in nothing but the memory of x and of the output."""
    lies = None if type(out) is not ndarray else (out.shape, out.strides, out.dtype)
    return (
        call.inverse, x.shape, x.strides, x.dtype, axis, dtype, type(dtype), out_axis,
        type(out_axis), _fixed(mean), _fixed(std), _fixed(scale), _fixed(zero_std), lies,
    )  # fmt: skip


def _fixed(value: Any) -> Any:
    """What tells a number or a vector of them from others; TypeError if nothing does.

    A tensor hashes by its identity, and may change; of many numbers much would be kept.
    """
    kind = type(value)
    if kind is ndarray and value.size <= KEPT_CHANNELS:
        return value.tobytes(), value.dtype, value.shape
    if kind in _FIXED:
        return kind, value
    if kind in (list, tuple) and len(value) <= KEPT_CHANNELS:
        kinds = tuple(map(type, value))
        if _FIXED.issuperset(kinds):
            return kinds, *value
    raise TypeError(f"{kind.__name__} may change, or holds much")


def _apart(out: Any, *inputs: Any) -> bool:
    """Whether an output is a plain array, aligned, and in memory of its own."""
    return type(out) is ndarray and out.flags.behaved and not any(
        type(array) is ndarray and overlap.may_share(out, array) for array in inputs
    )  # fmt: skip


def _run(plan: Plan, x: ndarray, out: ndarray, table: int, in_place: bool = False) -> None:
    at, to = x.__array_interface__["data"][0], out.__array_interface__["data"][0]
    if plan.large:
        launch(plan, plan.entry, in_place, at, to, table)
    else:
        plan.entry(plan.serial, at, to, table)


def new_output(x: ndarray, dtype: np.dtype, shape: tuple[int, ...] | None) -> ndarray:
    """A new array that lies as x does, or of a shape in C order."""
    if shape is None:
        return outputs.new_output(x, dtype, REUSED)
    if x.size * dtype.itemsize < REUSED:
        return np.empty(shape, dtype)
    strides = [math.prod(shape[k + 1 :]) for k in range(len(shape))]
    like = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), shape, strides)  # never read
    return outputs.new_output(like, dtype, REUSED)


def checked_call(
    call: Call, x: Any, mean: Any, std: Any, scale: Any, axis: Any, dtype: Any, out: Any,
    out_axis: Any, zero_std: Any,
) -> Any:  # fmt: skip
    """One call with every check first."""
    given = x, mean, std, scale, axis, dtype, out, out_axis, zero_std
    x = arguments.as_input(x, call.x, integers=not call.inverse)
    read = _checked_kind(call, x.dtype, given[0])
    position = arguments.channel_axis(x.shape, arguments.as_axis(axis))
    target = position if out_axis is None else _checked_out_axis(out_axis, x.ndim)
    with np.errstate(all="ignore"):
        affine = checked_terms(mean, std, scale, zero_std, x.shape, position, call.inverse)
    wanted = _checked_dtype(call, dtype)
    shape = list(x.shape)
    shape.insert(target, shape.pop(position))
    order = None if out_axis is None else tuple(shape)
    if out is None:
        plain = out = new_output(x, wanted, order)
    else:
        inputs = {k: v for k, v in (("mean", mean), ("std", std)) if isinstance(v, ndarray)}
        inputs[call.x] = x if target == position else np.moveaxis(x, position, target)
        plain = arguments.check_out(
            out, tuple(shape), wanted, inputs,
            f"the shape of {call.x}" + " with its channels at out_axis" * (order is not None),
            "that of the argument dtype",
        )  # fmt: skip
    if call.inverse and wanted.kind in "iu":
        _refuse_nan(x)
    if x.size:
        found = _work(x, np.moveaxis(plain, target, position), position, read, wanted, affine)
        few = x.shape[position] <= KEPT_CHANNELS
        if found and few and type(given[0]) is ndarray and type(axis) is int:
            _remember(call, given, Known(*found, order, wanted))
    return out


def _remember(call: Call, given: tuple, known: Known) -> None:
    if len(_known) >= KEPT_CALLS:
        _known.clear()
    try:
        _known[_key(call, *given)] = known
    except (TypeError, ValueError):  # something may change, or cannot be hashed
        return


# --- checks ---------------------------------------------------------------------------------------


def _checked_kind(call: Call, dtype: np.dtype, given: Any) -> str:
    if dtype.name in call.reads:
        return dtype.name
    fix = f"convert it: {arguments.as_float64(call.x, given)}" if dtype.kind in "iuf" else (
        f"{call.x}.view(np.uint8) has 0 and 1 for it" if dtype.kind == "b"
        else f"convert it to numbers: {call.x}.astype(np.float32)"
    )  # fmt: skip
    raise TypeError(f"{call.x} must be {_listed(call.reads)}, got dtype {dtype}; {fix}")


def _checked_dtype(call: Call, dtype: Any) -> np.dtype:
    try:
        found = arguments.native(np.dtype(dtype))
    except Exception:  # strings are parsed, and fail in many ways
        found = None
    if dtype is None or found is None or found.name not in call.writes:
        raise TypeError(f"dtype must be {_listed(call.writes)}, got {dtype!r}")
    return found


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:-1]) + f" or {names[-1]}"


def _checked_out_axis(out_axis: Any, ndim: int) -> int:
    position = arguments.as_axis(out_axis, "out_axis")
    if not -ndim <= position < ndim:
        raise ValueError(
            f"out_axis {position} is out of bounds for an output of {ndim} dimensions; "
            f"expected {-ndim} to {ndim - 1}"
        )
    return position % ndim


def _refuse_nan(y: ndarray) -> None:
    with np.errstate(invalid="ignore"):
        if y.size == 0 or not np.isnan(y.min()):  # the least is NaN where there is one
            return
    number = int(np.isnan(y).sum())
    raise ValueError(
        f"y holds {number} NaN, and integers have none; replace them first, for instance "
        "np.nan_to_num(y), or take a floating-point dtype"
    )


# --- work -----------------------------------------------------------------------------------------


def affine_pass(x: np.ndarray, out: np.ndarray, axis: int, affine: Affine) -> None:
    """Write ``(x - center) * factor + shift`` to ``out``, of x's shape; it may be x itself.

    Both have been checked, and are not empty.
    """
    _work(x, out, axis, x.dtype.name, out.dtype, affine)


def _work(
    x: ndarray, out: ndarray, axis: int, read: str, wanted: np.dtype, affine: Affine
) -> tuple[Plan, ndarray, int] | None:
    """Write the result of x to out, whose axes are in x's order.

    Returns the plan and its table; None where the arrays went in pieces.
    """
    kinds = Kinds(read, wanted.name, working_for(affine, read, wanted.name))
    plan = _plan_of(x, out, axis, kinds) if x.dtype.isnative else None
    if plan is None:
        _in_pieces(x, out, axis, read, wanted, affine)
        return None
    with np.errstate(all="ignore"):
        table, address = plan.table(affine)
    _run(plan, x, out, address, overlap.same_elements(x, out))
    return plan, table, address


def _plan_of(x: ndarray, out: ndarray, axis: int, kinds: Kinds) -> Plan | None:
    sizes, aligned = (x.itemsize, out.itemsize), out.flags.aligned
    key = kinds, x.shape, axis, x.strides, out.strides, aligned
    if key in _plans:
        return _plans[key]
    if len(_plans) >= KEPT:
        _plans.clear()
    walk = walk_of(x.shape, axis, x.strides, out.strides, sizes)
    plan = None if walk is None else Plan(walk, kinds, sizes, aligned)
    _plans[key] = plan
    return plan


def _in_pieces(
    x: ndarray, out: ndarray, axis: int, read: str, wanted: np.dtype, affine: Affine
) -> None:
    """Halve arrays that no kernel can walk until one can, or they are worth a copy."""
    longest = pieces.longest(x, axis)
    if x.size > pieces.PIECE and x.shape[longest] > 1:
        halves = (np.array_split(array, 2, axis=longest) for array in (x, out))
        for some, target in zip(*halves, strict=True):
            _work(some, target, axis, read, wanted, affine)
        return
    copy, target = np.array(x, arguments.native(x.dtype), order="C"), np.empty(x.shape, wanted)
    _work(copy, target, axis, read, wanted, affine)
    np.copyto(out, target)
