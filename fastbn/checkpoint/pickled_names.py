"""The names that a checkpoint of torch may use, and what stands for each of them here.

None of them is imported or called: each function below makes a plain value, or a description of a
tensor. To admit another name, add it to `_NAMES` with a function of your own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from fastbn.checkpoint import dtypes
from fastbn.checkpoint.pickled_values import Builder, Constant, Machine, checked_key

#: NumPy 1 has no arrays of more dimensions.
_MAX_RANK = 32
#: A tensor that shows its values many times, as an expanded one does, may become so large.
_MAX_EXPANDED = 64 << 20


class Storage:
    """Values one after another, of one dtype; ``at``: where in the file, when that is known."""

    def __init__(self, key: str, dtype: str, count: int) -> None:
        self.key, self.dtype, self.count = key, dtype, count
        self.at: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return self.count * dtypes.size_of(self.dtype)


class Tensor(NamedTuple):
    """Which values of a storage make a tensor; ``offset`` and ``steps`` count values."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    steps: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of a copy."""
        return _product(self.shape) * dtypes.size_of(self.dtype)


def find(module: str, name: str) -> Builder | Constant:
    """What stands for a name, or ValueError: it is refused."""
    module = {"__builtin__": "builtins", "torch.cuda": "torch"}.get(module, module)
    known = _NAMES.get(f"{module}.{name}")
    if known is None:
        shown = f"{module}.{name}"
        shown = shown if len(shown) <= 200 else shown[:200] + "…"
        raise ValueError(
            f"the pickle names {shown!r}, which is refused: only tensors and plain containers are "
            "read, and nothing was run. If the file is yours, save the arrays alone where torch "
            "is: torch.save(model.state_dict(), 'state.pth')"
        )
    return known


# --- tensors --------------------------------------------------------------------------------------


def _tensor(
    machine: Machine, storage: Any, offset: Any, shape: Any, steps: Any, *rest: Any
) -> Tensor:
    """``torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)``."""
    if len(rest) > 2 and rest[2]:
        raise ValueError(
            "a tensor is a conjugated or negated view; save tensor.resolve_conj().resolve_neg()"
        )
    return _checked(storage, getattr(storage, "dtype", ""), offset, shape, steps)


def _tensor_of(
    machine: Machine, storage: Any, offset: Any, shape: Any, steps: Any,
    requires_grad: Any, hooks: Any, dtype: Any, *rest: Any,
) -> Tensor:  # fmt: skip
    """``torch._utils._rebuild_tensor_v3``: the same, with a dtype, over bytes."""
    if not isinstance(dtype, Constant) or dtype.dtype is None or dtype.storage:
        raise ValueError("a tensor has no dtype that is known here")
    return _checked(storage, dtype.dtype, offset, shape, steps)


def _checked(storage: Any, dtype: str, offset: Any, shape: Any, steps: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise ValueError(f"a tensor has no storage, but a {type(storage).__name__}")
    for what, numbers in (("offset", (offset,)), ("size", shape), ("stride", steps)):
        if type(numbers) is not tuple or not all(type(k) is int and k >= 0 for k in numbers):
            raise ValueError(f"a tensor has a {what} that is no number from 0 on")
    if len(shape) != len(steps) or len(shape) > _MAX_RANK:
        raise ValueError(
            f"a tensor has {len(shape)} sizes and {len(steps)} strides; expected as many of both, "
            f"{_MAX_RANK} at most"
        )
    tensor = Tensor(storage, dtype, offset, shape, steps)
    values = _product(shape)
    last = offset + sum((k - 1) * step for k, step in zip(shape, steps, strict=True))
    size = dtypes.size_of(dtype)
    end = (last + 1 if values else 0) * size
    if end > storage.nbytes or max(offset, *shape, *steps, values) >= 1 << 62:
        raise ValueError(
            f"a tensor of shape {_shown(shape)}, strides {_shown(steps)} and offset {offset} "
            f"reaches beyond its storage {storage.key!r} of {storage.nbytes} bytes"
        )
    if values * size > max(storage.nbytes, _MAX_EXPANDED):
        raise ValueError(
            f"a tensor of shape {_shown(shape)} shows the {storage.nbytes} bytes of its storage "
            f"{storage.key!r} as {values * size}; save tensor.clone() or what it was expanded from"
        )
    return tensor


def _product(shape: tuple[int, ...]) -> int:
    """Number of values; exact, and short for absurd sizes."""
    values = 1
    for size in shape:
        values = 0 if size == 0 else min(values * size, 1 << 62)
    return 0 if 0 in shape else values


def _shown(numbers: tuple[int, ...]) -> str:
    return str(numbers) if max(numbers, default=0) < 1 << 64 else "(… absurd numbers …)"


def _parameter(machine: Machine, tensor: Any, *rest: Any) -> Tensor:
    """``torch._utils._rebuild_parameter(data, requires_grad, hooks)``."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f"a parameter has no tensor, but a {type(tensor).__name__}")
    return tensor


def _from_type(machine: Machine, function: Any, kind: Any, arguments: Any, state: Any) -> Tensor:
    """``torch._tensor._rebuild_from_type_v2``: a tensor that was given attributes."""
    if (
        not isinstance(function, Builder)
        or function not in _TENSORS
        or type(arguments) is not tuple
    ):
        raise ValueError("a tensor of a class of its own is made by what is no tensor's function")
    return function.build(machine, *arguments)


# --- containers -----------------------------------------------------------------------------------


def _dictionary(machine: Machine, pairs: Any = ()) -> dict[Any, Any]:
    """``OrderedDict()`` or ``OrderedDict([[key, value], ...])``; a Counter of a dictionary."""
    machine.charge(len(pairs) if isinstance(pairs, (list, tuple, dict)) else 0)
    if type(pairs) is dict:
        return dict(pairs)
    if type(pairs) not in (list, tuple) or not all(
        type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs
    ):
        raise ValueError("a dictionary is made of what are no pairs")
    return {checked_key(key): value for key, value in pairs}


def _members(machine: Machine, items: Any = ()) -> set[Any]:
    """``set([...])``."""
    if type(items) not in (list, tuple, set):
        raise ValueError("a set is made of what is no list")
    machine.charge(len(items))
    return {checked_key(item) for item in items}


def _sizes(machine: Machine, sizes: Any = ()) -> tuple[Any, ...]:
    """``torch.Size((...))``."""
    if type(sizes) is not tuple:
        raise ValueError("a torch.Size is made of what is no tuple")
    return sizes


def _encoded(machine: Machine, text: Any = "", encoding: Any = "latin1") -> bytes:
    """``_codecs.encode(text, 'latin1')``: bytes in protocol 2."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes are made of what is no Latin-1 text")
    machine.charge(len(text))
    return text.encode("latin-1")


def _device(machine: Machine, *name: Any) -> tuple[Any, ...]:
    """``torch.device('cpu')``: where something was, which says nothing here."""
    return name


# --- names ----------------------------------------------------------------------------------------

_BUILDERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _dictionary,
    "collections.Counter": _dictionary,
    "builtins.set": _members,
    "_codecs.encode": _encoded,
    "torch.Size": _sizes,
    "torch.device": _device,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.nn.parameter.Parameter": _parameter,
    "torch._tensor._rebuild_from_type_v2": _from_type,
}
_STORAGES = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16",
    "Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8",
    "Bool": "bool", "ComplexFloat": "complex64", "ComplexDouble": "complex128",
}  # fmt: skip
_NAMES: dict[str, Builder | Constant] = {
    **{name: Builder(name, build) for name, build in _BUILDERS.items()},
    **{
        f"torch.{kind}Storage": Constant(f"torch.{kind}Storage", dtype, storage=True)
        for kind, dtype in _STORAGES.items()
    },
    **{
        f"{module}.UntypedStorage": Constant(f"{module}.UntypedStorage", None, storage=True)
        for module in ("torch", "torch.storage")
    },
    **{f"torch.{name}": Constant(f"torch.{name}", name) for name in dtypes.NAMES},
    "torch.Tensor": Constant("torch.Tensor", None),
    "torch._tensor.Tensor": Constant("torch.Tensor", None),
}
#: Functions that make a tensor of a storage, and so may stand behind another.
_TENSORS = [
    _NAMES[f"torch._utils._rebuild_{name}"] for name in ("tensor", "tensor_v2", "tensor_v3")
]
