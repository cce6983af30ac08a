"""What follows normalizing in the same pass: a residual that is added, then an activation."""

import difflib
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from fastbn._call import arguments, settings
from fastbn.kernels.activations import FUSED, UNFUSED, Names

#: gelu is the one in its tanh form.
Activation = Literal[
    "relu", "relu6", "leaky_relu", "hardswish", "silu", "sigmoid", "tanh", "gelu_tanh"
]


class Epilogue(NamedTuple):
    """``y = act(z)``, with ``z`` the normalized x, plus the residual if there is one."""

    activation: str | None = None
    #: Of leaky_relu, for negative numbers.
    negative_slope: float = 0.01
    residual: Any = None

    @property
    def names(self) -> Names:
        """Those of its operations; `UNFUSED` if there is nothing to do."""
        return FUSED.get((self.activation, self.residual is not None), UNFUSED)


#: Nothing follows.
NOTHING = Epilogue()


def check_activation(value: Any) -> str | None:
    """One of the names, or None."""
    if value is None or (isinstance(value, str) and value in get_args(Activation)):
        return value
    way = ""
    if value == "gelu":
        way = "; 'gelu_tanh' is gelu in its tanh form"
    elif isinstance(value, str):
        plain = value.lower().replace("_", "")
        here = {"swish": "silu", "hswish": "hardswish", "leakyrelu": "leaky_relu"}.get(plain)
        near = difflib.get_close_matches(plain, get_args(Activation), n=1)
        way = f"; here it is {here or near[0]!r}" if here or near else ""
    elif callable(value):
        way = "; call it on the output"
    raise ValueError(
        f"activation must be None or one of {', '.join(get_args(Activation))}, got {value!r}{way}"
    )


def checked(activation: Any, negative_slope: Any, residual: Any, x: np.ndarray) -> Epilogue:
    """The epilogue of a call on ``x``."""
    slope = settings.check_slope(negative_slope)
    if residual is not None:
        residual = arguments.as_array("residual", residual)
        native = (arguments.native(array.dtype) for array in (residual, x))
        if residual.shape != x.shape or len(set(native)) > 1:
            raise ValueError(
                f"residual has shape {residual.shape} and dtype {residual.dtype}, expected those "
                f"of x, {x.shape} and {x.dtype}; residual.astype(x.dtype) has its dtype"
            )
    return Epilogue(check_activation(activation), slope, residual)


def refuse_with(what: str, x: Any, fused: Any, mask: Any, otherwise: str, batch: bool) -> None:
    """Raise for a residual, an activation or a mask, which only batch norm itself takes.

    ``otherwise`` says who takes a mask; ``batch``: whether ``x`` has an axis of samples.
    """
    if fused is not None:
        raise NotImplementedError(
            f"{what} has no activation and no residual yet; apply them to the output"
        )
    if mask is not None or isinstance(x, np.ma.MaskedArray):
        whole = _of_whole_samples(x, mask) if batch else ""
        way = f"where it leaves out whole samples: {whole}; otherwise " if whole else ""
        raise NotImplementedError(f"{what} takes no mask yet; {way}train {otherwise}")


def _of_whole_samples(x: Any, mask: Any) -> str:
    """How to leave out samples that a mask has something against; nothing if it is not of them."""
    axes = ", ".join(map(str, range(1, np.ndim(x))))
    others = f"axis=({axes})" if np.ndim(x) > 2 else "axis=1"
    if isinstance(x, np.ma.MaskedArray):
        return f"x.data[~np.ma.getmaskarray(x).any({others})]" if mask is None else ""
    if not isinstance(mask, np.ndarray) or mask.shape[:1] != x.shape[:1]:
        return ""
    if mask.ndim == 1:
        return "x[mask]"
    return f"x[mask.all({others})]" if mask.ndim == x.ndim else ""
