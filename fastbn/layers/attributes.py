"""Attributes of layers: each is checked whenever it is set, and there are no others."""

from contextlib import suppress
from types import MemberDescriptorType
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
                if hasattr(type(self), name):  # a method, or a property that refuses
                    raise
                raise AttributeError(self._no_attribute(name)) from None

    def _no_attribute(self, name: str) -> str:
        known = [k for k in dir(self) if not k.startswith("_") and not callable(getattr(self, k))]
        return f"{type(self).__name__} has no attribute {name!r}{hint(name, known)}"

    def __getstate__(self) -> dict[str, Any]:
        """Values by name, those of a subclass included, for copies and pickles."""
        state = dict(getattr(self, "__dict__", {}))
        for name, slot in _slots(type(self)).items():
            with suppress(AttributeError):  # never set
                state[name] = slot.__get__(self)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Past all checks and properties; what has no place here any more is left out."""
        slots = _slots(type(self))
        if hasattr(self, "__dict__"):
            self.__dict__.update({k: v for k, v in state.items() if k not in slots})
        for name, slot in slots.items():
            if name in state:
                slot.__set__(self, state[name])


def _slots(cls: type) -> dict[str, MemberDescriptorType]:
    """What holds the values of ``__slots__`` of a class and its bases, by name."""
    return {
        name: slot
        for base in reversed(cls.__mro__)
        for name, slot in vars(base).items()
        if isinstance(slot, MemberDescriptorType)
    }
