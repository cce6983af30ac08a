"""Statistics of arrays on a device: those that are there, and those that are not yet."""

import numpy as np
import pytest
from numba import config

import fastbn
from tests import internals_device as devices

pytestmark = pytest.mark.skipif(
    not config.ENABLE_CUDASIM, reason="needs NUMBA_ENABLE_CUDASIM=1"
)  # fmt: skip


def put(array):
    return devices.simulated_device().to_device(array)


def test_statistics_of_a_device_merge_with_others(rng):
    x = rng.normal(size=(6, 3, 4)).astype(np.float32)
    there, here = fastbn.channel_stats(put(x[:2])), fastbn.channel_stats(x[2:])
    total, whole = there + here, fastbn.channel_stats(x)
    np.testing.assert_array_equal(there.mean_low, np.zeros(3))
    np.testing.assert_array_equal(total.count, whole.count)
    np.testing.assert_allclose(total.mean, whole.mean, rtol=1e-6)
    np.testing.assert_allclose(total.m2, whole.m2, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
def test_integers_are_not_there_yet(dtype):
    with pytest.raises(NotImplementedError, match=f"{dtype}.*copy x to NumPy"):
        fastbn.channel_stats(put(np.ones((4, 3), dtype)))


@pytest.mark.parametrize("name", ["skipna", "extremes"])
def test_nor_is_what_leaves_values_out(name):
    with pytest.raises(NotImplementedError, match=name):
        fastbn.channel_stats(put(np.ones((4, 3), np.float32)), **{name: True})
