"""Convolutions as the textbook has them: NumPy, one place of the kernel at a time, any dimension.

Nothing of fastbn. They compute in the dtype of their arguments: float64 to judge the formulas,
float32 to judge what a network sees.
"""

from itertools import product

import numpy as np


def _tuple(value, dimensions):
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * dimensions


def pad(x, amounts, value):
    """``x`` of shape (N, C, *image) with a border of a value for each channel."""
    amounts = _tuple(amounts, x.ndim - 2)
    shape = [n + 2 * p for n, p in zip(x.shape[2:], amounts, strict=True)]
    border = np.asarray(value, x.dtype).reshape(-1, *[1] * (x.ndim - 2))
    padded = np.empty((*x.shape[:2], *shape), x.dtype)
    padded[...] = border
    inside = tuple(slice(p, p + n) for p, n in zip(amounts, x.shape[2:], strict=True))
    padded[(..., *inside)] = x
    return padded


def conv(x, weight, bias, *, stride=1, padding=0, dilation=1, groups=1, value=0.0):
    """Cross-correlation; ``weight`` is (out, in / groups, *kernel), ``value`` the border's."""
    dimensions = x.ndim - 2
    stride, dilation = _tuple(stride, dimensions), _tuple(dilation, dimensions)
    x = pad(x, padding, value)
    kernel = weight.shape[2:]
    image = [
        (n - d * (k - 1) - 1) // s + 1
        for n, d, k, s in zip(x.shape[2:], dilation, kernel, stride, strict=True)
    ]
    each = weight.shape[0] // groups
    y = np.zeros((x.shape[0], weight.shape[0], *image), x.dtype)
    for group in range(groups):
        some = x[:, group * weight.shape[1] : (group + 1) * weight.shape[1]]
        out = slice(group * each, (group + 1) * each)
        for place in product(*map(range, kernel)):
            seen = tuple(
                slice(p * d, p * d + s * (n - 1) + 1, s)
                for p, d, s, n in zip(place, dilation, stride, image, strict=True)
            )
            taps = weight[(out, slice(None), *place)]
            y[:, out] += np.einsum("ni...,oi->no...", some[(..., *seen)], taps)
    return y if bias is None else y + bias.reshape(-1, *[1] * dimensions)


def conv_transposed(
    x, weight, bias, *, stride=1, padding=0, dilation=1, groups=1, output_padding=0
):
    """Each input value adds its kernel to the output; ``weight`` is (in, out / groups, *kernel)."""
    dimensions = x.ndim - 2
    stride, dilation, padding, output_padding = (
        _tuple(v, dimensions) for v in (stride, dilation, padding, output_padding)
    )
    kernel, each = weight.shape[2:], weight.shape[0] // groups
    image = [
        (n - 1) * s + d * (k - 1) + 1 + extra
        for n, s, d, k, extra in zip(
            x.shape[2:], stride, dilation, kernel, output_padding, strict=True
        )
    ]
    y = np.zeros((x.shape[0], weight.shape[1] * groups, *image), x.dtype)
    for group in range(groups):
        some = slice(group * each, (group + 1) * each)
        out = slice(group * weight.shape[1], (group + 1) * weight.shape[1])
        for place in product(*map(range, kernel)):
            hit = tuple(
                slice(p * d, p * d + s * (n - 1) + 1, s)
                for p, d, s, n in zip(place, dilation, stride, x.shape[2:], strict=True)
            )
            taps = weight[(some, slice(None), *place)]
            y[(slice(None), out, *hit)] += np.einsum("ni...,io->no...", x[:, some], taps)
    inside = tuple(slice(p, n - p) for p, n in zip(padding, image, strict=True))
    y = y[(..., *inside)]
    return y if bias is None else y + bias.reshape(-1, *[1] * dimensions)
