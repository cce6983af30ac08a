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
_LAST = (
    "normalized_shape", "normalized_shape has the sizes of the last axes, which are normalized"
)  # fmt: skip
_AFFINE = "affine", "affine=False makes a layer without weight and bias"
_ELEMENTWISE = (
    "elementwise_affine", "elementwise_affine=False makes a layer without weight and bias"
)  # fmt: skip
_NO_BIAS = "bias", "bias=False makes a layer without bias"
_CHANNELS = ("num_features", ""), ("num_channels", ""), _LAST
_LIMITS = "r_max", "r_max and d_max are the limits, each a number or a callable of the step"
#: A name of elsewhere: what it is called here, and what to say of that if its name is not enough.
#: The first that the function has is told.
_ELSEWHERE: dict[str, tuple[tuple[str, str], ...]] = {
    **dict.fromkeys(("channel_axis", "channel_dim", "channels_last", "data_format"), (_AXIS,)),
    **dict.fromkeys(("axes", "axis", "dim", "dims", "feature_axis"), (_AXIS, _LAST)),
    **dict.fromkeys(("begin_norm_axis", "feature_axes", "reduction_axes"), (_AXIS, _LAST)),
    **dict.fromkeys(("data_layout", "layout", "memory_format"), (_AXIS,)),
    **dict.fromkeys(("deterministic", "is_training", "train", "training"), (_MODE,)),
    **dict.fromkeys(("use_global_stats", "use_input_stats", "use_running_average"), (_MODE,)),
    **dict.fromkeys(("channels", "features", "in_channels"), _CHANNELS),
    **dict.fromkeys(("hidden_size", "num_channels", "num_features"), _CHANNELS),
    **dict.fromkeys(("act", "activation_fn", "act_layer", "nonlinearity"), (("activation", ""),)),
    **dict.fromkeys(("add", "identity", "shortcut", "skip"), (("residual", ""),)),
    **dict.fromkeys(("group", "groups", "ngroups"), (("num_groups", ""),)),
    "affine": (("elementwise_affine", ""),),
    "beta": (("bias", ""),),
    "center": (("affine", _NO_BIAS[1]), ("bias", "")),
    "decay": (("momentum", "momentum is the weight of the new batch, 1 - decay"),),
    "elementwise_affine": (("affine", ""),),
    "epsilon": (("eps", ""),),
    "gamma": (("weight", ""), _AFFINE, _ELEMENTWISE),
    "inplace": (("out", "out=x works in place"),),
    "input": (("x", ""),),
    "inputs": (("x", ""),),
    "moving_mean": (("running_mean", ""),),
    "moving_variance": (("running_var", ""),),
    "process_group": (("comm", "comm has the ranks: a communicator of mpi4py"),),
    "renorm": (_LIMITS, ("momentum", "BatchRenorm1d, 2d and 3d are layers of their own")),
    "renorm_clipping": (_LIMITS, ("momentum", "BatchRenorm1d, 2d and 3d have r_max and d_max")),
    "renorm_momentum": (("momentum", ""),),
    "running_variance": (("running_var", ""),),
    "scale": (("weight", ""), _AFFINE, _ELEMENTWISE),
    "use_bias": (_NO_BIAS,),
    "use_scale": (("weight", ""), _AFFINE, _ELEMENTWISE),
}

_NO_RESIDUAL = "norms of samples take none; add it to the output"
#: What batch norm takes and norms of samples do not, and what to do instead.
_OF_BATCH_NORM = {
    **dict.fromkeys(("residual", "add", "identity", "shortcut", "skip"), _NO_RESIDUAL),
    "activation": "norms of samples take none; apply it to the output",
    "mask": (
        "norms of samples take none, because padding changes only the sample that has it: "
        "normalize such a sample by itself without its padding, x[i:i + 1, :, :length]; a layer or "
        "RMS norm over the features alone needs no mask"
    ),
}


def hide_foreign(function: _F) -> _F:
    """Decorator: signatures are shown, by `help` and others, without ``**foreign``."""
    shown = inspect.signature(function)
    names = [parameter for name, parameter in shown.parameters.items() if name != "foreign"]
    function.__signature__ = shown.replace(parameters=names)  # type: ignore[attr-defined]
    return function


def refuse(function: Callable, foreign: Mapping[str, object], *, norm: bool = False) -> NoReturn:
    """Raise the TypeError of keywords that a function or class does not have.

    ``norm``: of a function that normalizes each sample by itself.
    """
    name = next(iter(foreign))
    known = [k for k in inspect.signature(function).parameters if k != "self"]
    raise TypeError(f"{function.__qualname__} has no argument {name!r}{_way(name, known, norm)}")


def refuse_call(
    layer: object, foreign: Mapping[str, object], known: Collection[str], *, norm: bool = False
) -> NoReturn:
    """The same of a call of a layer, whose class may be that of a base."""
    name = next(iter(foreign))
    kind = type(layer).__name__
    raise TypeError(f"a call of {kind} has no argument {name!r}{_way(name, known, norm)}")


def _way(name: str, known: Collection[str], norm: bool) -> str:
    if norm and name in _OF_BATCH_NORM:
        return f"; {_OF_BATCH_NORM[name]}"
    return hint(name, known)


def hint(name: str, known: Collection[str]) -> str:
    """What a name is called here, after a semicolon; nothing if nobody knows."""
    for here, sentence in _ELSEWHERE.get(name, ()):
        if here in known or not here:
            return f"; {sentence or f'here it is {here}'}"
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
