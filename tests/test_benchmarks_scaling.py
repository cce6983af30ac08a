"""The model of `python -m benchmarks scaling`: numbers that can be worked out by hand."""

import pytest

from benchmarks import scaling
from benchmarks.scaling_ranks import LAYERS


def test_layers_of_resnet50():
    assert sum(LAYERS.values()) == 53
    assert sum(number * channels for (channels, _), number in LAYERS.items()) == 26560


@pytest.mark.parametrize(
    ("ranks", "channels", "steps", "nbytes"),
    [
        (2, 64, 1, 1080),  # a message of the other rank
        (8, 64, 3, 7 * 1080),
        # in slices: an alltoall in 3 steps of 4 messages, and an allgather in 3 steps
        (8, 4096, 6, 3 * 4 * 8248 + 7 * 8192),
        (16384, 4096, 28, 14 * 8192 * 72 + 16383 * 16),  # fewer channels than ranks
    ],
)
def test_time_of_an_exchange(ranks, channels, steps, nbytes):
    """Bytes are those whose time is in it."""
    latency, gap = 1e-3, 1e-9
    if scaling.sliced(ranks, channels):  # many bytes and little latency would take more steps
        latency = 1.0
    seconds, received = scaling.collectives(ranks, channels, latency, gap)
    assert seconds == pytest.approx(steps * latency + nbytes * gap)
    assert received == nbytes


def test_many_steps_where_bytes_cost_more():
    seconds, nbytes = scaling.collectives(8, 4096, 0.0, 1.0)
    assert seconds == nbytes == 7 * 8248 + 7 * 8192


def test_a_step_is_of_all_layers_in_both_directions():
    seconds, nbytes = scaling.network(2, 1.0, 0.0)
    assert seconds == 106
    assert nbytes == 106 * 56 + 2 * 16 * 26560
