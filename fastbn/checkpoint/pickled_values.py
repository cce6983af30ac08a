"""What a pickle is made of as it is read: what stands for a name, and what may be a key."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

#: What may be a key of a dictionary: hashing it takes no time and no stack.
_PLAIN = (str, int, float, bytes, type(None))


class Machine(Protocol):
    """What reads the pickle, as far as functions that stand for names see it."""

    def charge(self, steps: int) -> None:
        """Count work, and refuse a pickle that makes too much of it."""


class Builder(NamedTuple):
    """What is called in a pickle: a function of ours that takes the machine and the arguments."""

    name: str
    build: Callable[..., Any]


class Constant(NamedTuple):
    """What is only named: a dtype, a kind of storage, or a type; ``dtype`` None: no dtype."""

    name: str
    dtype: str | None
    storage: bool = False


def checked_key(key: Any) -> Any:
    """A key of a dictionary or member of a set, if it is a plain one."""
    flat = type(key) is tuple and len(key) < 100 and all(isinstance(k, _PLAIN) for k in key)
    if not flat and not isinstance(key, _PLAIN):
        raise ValueError(f"the pickle has a key that is neither text nor a number: {named(key)}")
    return key


def named(value: Any) -> str:
    """What a message says of a value; never its `repr`, which may be endless."""
    known = isinstance(value, (Builder, Constant))
    return value.name if known else f"a value of type {type(value).__name__}"
