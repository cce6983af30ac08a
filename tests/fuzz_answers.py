"""What should come of a call that the fuzzer makes, from the reference."""

import numpy as np

from tests import reference
from tests.fuzz_arguments import Wrong
from tests.reference import other_axes, per_channel


def close(what, actual, expected, bound, axis=None):
    """As in test_properties, without importing pytest."""
    expected = np.asarray(expected, np.longdouble)
    if actual.shape != expected.shape:
        raise Wrong(f"{what} has shape {actual.shape}, expected {expected.shape}")
    info = np.finfo(actual.dtype)
    rounded = expected.astype(info.dtype)
    bound = np.asarray(bound, np.longdouble) + 8 * info.smallest_subnormal
    if axis is not None:
        bound = per_channel(bound, expected.ndim, axis)
    right = np.abs(actual - expected) <= bound
    right |= ~np.isfinite(rounded) & ((actual == rounded) | (np.isnan(actual) & np.isnan(rounded)))
    if not right.all():
        where = tuple(int(k) for k in np.argwhere(~right)[0])
        raise Wrong(f"{what}{list(where)} is {actual[where]!r}, expected {expected[where]!r}")


def top(values, axis):
    values = np.abs(np.where(np.isfinite(values), values, 0))
    return values.max(other_axes(values.ndim, axis), initial=0)


class Answer:
    """What the reference makes of one forward call."""

    def __init__(self, x, v, batch, momentum, eps, axis):
        x = np.array(x, np.longdouble)
        self.x, self.axis, self.batch, self.eps = x, axis, batch, eps
        c = x.shape[axis]
        self.unit = v["unit"]
        self.weight = np.ones(c) if v["weight"] is None else v["weight"].astype(float)
        bias = np.zeros(c) if v["bias"] is None else v["bias"].astype(float)
        if batch:
            self.mean, self.var = reference.mean_and_var(x, axis)
        else:
            self.mean, self.var = (
                v[k].astype(np.longdouble) for k in ("running_mean", "running_var")
            )
        self.rstd = 1 / np.sqrt(self.var + eps)
        self.reach = top(x - per_channel(self.mean, x.ndim, axis), axis)
        self.lost = 1e-15 * np.abs(self.mean) + 1e-323 if batch else 0 * self.mean
        self.y = reference.normalize(x, self.mean, self.var, self.weight, bias, eps, axis)
        gain = np.abs(self.weight) * self.rstd
        self.y_bound = gain * (self.unit * self.reach + self.lost) + self.unit * np.abs(bias)

    def check_running(self, before, after, momentum):
        if momentum == 0:
            momentum = 0.0
        m = self.x.size // self.x.shape[self.axis]
        mean, var = reference.running_step(*before, self.x, momentum, self.axis)
        u = max(4 * np.finfo(v.dtype).eps for v in after)
        bound = abs(momentum) * (self.unit * self.reach + self.lost)
        size = np.abs(before[0]) + np.abs(self.mean * momentum)
        close("running_mean", after[0], mean, bound + u * size)
        bound = self.unit * self.var + 2 * self.lost * (self.reach + self.lost)
        size = np.abs(before[1]) * abs(1 - momentum) + np.abs(var)
        close("running_var", after[1], var, abs(momentum) * bound * m / (m - 1) + u * size)

    def check_gradients(self, grads, dy, cache_of):
        dy = np.array(dy, np.longdouble)
        axis, x = self.axis, self.x
        expected = reference.backward(
            dy, x, self.mean, self.var, self.weight, self.eps, axis, self.batch
        )
        axes = other_axes(x.ndim, axis)
        x_hat = (x - per_channel(self.mean, x.ndim, axis)) * per_channel(self.rstd, x.ndim, axis)
        off = 4 * (self.unit * self.reach + self.lost) * self.rstd
        sum_dy, product = np.abs(dy).sum(axes), np.abs(dy * x_hat).sum(axes)
        m, reach = x.size // x.shape[axis], self.reach * self.rstd
        weight = off * sum_dy + self.unit * product
        if self.unit > 1e-9:  # float32 has few digits left below its smallest normal number
            weight = weight + 1e-3 * np.finfo(np.float32).tiny
        dx = self.unit * top(dy, axis)
        if self.batch:
            dx = dx + (self.unit * sum_dy + reach * weight + off * product) / m
            dx = dx + 4 * self.unit * reach * product / m
            # rstd cubed is 0 there, and with it the part of dx that x_hat has
            lost = self.rstd < (1e-34 if self.unit > 1e-9 else 1e-150)
            dx = dx + np.where(lost, 2 * reach * product / m, 0)
        bounds = 2 * np.abs(self.weight) * self.rstd * dx, weight, self.unit * sum_dy
        for name, a, e, b in zip(
            ("dx", "d_weight", "d_bias"), grads, expected, bounds, strict=True
        ):
            if (a is None) != (cache_of.get(name) is None and name != "dx"):
                raise Wrong(f"{name} is {a}")
            if a is not None:
                close(name, np.asarray(a), e, b, axis if name == "dx" else None)
