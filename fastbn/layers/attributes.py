"""Attributes of layers: each is checked whenever it is set, and there are no others."""

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from fastbn._call.keywords import did_you_mean


class Attributes:
    """Base of what has no other attributes than its ``__slots__``, and checks them.

    A subclass outside of fastbn that has no ``__slots__`` of its own may set any other, as usual.
    """

    __slots__ = ("__weakref__",)

    #: By name: what takes the object and a value, and returns what is stored, or raises.
    _checks: ClassVar[Mapping[str, Callable[[Any, Any], Any]]] = {}
    #: What is set once.
    _fixed: ClassVar[frozenset[str]] = frozenset()

    if not TYPE_CHECKING:  # type checkers would take it for leave to set anything

        def __setattr__(self, name: str, value: Any) -> None:
            if name in self._fixed and hasattr(self, name):
                raise AttributeError(
                    f"{name} is fixed when a layer is made, as its arrays are; make another: "
                    f"{type(self).__name__}(..., {name}={value!r})"
                )
            check = self._checks.get(name)
            if check is not None:
                value = check(self, value)
            try:
                object.__setattr__(self, name, value)
            except AttributeError:
                hint = did_you_mean(name, dir(self))
                raise AttributeError(
                    f"{type(self).__name__} has no attribute {name!r}"
                    + (f"; {hint}" if hint else "")
                ) from None

    def __getstate__(self) -> dict[str, Any]:
        """Values by name, those of a subclass included, for copies and pickles."""
        slots = [name for cls in type(self).__mro__ for name in cls.__dict__.get("__slots__", ())]
        state = {name: getattr(self, name) for name in slots if hasattr(self, name)}
        del state["__weakref__"]
        return {**state, **getattr(self, "__dict__", {})}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            # Python remembers where it found a name, and keeps each new string that has one
            object.__setattr__(self, sys.intern(name), value)
