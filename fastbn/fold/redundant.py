"""Biases that the batch norm behind them takes away, found by what a checkpoint's numbers say."""

from __future__ import annotations  # so that `help` shows types as they are written here

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from fastbn.kernels import formulas
from fastbn.layers.names import BIAS, MEAN, VAR, WEIGHT

__all__ = ["RedundantBias", "redundant_biases"]

#: Degrees of freedom that a reading needs, and the standard error that makes it a measurement.
_ENOUGH, _SHARP = 16, 0.1
#: With fewer channels, means above zero are chance and not a ReLU.
_MANY = 8
#: eps of most layers; a state dict does not have it.
_EPS = 1e-5


class RedundantBias(NamedTuple):
    """A bias that a batch norm takes away again, and how sure that is."""

    #: Key of the bias in the state dict.
    bias: str
    #: Prefix of the batch norm behind it, e.g. ``"bn1"``.
    norm: str
    #: "measured": the numbers show it. "likely": the norm is next in the state dict, and its
    #: numbers agree. "possible": it is next, and its numbers say nothing.
    certainty: Literal["measured", "likely", "possible"]
    #: How much of the bias is in ``running_mean``, 1 if it all is, and the standard error of that
    #: estimate; NaN and infinity where the numbers do not tell.
    carried: float
    error: float
    #: By how much an output in evaluation moves at most if the bias is left out, and running_mean
    #: not corrected (with eps 1e-5).
    effect: float
    #: ``running_mean`` for the network without the bias: ``running_mean - bias``.
    running_mean: np.ndarray
    #: What to do, in words.
    advice: str


class _Map(NamedTuple):
    """A convolution or linear layer, and where in the state dict it stands."""

    place: int
    weight: str
    bias: str
    channels: int


class _Norm(NamedTuple):
    """A batch norm, and where in the state dict it stands."""

    place: int
    prefix: str
    channels: int


class _Reading(NamedTuple):
    """How much of a bias is in a running mean, and the standard error of that."""

    carried: float = math.nan
    error: float = math.inf

    @property
    def shows_it(self) -> bool:
        """All of the bias is there, and that is no chance."""
        return self.error <= _SHARP and abs(self.carried - 1) <= 3 * self.error + 0.01

    @property
    def speaks_against(self) -> bool:
        """Much more or less of it is there."""
        return abs(self.carried - 1) > 4 * self.error + 0.01


def redundant_biases(state: Mapping[str, Any]) -> list[RedundantBias]:
    """Biases of convolutions and linear layers that a batch norm behind them takes away.

    Batch norm subtracts the mean, and a bias before it is a part of that mean: it changes no output
    in training, has no gradient, and costs memory and time for nothing. In evaluation it is the
    ``running_mean`` that takes it away, so that one has to change when a bias goes::

        for found in redundant_biases(state):
            state[found.norm + ".running_mean"] = found.running_mean
            del state[found.bias]       # and make the convolution with bias=False

    **What the numbers say.** A state dict does not tell which norm is behind which convolution. But
    the mean of what a convolution gives is ``running_mean = weight @ m + bias``, with the unknown
    means ``m`` of its input at each place of the kernel. If there are fewer of them than output
    channels, the rest of the equations tells how much of the bias is in ``running_mean``: they are
    solved for ``m`` and the factor of ``bias`` together, by least squares. If there are too many,
    the same is tried with one mean for each input channel, and with one for all, where what that
    does not explain counts as noise and makes the error larger. Behind a norm that takes all of it
    away the factor is 1. With a ReLU in between it is smaller, and with another norm it is 0.

    - "measured": that factor is 1 within three standard errors, of 0.1 at most, wherever in the
      state dict the norm stands.
    - "likely": the norm is the next module in the state dict, which is the order in which a network
      was written down; its means have both signs, as those behind a ReLU have not; and the factor
      does not contradict.
    - "possible": as before, but there are too few channels for the signs to say something, or the
      norm has never been trained.
    - Left out: everything else; so a convolution, then ReLU, then a norm.

    A list is no proof. What the numbers cannot see is a second reader of the convolution's output,
    or an activation that keeps signs, such as leaky ReLU. Compare an output before and after.

    Parameters
    ----------
    state : mapping of str to array
        With torch's names: ``conv1.weight``, ``conv1.bias``, ``bn1.running_mean``, ... Values
        may be tensors on the CPU.

    Returns
    -------
    list of RedundantBias
        In the order of ``state``; empty if there are none.

    Raises
    ------
    TypeError
        If ``state`` is not a mapping with strings as keys.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> rng = np.random.default_rng(0)
    >>> weight, bias = rng.normal(size=(64, 8)), rng.normal(size=64)
    >>> bn = fastbn.BatchNorm1d(64, momentum=None)
    >>> for _ in range(10):                                 # a network, without its training
    ...     _ = bn(rng.normal(1, 1, (32, 8)).astype(np.float32) @ weight.T + bias)
    >>> state = {"fc.weight": weight, "fc.bias": bias, **bn.state_dict("bn.")}
    >>> found, = fastbn.fold.redundant_biases(state)
    >>> found.bias, found.norm, found.certainty, round(found.carried, 3)
    ('fc.bias', 'bn', 'measured', 1.0)
    """
    maps, norms = _modules(state)
    found = []
    for each in maps:
        fitting = [norm for norm in norms if norm.channels == each.channels]
        if fitting:
            weight, bias = _array(state, each.weight), _array(state, each.bias)
            means = [_array(state, _key(norm.prefix, MEAN)) for norm in fitting]
            readings = _readings(weight, bias, means)
            chosen = _chosen(each, fitting, readings, state)
            if chosen is not None:
                found.append(_described(state, each, bias, *chosen))
    return found


def _modules(state: Any) -> tuple[list[_Map], list[_Norm]]:
    """What there is in a state dict, by shapes, in its order."""
    if not isinstance(state, Mapping):
        raise TypeError(f"state must be a mapping of names to arrays, got {type(state).__name__}")
    names: dict[str, set[str]] = {}
    for key in state:
        if not isinstance(key, str):
            raise TypeError(f"keys of state must be strings, got {key!r}")
        prefix, _, name = key.rpartition(".")
        names.setdefault(prefix, set()).add(name)
    maps, norms = [], []
    for place, (prefix, found) in enumerate(names.items()):
        if {MEAN, VAR} <= found:
            channels = np.shape(state[_key(prefix, MEAN)])
            if len(channels) == 1:
                norms.append(_Norm(place, prefix, channels[0]))
        elif {WEIGHT, BIAS} <= found:
            weight, bias = _key(prefix, WEIGHT), _key(prefix, BIAS)
            shape, channels = np.shape(state[weight]), np.shape(state[bias])
            if len(shape) >= 2 and len(channels) == 1 and _belongs(shape, channels[0]):
                maps.append(_Map(place, weight, bias, channels[0]))
    return maps, norms


def _belongs(shape: tuple[int, ...], channels: int) -> bool:
    """Whether a weight may have so many outputs; a transposed one has its groups in them."""
    if shape[0] == channels > 0:
        return True
    groups, rest = divmod(channels, max(shape[1], 1))
    return len(shape) > 2 and rest == 0 and groups > 0 and shape[0] % groups == 0


def _key(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _array(state: Mapping[str, Any], key: str) -> np.ndarray:
    return np.asarray(state[key]).astype(np.float64)


# --- which norm -----------------------------------------------------------------------------------


def _chosen(
    each: _Map, norms: list[_Norm], readings: list[_Reading], state: Mapping[str, Any]
) -> tuple[_Norm, _Reading, Literal["measured", "likely", "possible"]] | None:
    """The norm that takes the bias away, if there is one, and how sure that is."""
    shown = [pair for pair in zip(norms, readings, strict=True) if pair[1].shows_it]
    if shown:
        return *min(shown, key=lambda pair: pair[1].error), "measured"
    for norm, reading in zip(norms, readings, strict=True):
        if norm.place == each.place + 1 and not reading.speaks_against:
            mean = _array(state, _key(norm.prefix, MEAN))
            var = _array(state, _key(norm.prefix, VAR))
            if not mean.any() and (var == 1).all():  # never trained
                return norm, _Reading(), "possible"
            if mean.min() < 0:
                return norm, reading, "likely"
            if mean.size < _MANY:
                return norm, reading, "possible"
    return None


def _described(
    state: Mapping[str, Any],
    each: _Map,
    bias: np.ndarray,
    norm: _Norm,
    reading: _Reading,
    certainty: Literal["measured", "likely", "possible"],
) -> RedundantBias:
    mean_key, scale_key = _key(norm.prefix, MEAN), _key(norm.prefix, WEIGHT)
    kept = np.asarray(state[mean_key])
    scale = _array(state, scale_key) if scale_key in state else np.ones(bias.size)
    var = _array(state, _key(norm.prefix, VAR))
    with np.errstate(invalid="ignore"):
        effect = np.abs(bias * scale * formulas.reciprocal_std(var, _EPS)).max()
    check = "" if certainty == "measured" else ", and compare an output before and after"
    return RedundantBias(
        each.bias, norm.prefix, certainty, reading.carried, reading.error, float(effect),
        (kept.astype(np.float64) - bias).astype(kept.dtype),
        f"leave {each.bias!r} out and subtract it from {mean_key!r}{check}",
    )  # fmt: skip


# --- what the numbers say -------------------------------------------------------------------------


def _readings(weight: np.ndarray, bias: np.ndarray, means: list[np.ndarray]) -> list[_Reading]:
    """How much of a bias is in each of some running means."""
    best = [_Reading()] * len(means)
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        return best
    for design in _designs(weight, bias.size):
        basis = _basis(design)
        own = bias - basis @ (basis.T @ bias)  # what the means of the input cannot explain
        freedom = bias.size - basis.shape[1] - 1
        if freedom < _ENOUGH or own @ own <= 1e-12 * (bias @ bias):
            continue
        for k, mean in enumerate(means):
            if np.isfinite(mean).all() and mean.any():
                rest = mean - basis @ (basis.T @ mean)
                carried = (own @ rest) / (own @ own)
                noise = np.sum((rest - carried * own) ** 2) / freedom
                noise += (6e-8 * np.abs(mean).max()) ** 2  # float32
                reading = _Reading(float(carried), math.sqrt(noise / (own @ own)))
                best[k] = min(best[k], reading, key=lambda r: r.error)
    return best


def _designs(weight: np.ndarray, channels: int) -> Iterator[np.ndarray]:
    """What the means of the input are multiplied with: a row for each output channel.

    A column for each place in the kernel, one for each input channel, and one for all of them.
    """
    if weight.shape[0] != channels:  # transposed: (in, out / groups, *kernel)
        groups = channels // weight.shape[1]
        weight = weight.reshape(groups, -1, *weight.shape[1:])
        weight = weight.swapaxes(1, 2).reshape(channels, -1, *weight.shape[3:])
    every = weight.reshape(channels, -1)
    each = weight.reshape(*weight.shape[:2], -1).sum(2)
    for design in (every, each, each.sum(1, keepdims=True)):
        if design.shape[1] + 1 + _ENOUGH <= channels:
            yield design


def _basis(design: np.ndarray) -> np.ndarray:
    """Orthonormal columns that span those of ``design``."""
    left, sizes, _ = np.linalg.svd(design, full_matrices=False)
    return left[:, sizes > 1e-12 * sizes.max(initial=0.0)]
