"""Handwritten digits, and the training and evaluation of networks on them."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np

from fastbn.demo.network import SGD, Network, cross_entropy

__all__ = [
    "BATCH_SIZE",
    "Digits",
    "Trial",
    "accuracy",
    "batch_statistics_accuracy",
    "batches",
    "training_batches",
]

BATCH_SIZE = 32
TRAIN_SIZE = 1347  # three quarters of the 1797


@dataclass(frozen=True)
class Digits:
    """Images (N, 8, 8, 1) in float32 from 0 to 1, and labels (N,), in two parts."""

    train_images: np.ndarray
    train_labels: np.ndarray
    held_out_images: np.ndarray
    held_out_labels: np.ndarray

    @classmethod
    def load(cls, seed: int) -> "Digits":
        """The digits that come with the package; the seed says which are held out."""
        with (
            resources.files("fastbn.demo").joinpath("digits.npz").open("rb") as file,
            np.load(file, allow_pickle=False) as arrays,
        ):
            images, labels = arrays["images"], arrays["labels"]
        images = images[..., np.newaxis].astype(np.float32) / 16
        order = np.random.default_rng(seed).permutation(len(labels))
        train, held_out = order[:TRAIN_SIZE], order[TRAIN_SIZE:]
        return cls(images[train], labels[train], images[held_out], labels[held_out])


class Trial:
    """A network in training, and how it did after each epoch."""

    def __init__(self, network: Network, learning_rate: float) -> None:
        self.network = network
        self.optimizer = SGD(network, learning_rate)
        self.seconds = 0.0
        self.train_accuracies: list[float] = []
        self.held_out_accuracies: list[float] = []

    def run_epoch(
        self, digits: Digits, order: np.ndarray, after_batch: Callable[[], None] = lambda: None
    ) -> None:
        """Go through the training images once, in the given order; then measure."""
        start = time.perf_counter()
        self.network.train()
        for chosen in training_batches(order):
            scores = self.network.forward(digits.train_images[chosen])
            _, gradient = cross_entropy(scores, digits.train_labels[chosen])
            self.network.backward(gradient)
            self.optimizer.step()
            after_batch()
        self.seconds += time.perf_counter() - start
        self.train_accuracies.append(
            accuracy(self.network, digits.train_images, digits.train_labels)
        )
        self.held_out_accuracies.append(
            accuracy(self.network, digits.held_out_images, digits.held_out_labels)
        )


def training_batches(order: np.ndarray) -> list[np.ndarray]:
    """Full batches alone, for both networks.

    A last batch of three would have three values per channel in BatchNorm1d: statistics
    so poor that its step, and its share in the running statistics, do harm.
    """
    return batches(order, BATCH_SIZE)[: len(order) // BATCH_SIZE]


def batches(order: np.ndarray, size: int) -> list[np.ndarray]:
    """Consecutive parts of ``order``, the last one smaller where it does not come out even."""
    return [order[start : start + size] for start in range(0, len(order), size)]


def accuracy(
    network: Network,
    images: np.ndarray,
    labels: np.ndarray,
    parts: Sequence[np.ndarray] | None = None,
) -> float:
    """Share of the images that the network, in evaluation mode, gets right.

    ``parts`` are the batches in which it sees them, as arrays of indices.
    """
    if parts is None:
        parts = batches(np.arange(len(labels)), BATCH_SIZE)
    return _share_right(network.eval(), images, labels, parts)


def batch_statistics_accuracy(
    network: Network, images: np.ndarray, labels: np.ndarray, parts: Sequence[np.ndarray]
) -> float:
    """The same in training mode: every batch is normalized with its own statistics.

    Works on a copy, because a forward in training mode moves the running statistics.
    """
    return _share_right(copy.deepcopy(network).train(), images, labels, parts)


def _share_right(
    network: Network, images: np.ndarray, labels: np.ndarray, parts: Sequence[np.ndarray]
) -> float:
    right = 0
    for part in parts:
        answers = network.forward(images[part]).argmax(axis=1)
        right += int(np.count_nonzero(answers == labels[part]))
    return right / sum(len(part) for part in parts)
