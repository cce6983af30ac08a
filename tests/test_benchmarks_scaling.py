"""The model of `python -m benchmarks scaling`: numbers that can be worked out by hand."""

import pytest

from benchmarks import scaling
from benchmarks.scaling_ranks import LAYERS


def test_layers_of_resnet50():
    assert sum(LAYERS.values()) == 53
    assert sum(number * channels for (channels, _), number in LAYERS.items()) == 26560


@pytest.mark.parametrize(
    ("ranks", "channels", "steps", "nbytes_in_time", "nbytes"),
    [
        (2, 64, 1, 1072, 1072),  # a message of the other rank
        (8, 64, 3, 7 * 1072, 7 * 1072),
        # in slices: an alltoall in 3 steps of 4 messages, and an allgather in 3 steps
        (8, 4096, 6, 3 * 4 * 8240 + 7 * 8192, 7 * 8240 + 7 * 8192),
    ],
)
def test_time_of_an_exchange(ranks, channels, steps, nbytes_in_time, nbytes):
    latency, gap = 1e-3, 1e-9
    if scaling.sliced(ranks, channels):  # many bytes and little latency would take more steps
        latency = 1.0
    seconds, received = scaling.collectives(ranks, channels, latency, gap)
    assert seconds == pytest.approx(steps * latency + nbytes_in_time * gap)
    assert received == nbytes


def test_many_steps_where_bytes_cost_more():
    seconds, _ = scaling.collectives(8, 4096, 0.0, 1.0)
    assert seconds == 7 * 8240 + 7 * 8192


def test_a_step_is_of_all_layers_in_both_directions():
    seconds, nbytes = scaling.network(2, 1.0, 0.0)
    assert seconds == 106
    assert nbytes == 106 * 48 + 2 * 16 * 26560
