"""What a trained batch norm does to each channel, of arrays that nobody has checked."""

from __future__ import annotations  # so that `help` shows types as they are written here

from typing import Any, NamedTuple

import numpy as np

from fastbn._call.settings import check_eps
from fastbn.checkpoint import files
from fastbn.checkpoint.contents import Norm
from fastbn.checkpoint.layers import counter_of
from fastbn.checkpoint.loading import checkpoint_of, nothing_found
from fastbn.checkpoint.prefixes import named
from fastbn.checkpoint.recognize import norms_of
from fastbn.kernels import formulas
from fastbn.layers.names import COUNTER

_NEEDED = ("running_mean", "running_var")
_ARRAYS = (*_NEEDED, "weight", "bias")


class ChannelTerms(NamedTuple):
    """A layer's arrays in float64, and what its evaluation makes of them, channel by channel.

    Attributes
    ----------
    name : of the layer
    mean, var : the running statistics; empty where there are none
    weight, bias : ones and zeros where the layer has none
    scale, shift : evaluation computes ``x * scale + shift``; both are empty where ``invalid``
    eps : the caller's, the file's, or 1e-5 (1e-3 for names of Keras)
    eps_assumed : whether neither the caller nor the file has said it
    invalid : why there can be no such layer, in words: an array is missing, or has another shape
        or dtype than a batch norm's; empty for a valid one
    """

    name: str
    mean: np.ndarray
    var: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    scale: np.ndarray
    shift: np.ndarray
    eps: float
    eps_assumed: bool
    invalid: str


def channel_terms(source: Any, *, prefix: str = "", eps: float | None = None) -> list[ChannelTerms]:
    """What every batch norm of a checkpoint multiplies by and adds, for looking at it.

    ``scale = weight / sqrt(running_var + eps)``, ``shift = bias - running_mean * scale``, in
    float64. NaN, infinity and negative variances come as they are.

    Parameters
    ----------
    source : path or mapping
        As `load_batch_norms` takes it.
    prefix : str
        Only layers whose names begin with it; it is left off.
    eps : float, optional
        For all layers. By default the file's, or 1e-5.

    Returns
    -------
    list of ChannelTerms
        One for each layer, in the order of the file.

    Raises
    ------
    TypeError, ValueError, OSError
        If ``source`` cannot be read or has no such layer, as `load_batch_norms` says, or ``eps``
        is not positive.

    Examples
    --------
    >>> import fastbn
    >>> from fastbn.checkpoint import channel_terms
    >>> bn = fastbn.BatchNorm2d(2, eps=1e-3)
    >>> bn.bias[:] = 3
    >>> (terms,) = channel_terms(bn.state_dict(prefix="bn1."), eps=1e-3)
    >>> terms.scale.round(4), terms.shift
    (array([0.9995, 0.9995]), array([3., 3.]))
    """
    return [terms_of(norm, eps) for norm in norms_below(source, prefix, eps)]


def norms_below(source: Any, prefix: str, eps: float | None) -> list[Norm]:
    """The batch norms whose names begin with a prefix, named without it; arguments are checked."""
    if not isinstance(prefix, str):
        raise TypeError(f"prefix must be a string, got {prefix!r}")
    if eps is not None:
        check_eps(eps)
    with files.naming(source):
        checkpoint = checkpoint_of(source)
        norms = norms_of(checkpoint)
        found = [norm._replace(name=name) for name, norm in named(norms, prefix).items()]
        if not found:
            raise ValueError(nothing_found(checkpoint, norms, prefix))
    return found


def terms_of(norm: Norm, eps: float | None = None) -> ChannelTerms:
    """Of one batch norm."""
    assumed = eps is None and (norm.eps is None or norm.eps_assumed)
    eps = next((each for each in (eps, norm.eps) if each is not None), 1e-5)
    arrays = {name: np.asarray(norm.arrays[name]) for name in _ARRAYS if name in norm.arrays}
    invalid = norm.invalid or _invalid(arrays, eps) or _unloadable(norm)
    numbers = {name: _numbers(array) for name, array in arrays.items()}
    mean, var = (numbers.get(name, np.empty(0)) for name in _NEEDED)
    weight = numbers.get("weight", np.ones_like(mean))
    bias = numbers.get("bias", np.zeros_like(mean))
    scale = shift = np.empty(0)
    if not invalid:
        with np.errstate(all="ignore"):
            scale = weight * formulas.reciprocal_std(var, eps)
            shift = bias - mean * scale
    return ChannelTerms(norm.name, mean, var, weight, bias, scale, shift, eps, assumed, invalid)


def _invalid(arrays: dict[str, np.ndarray], eps: Any) -> str:
    """Why the arrays and eps are none of a batch norm, values aside."""
    for name in _NEEDED:
        if name not in arrays:
            return f"no {name}"
    for name, array in arrays.items():
        if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
            return f"{name} of dtype {array.dtype}"
    shapes = {name: array.shape for name, array in arrays.items()}
    channels = shapes["running_mean"]
    if len(channels) != 1 or channels == (0,) or len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        return f"arrays that are not all of one shape (C,): {listed}"
    try:
        check_eps(eps)
    except (TypeError, ValueError):
        return f"eps {eps!r}"
    return ""


def _unloadable(norm: Norm) -> str:
    """What else `load_batch_norms` refuses of arrays that fit together."""
    if "bias" in norm.arrays and "weight" not in norm.arrays and not norm.scale_left_out:
        return "a bias and no weight"
    if COUNTER in norm.arrays:
        try:
            counter_of(norm.name, np.asarray(norm.arrays[COUNTER]))
        except ValueError as error:
            return str(error).removeprefix(f"{norm.name}.")
    return ""


def _numbers(array: np.ndarray) -> np.ndarray:
    """Flat, in float64; empty where the dtype has no such numbers."""
    if array.dtype.kind in "cSUOMm":
        return np.empty(0)
    try:
        return array.astype(np.float64).reshape(-1)
    except (TypeError, ValueError):
        return np.empty(0)
