"""Loops over per-channel vectors."""

import numpy as np

from fastbn.kernels import cpu_formulas as formulas
from fastbn.kernels.compile import kernel


@kernel
def update_running(running_mean, running_var, counter, statistics, count, momentum, cumulative):
    """Fold the batch's mean and unbiased variance into the running ones, and count the batch.

    One call of compiled code, so that no exception can come between the three.
    ``cumulative``: every batch so far has the same weight.
    """
    counter[0] += 1
    weight = 1.0 / counter[0] if cumulative else momentum
    mean, var = statistics[0], statistics[1]
    for c in range(running_mean.size):
        running_mean[c] = formulas.running_update(np.float64(running_mean[c]), mean[c], weight)
        batch_var = formulas.unbiased(var[c], count)
        running_var[c] = formulas.running_update(np.float64(running_var[c]), batch_var, weight)
