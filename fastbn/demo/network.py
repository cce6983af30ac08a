"""A small convolutional network in plain NumPy, with or without batch normalization.

Every layer has ``forward(x) -> y`` and ``backward(dy) -> dx``; ``parameters`` are its
arrays, and after a backward ``gradients`` are theirs, in the same order. A layer
remembers what its backward needs of the last forward. Images are (N, H, W, C), so that
channels are last for batch norm as they are in (N, C).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from fastbn.functional import Gradients
from fastbn.layers import BatchNorm1d, BatchNorm2d

__all__ = [
    "SGD",
    "BatchNorm",
    "Conv2d",
    "Flatten",
    "Layer",
    "Linear",
    "MeanPool2d",
    "Network",
    "ReLU",
    "convolutional_network",
    "cross_entropy",
]


class Layer(ABC):
    """What all layers have in common."""

    def __init__(self, *parameters: np.ndarray | None) -> None:
        self.parameters = [p for p in parameters if p is not None]
        self.gradients: list[np.ndarray] = []

    @abstractmethod
    def forward(self, x: np.ndarray) -> np.ndarray:
        """Output of the layer."""

    @abstractmethod
    def backward(self, dy: np.ndarray) -> np.ndarray:
        """Gradient in the last forward's x, given the one in its output."""


class Conv2d(Layer):
    """3x3 convolution (cross-correlation, as in every framework), zero-padded: H and W stay.

    The weight is (3, 3, in_channels, out_channels). Every 3x3 patch is laid out as a
    row ("im2col"), which turns the convolution of an image into a matrix product.

    One product for each image rather than one for all: these are so small that a BLAS
    does them on one core. Larger ones it hands to all cores and then waits for them:
    where other programs kept these busy, that took up to thirty times as long.
    """

    def __init__(self, weight: np.ndarray, bias: np.ndarray | None) -> None:
        super().__init__(weight, bias)
        self.weight, self.bias = weight, bias

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Output, (N, H, W, out_channels)."""
        self._patches = _patches(x)
        y = _product(self._patches, self.weight, x.shape)
        if self.bias is not None:
            y += self.bias
        return y

    def backward(self, dy: np.ndarray) -> np.ndarray:
        """Gradient in x; fills `gradients`."""
        dy_rows = dy.reshape(len(dy), -1, dy.shape[-1])
        of_images = self._patches.transpose(0, 2, 1) @ dy_rows  # (N, 9 * C, O)
        self.gradients = [of_images.sum(axis=0).reshape(self.weight.shape)]
        if self.bias is not None:
            self.gradients.append(dy.sum(axis=(0, 1, 2)))
        # y[p] takes x[p + d] * w[d], so dx[p] takes dy[p - d] * w[d]: the same operation
        # with the kernel turned by 180 degrees and its two channel axes exchanged.
        turned = self.weight[::-1, ::-1].transpose(0, 1, 3, 2)
        return _product(_patches(dy), turned, dy.shape)


def _patches(x: np.ndarray) -> np.ndarray:
    """All 3x3 patches of (N, H, W, C), zeros outside, as (N, H * W, 9 * C)."""
    n, height, width, channels = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = sliding_window_view(padded, (3, 3), axis=(1, 2))  # (N, H, W, C, 3, 3)
    return windows.transpose(0, 1, 2, 4, 5, 3).reshape(n, height * width, 9 * channels)


def _product(patches: np.ndarray, weight: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Patches of (N, H, W, C) times a weight (3, 3, C, O) -> (N, H, W, O)."""
    y = patches @ weight.reshape(patches.shape[2], -1)
    return y.reshape(*shape[:3], -1)


class Linear(Layer):
    """``y = x @ weight + bias``; the weight is (in_features, out_features)."""

    def __init__(self, weight: np.ndarray, bias: np.ndarray | None) -> None:
        super().__init__(weight, bias)
        self.weight, self.bias = weight, bias

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Output, (N, out_features)."""
        self._x = x
        y = x @ self.weight
        return y if self.bias is None else y + self.bias

    def backward(self, dy: np.ndarray) -> np.ndarray:
        """Gradient in x; fills `gradients`."""
        self.gradients = [self._x.T @ dy]
        if self.bias is not None:
            self.gradients.append(dy.sum(axis=0))
        return dy @ self.weight.T


class Norm(Protocol):
    """What all layers of fastbn have, as far as it is used here."""

    weight: np.ndarray
    bias: np.ndarray

    def __call__(self, x: np.ndarray, /) -> np.ndarray:
        """Output in the shape of x."""

    def backward(self, dy: np.ndarray, /) -> Gradients:
        """Gradients in x and the parameters."""

    def train(self, mode: bool, /) -> object:
        """Set the mode."""


class BatchNorm(Layer):
    """A fastbn layer among the layers of this network."""

    def __init__(self, layer: Norm) -> None:
        super().__init__(layer.weight, layer.bias)  # its own arrays: SGD moves them in place
        self.layer = layer

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Output in the shape of x."""
        return self.layer(x)

    def backward(self, dy: np.ndarray) -> np.ndarray:
        """Gradient in x; fills `gradients`."""
        gradients = self.layer.backward(dy)
        self.gradients = [g for g in (gradients.weight, gradients.bias) if g is not None]
        return gradients.x


class ReLU(Layer):
    """``max(x, 0)``."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Output in the shape of x."""
        self._positive = x > 0
        return x * self._positive

    def backward(self, dy: np.ndarray) -> np.ndarray:
        """Gradient in x."""
        return dy * self._positive


class MeanPool2d(Layer):
    """Mean of each 2x2 square; H and W must be even."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Output, (N, H / 2, W / 2, C)."""
        n, height, width, channels = x.shape
        return x.reshape(n, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))

    def backward(self, dy: np.ndarray) -> np.ndarray:
        """Gradient in x: each of the four pixels has a quarter."""
        return (dy / 4).repeat(2, axis=1).repeat(2, axis=2)


class Flatten(Layer):
    """(N, H, W, C) as (N, H * W * C)."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Output, two-dimensional."""
        self._shape = x.shape
        return x.reshape(len(x), -1)

    def backward(self, dy: np.ndarray) -> np.ndarray:
        """Gradient in the shape of x."""
        return dy.reshape(self._shape)


class Network:
    """Layers one after another."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = list(layers)

    @property
    def parameters(self) -> list[np.ndarray]:
        """The arrays to be learned."""
        return [p for layer in self.layers for p in layer.parameters]

    @property
    def gradients(self) -> list[np.ndarray]:
        """Their gradients, after `backward`."""
        return [g for layer in self.layers for g in layer.gradients]

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Scores of the classes, (N, classes)."""
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def backward(self, dy: np.ndarray) -> np.ndarray:
        """Gradient in the images, given the one in the scores; fills every layer's."""
        for layer in reversed(self.layers):
            dy = layer.backward(dy)
        return dy

    def train(self, mode: bool = True) -> "Network":
        """Put the batch normalization layers in training mode, or out of it."""
        for layer in self.layers:
            if isinstance(layer, BatchNorm):
                layer.layer.train(mode)
        return self

    def eval(self) -> "Network":
        """Put the batch normalization layers in evaluation mode: running statistics."""
        return self.train(False)


class SGD:
    """Stochastic gradient descent with momentum."""

    def __init__(self, network: Network, learning_rate: float, momentum: float = 0.9) -> None:
        self.network = network
        self.learning_rate, self.momentum = learning_rate, momentum
        self.velocities = [np.zeros_like(p) for p in network.parameters]

    def step(self) -> None:
        """Move the network's parameters, in place, against their gradients."""
        moved = zip(self.network.parameters, self.network.gradients, self.velocities, strict=True)
        for parameter, gradient, velocity in moved:
            velocity *= self.momentum
            velocity -= self.learning_rate * gradient
            parameter += velocity


def cross_entropy(scores: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean softmax cross-entropy of a batch, and its gradient in the scores."""
    rows = np.arange(len(labels))
    # Softmax ignores a constant; without the largest score, exp cannot overflow.
    shifted = scores - scores.max(axis=1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    gradient = np.exp(log_softmax)
    gradient[rows, labels] -= 1
    return -float(log_softmax[rows, labels].mean()), gradient / len(labels)


def convolutional_network(
    seed: int,
    batch_norm: bool,
    *,
    make_norm: Callable[[int, bool], Norm] | None = None,
    size: int = 8,
    stages: Sequence[Sequence[int]] = ((16, 16, 16), (32, 32, 32)),
    hidden: int = 64,
    classes: int = 10,
    dtype: type = np.float32,
) -> Network:
    """Stages of convolutions with a mean pool after each, a hidden linear layer, scores.

    ``stages`` has the channels of each convolution; images are (N, size, size, 1). The
    weights depend on the seed alone, so all kinds of network start from the same
    ones (He et al. 2015: variance 2 / fan_in, made for ReLU). ``make_norm`` makes another
    norm in the place of batch norm, from its channels and whether it is for images.
    """
    rng = np.random.default_rng(seed)

    def weight(*shape: int) -> np.ndarray:
        fan_in = np.prod(shape[:-1])
        return (rng.standard_normal(shape) * np.sqrt(2 / fan_in)).astype(dtype)

    def block(layer: type[Conv2d] | type[Linear], weights: np.ndarray) -> list[Layer]:
        features = weights.shape[-1]
        if not batch_norm:
            return [layer(weights, np.zeros(features, dtype)), ReLU()]
        norm: Norm
        if make_norm is not None:
            norm = make_norm(features, layer is Conv2d)
        elif layer is Conv2d:
            norm = BatchNorm2d(features, axis=-1, dtype=dtype)
        else:
            norm = BatchNorm1d(features, dtype=dtype)
        # No bias in front of batch norm: it would only move the channel's mean, and
        # the mean is what batch norm takes away. Its own bias does that work after it.
        return [layer(weights, None), BatchNorm(norm), ReLU()]

    layers: list[Layer] = []
    in_channels = 1
    for stage in stages:
        for out_channels in stage:
            layers += block(Conv2d, weight(3, 3, in_channels, out_channels))
            in_channels = out_channels
        layers.append(MeanPool2d())
        size //= 2
    layers.append(Flatten())
    layers += block(Linear, weight(size * size * in_channels, hidden))
    layers.append(Linear(weight(hidden, classes), np.zeros(classes, dtype)))
    return Network(layers)
