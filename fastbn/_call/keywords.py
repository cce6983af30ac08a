"""Keywords of other libraries, and what they are called here.

Functions collect what they do not know in ``**foreign``, which costs a call a hundredth of its
time, so that somebody who knows batch normalization by other names is told fastbn's.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import NoReturn

_AXIS = "axis=-1 says that channels are last, axis=1 (the default) that they come first"
_MODE = "a layer goes by its mode, train() or eval(), the functions by training=True or False"
_SCALE = "gamma is weight; affine=False makes a layer without weight and bias"
_ELSEWHERE = {
    "channels_last": _AXIS,
    "channel_axis": _AXIS,
    "channel_dim": _AXIS,
    "data_format": _AXIS,
    "data_layout": _AXIS,
    "dim": _AXIS,
    "feature_axis": _AXIS,
    "layout": _AXIS,
    "memory_format": _AXIS,
    "deterministic": _MODE,
    "is_training": _MODE,
    "train": _MODE,
    "training": _MODE,
    "use_global_stats": _MODE,
    "use_input_stats": _MODE,
    "use_running_average": _MODE,
    "beta": "use bias",
    "center": "bias=False makes a layer without bias",
    "gamma": _SCALE,
    "scale": _SCALE,
    "decay": "use momentum, the weight of the new batch: momentum = 1 - decay",
    "epsilon": "use eps",
    "features": "use num_features",
    "num_channels": "use num_features",
    "in_channels": "use num_features",
    "inplace": "use out=x",
    "input": "use x",
    "inputs": "use x",
    "moving_mean": "use running_mean",
    "moving_variance": "use running_var",
    "running_variance": "use running_var",
}


def refuse(what: str, foreign: Mapping[str, object], known: Iterable[str]) -> NoReturn:
    """Raise the TypeError of unexpected keywords, with what they are called here."""
    name = next(iter(foreign))
    hint = _ELSEWHERE.get(name) or did_you_mean(name, known)
    raise TypeError(f"{what} has no argument {name!r}" + (f"; {hint}" if hint else ""))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question that names the nearest of ``known``; nothing if none is near."""
    near = difflib.get_close_matches(name, [k for k in known if not k.startswith("_")], n=1)
    return f"did you mean {near[0]!r}?" if near else ""
