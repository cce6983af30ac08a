"""Attributes of layers: each is checked whenever it is set, and there are no others."""

import sys
from typing import TYPE_CHECKING, Any, ClassVar

from fastbn._call.keywords import hint


class Attributes:
    """Base of classes whose attributes are those in ``__slots__``, each checked when it is set.

    Subclasses outside of fastbn that have no ``__slots__`` of their own may set others, as usual.
    """

    __slots__ = ("__weakref__",)

    #: What is set once.
    _fixed: ClassVar[frozenset[str]] = frozenset()

    def _checked(self, name: str, value: Any) -> Any:
        """What is stored if an attribute is set to a value, or an error."""
        return value

    if not TYPE_CHECKING:  # with a __setattr__, type checkers would accept any attribute

        def __setattr__(self, name: str, value: Any) -> None:
            if name in self._fixed and hasattr(self, name):
                raise AttributeError(
                    f"{name} is fixed when a layer is made, as its arrays are; make another: "
                    f"{type(self).__name__}(..., {name}={value!r})"
                )
            value = self._checked(name, value)
            try:
                object.__setattr__(self, name, value)
            except AttributeError:
                raise AttributeError(self._no_attribute(name)) from None

    def _no_attribute(self, name: str) -> str:
        layer = type(self).__name__
        if hasattr(type(self), name):
            return f"{name} of {layer} cannot be set"
        known = [k for k in dir(self) if not k.startswith("_") and not callable(getattr(self, k))]
        return f"{layer} has no attribute {name!r}{hint(name, known)}"

    def __getstate__(self) -> dict[str, Any]:
        """Values by name, those of a subclass included, for copies and pickles."""
        state = dict(getattr(self, "__dict__", {}))
        for cls in type(self).__mro__:
            slots = cls.__dict__.get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if name not in ("__weakref__", "__dict__") and hasattr(self, name):
                    state[name] = getattr(self, name)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            # a name from a pickle is a new string each time; the attribute cache would keep them
            object.__setattr__(self, sys.intern(name), value)
