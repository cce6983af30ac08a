"""Names of other libraries, and what they are called here.

Functions collect keywords that they do not have in ``**foreign``, which costs a call a hundredth
of its time, so that who knows batch normalization by other names is told fastbn's.
"""

import difflib
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, NoReturn, TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])

_AXIS = "axis", "axis=-1 says that channels are last, axis=1 (the default) that they come first"
_MODE = "", "a layer goes by its mode, train() or eval(), the functions by training=True or False"
_AFFINE = "affine", "affine=False makes a layer without weight and bias"
#: A name of elsewhere: what it is called here, and what to say of that if its name is not enough.
#: The first that the function has is told.
_ELSEWHERE: dict[str, tuple[tuple[str, str], ...]] = {
    **dict.fromkeys(("channel_axis", "channel_dim", "channels_last", "data_format"), (_AXIS,)),
    **dict.fromkeys(("data_layout", "dim", "feature_axis", "layout", "memory_format"), (_AXIS,)),
    **dict.fromkeys(("deterministic", "is_training", "train", "training"), (_MODE,)),
    **dict.fromkeys(("use_global_stats", "use_input_stats", "use_running_average"), (_MODE,)),
    "beta": (("bias", ""),),
    "channels": (("num_features", ""),),
    "center": (("affine", "bias=False makes a layer without bias"), ("bias", "")),
    "decay": (("momentum", "momentum is the weight of the new batch, 1 - decay"),),
    "epsilon": (("eps", ""),),
    "features": (("num_features", ""),),
    "gamma": (("weight", ""), _AFFINE),
    "in_channels": (("num_features", ""),),
    "inplace": (("out", "out=x works in place"),),
    "input": (("x", ""),),
    "inputs": (("x", ""),),
    "moving_mean": (("running_mean", ""),),
    "moving_variance": (("running_var", ""),),
    "num_channels": (("num_features", ""),),
    "running_variance": (("running_var", ""),),
    "scale": (("weight", ""), _AFFINE),
}


def hide_foreign(function: _F) -> _F:
    """Decorator: signatures are shown, by `help` and others, without ``**foreign``."""
    shown = inspect.signature(function)
    names = [parameter for name, parameter in shown.parameters.items() if name != "foreign"]
    function.__signature__ = shown.replace(parameters=names)  # type: ignore[attr-defined]
    return function


def refuse(function: Callable, foreign: Mapping[str, object]) -> NoReturn:
    """Raise the TypeError of keywords that a function or class does not have."""
    name = next(iter(foreign))
    known = [k for k in inspect.signature(function).parameters if k != "self"]
    raise TypeError(f"{function.__qualname__} has no argument {name!r}{hint(name, known)}")


def hint(name: str, known: Collection[str]) -> str:
    """What a name is called here, after a semicolon; nothing if nobody knows."""
    for here, sentence in _ELSEWHERE.get(name, ()):
        if here in known or not here:
            return f"; {sentence or f'here it is {here}'}"
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
