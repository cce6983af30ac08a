"""Small batches: how far off their statistics are, how norms do: ``demo --small-batches``."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fastbn import layers, warmup
from fastbn._system.progress import Progress
from fastbn.demo.network import (
    SGD,
    BatchNorm,
    Network,
    Norm,
    convolutional_network,
    cross_entropy,
)
from fastbn.demo.training import Digits, accuracy, batches
from fastbn.functional import channel_stats
from fastbn.kernels import formulas

__all__ = ["EPOCHS", "LEARNING_RATE", "Found", "run_small_batches"]

SIZES = (2, 4, 8, 16, 32, 64)
#: For batches of 32, in proportion to the root of the size for others. Of 0.005, 0.01 and 0.02 the
#: one where each norm does about as well as it can with batches of 16 and more.
LEARNING_RATE = 0.01
EPOCHS = 20
#: Samples of a ghost batch.
GHOST = 8
#: Batches of each size whose statistics are compared with those of all digits.
DRAWS = 300

INTRODUCTION = """\
Small batches

The network of the demo learns from {train} digits with each of five norms, in
batches of {sizes}; {held_out:,} other digits are held out. Epochs: {epochs}.
All start from the same weights. The learning rate is {learning_rate:g} for batches of
32, and goes with the root of their size. For the running statistics a digit
counts as much in batches of any size."""

MEASURED = """
1. Error of the statistics

Relative standard error of a batch's variance in three layers, over {draws}
batches of each size, and, in brackets, sqrt(2 / (m - 1)), as it were if the m
values of a channel were independent. A digit has 64, 16 or 1 of them; the 16
of the last convolution are alike to some degree.

  batch   first convolution   last convolution   hidden layer"""

ACCURACIES = """
2. Held-out digits read correctly

  batch   batch norm   batch renorm   ghost, {ghost}s   group norm   layer norm"""

REMARK = """
Ghost batches of {ghost} are batch norm where a batch has no more. With a batch of
two, the hidden layer's batch norm leaves no more of a value than which of the
two is larger; group and layer norm do not depend on the batch. What
fastbn.small_batch_report(layer, shape) says is about a layer of yours."""


@dataclass(frozen=True)
class Found:
    """What a run has found; lists go with `sizes`."""

    sizes: tuple[int, ...]
    #: By layer: values of a channel in a sample, and relative standard errors of the variance.
    errors: dict[str, tuple[int, list[float]]]
    #: By norm: shares of the held-out digits that were read correctly.
    accuracies: dict[str, list[float]]


def run_small_batches(
    epochs: int = EPOCHS, seed: int = 0, learning_rate: float = LEARNING_RATE
) -> Found:
    """Print what happens with small batches to stdout, with progress on stderr; return it.

    Parameters
    ----------
    epochs : int
        Passes over the training images; at least 1.
    seed : int
        Of the held-out choice, the initial weights and the batches; not negative.
    learning_rate : float
        At a batch of 32.
    """
    loaded = Digits.load(seed)
    # the other way round: with less to learn from, norms differ more, and it is quicker
    digits = Digits(
        loaded.held_out_images, loaded.held_out_labels, loaded.train_images, loaded.train_labels
    )
    print(
        INTRODUCTION.format(
            train=len(digits.train_labels), held_out=len(digits.held_out_labels), epochs=epochs,
            sizes=f"{SIZES[0]} to {SIZES[-1]}", learning_rate=learning_rate,
        ),
        flush=True,
    )  # fmt: skip
    warmup(["float32"])
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        accuracies, network = _train_all(digits, epochs, seed, learning_rate)
        errors = _errors(network, np.concatenate([loaded.train_images, loaded.held_out_images]))
    found = Found(SIZES, errors, accuracies)
    _print(found)
    return found


def _print(found: Found) -> None:
    print(MEASURED.format(draws=DRAWS))
    for k, size in enumerate(found.sizes):
        cells = (
            f"{errors[k]:.0%} ({formulas.variance_error(positions * size):.0%})"
            for positions, errors in found.errors.values()
        )
        print(f"{size:7}" + "".join(f"{c:>{w}}" for c, w in zip(cells, (20, 19, 15), strict=True)))
    print(ACCURACIES.format(ghost=GHOST))
    for k, size in enumerate(found.sizes):
        cells = (f"{shares[k]:.1%}" for shares in found.accuracies.values())
        widths = (13, 15, 12, 13, 13)
        print(f"{size:7}" + "".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True)))
    print(REMARK.format(ghost=GHOST), flush=True)


# --- how the norms do -----------------------------------------------------------------------------


def _norms(size: int, steps: int) -> dict[str, Callable[[int, bool], Norm]]:
    """What makes the norm of a layer, for a training of so many steps."""
    # as fast, in digits seen, as the usual 0.1 with batches of 32
    momentum = min(1.0, 0.1 * size / 32)
    r_max, d_max = (layers.Ramp(*values, 0, steps // 8) for values in ((1, 3), (0, 5)))

    def batch(features: int, images: bool, ghost: int | None = None) -> Norm:
        if images:
            return layers.BatchNorm2d(
                features, axis=-1, momentum=momentum, virtual_batch_size=ghost
            )
        return layers.BatchNorm1d(features, momentum=momentum, virtual_batch_size=ghost)

    def renorm(features: int, images: bool) -> Norm:
        if images:
            return layers.BatchRenorm2d(
                features, axis=-1, momentum=momentum, r_max=r_max, d_max=d_max
            )
        return layers.BatchRenorm1d(features, momentum=momentum, r_max=r_max, d_max=d_max)

    return {
        "batch norm": batch,
        "batch renorm": renorm,
        f"ghost batch norm, groups of {GHOST}": lambda features, images: batch(
            features, images, GHOST
        ),
        "group norm": lambda features, images: layers.GroupNorm(4, features, axis=-1),
        "layer norm": lambda features, images: layers.LayerNorm(features),
    }


def _is_batch_norm(name: str, size: int) -> bool:
    """Whether a norm does with such batches what batch norm does."""
    return name.startswith("ghost") and size <= GHOST


def _train_all(
    digits: Digits, epochs: int, seed: int, learning_rate: float
) -> tuple[dict[str, list[float]], Network]:
    """Held-out accuracies by norm, and the network with batch norm that saw the largest batches."""
    count = len(digits.train_labels)
    work = [
        (size, name, make) for size in SIZES
        for name, make in _norms(size, epochs * (count // size)).items()
        if not _is_batch_norm(name, size)
    ]  # fmt: skip
    accuracies: dict[str, list[float]] = {name: [] for name in _norms(1, 1)}
    with Progress(sum(epochs * (count // size) for size, _, _ in work), "training") as progress:
        for size, name, make in work:
            network = convolutional_network(seed, True, make_norm=make)
            rate = learning_rate * math.sqrt(size / 32)
            _train(network, digits, size, epochs, seed, rate, progress.advance)
            share = accuracy(network, digits.held_out_images, digits.held_out_labels)
            accuracies[name].append(share)
            if name == "batch norm":
                last = network
                for other in accuracies:
                    if _is_batch_norm(other, size):
                        accuracies[other].append(share)
    return accuracies, last


def _train(
    network: Network, digits: Digits, size: int, epochs: int, seed: int, rate: float,
    after_batch: Callable[[], None],
) -> None:  # fmt: skip
    """Full batches alone, and a learning rate that goes down to 0 in a line."""
    network.train()
    optimizer = SGD(network, rate)
    rng = np.random.default_rng(seed)
    count = len(digits.train_labels)
    steps, step = epochs * (count // size), 0
    for _ in range(epochs):
        for chosen in batches(rng.permutation(count), size)[: count // size]:
            optimizer.learning_rate = rate * (1 - step / steps)
            scores = network.forward(digits.train_images[chosen])
            _, gradient = cross_entropy(scores, digits.train_labels[chosen])
            network.backward(gradient)
            optimizer.step()
            step += 1
            after_batch()


# --- how far off the statistics are ---------------------------------------------------------------


def _errors(network: Network, images: np.ndarray) -> dict[str, tuple[int, list[float]]]:
    """Relative standard errors of the variance of what some norms see, with values of a sample."""
    network.eval()
    seen: list[np.ndarray] = []
    x = images
    for layer, following in zip(network.layers, network.layers[1:], strict=False):
        x = layer.forward(x)
        if isinstance(following, BatchNorm):
            seen.append(x)
    return {
        name: (x[0, ..., 0].size, [_error(x, size) for size in SIZES])
        for name, x in (
            ("first convolution", seen[0]), ("last convolution", seen[-2]),
            ("hidden layer", seen[-1]),
        )
    }  # fmt: skip


def _error(x: np.ndarray, size: int) -> float:
    """Root mean square of what batches' variances are off by; the median channel's."""
    rng = np.random.default_rng(0)
    right = channel_stats(x, axis=-1).var()
    chosen = (rng.choice(len(x), size, replace=False) for _ in range(DRAWS))
    found = np.array([channel_stats(x[some], axis=-1).var(ddof=1) for some in chosen])
    used = right > 0
    return float(np.median(np.sqrt(((found[:, used] / right[used] - 1) ** 2).mean(axis=0))))
