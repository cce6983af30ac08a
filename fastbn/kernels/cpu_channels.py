"""Loops over per-channel vectors."""

import numpy as np

from fastbn.kernels import cpu_formulas as formulas
from fastbn.kernels.compile import kernel


@kernel
def update_running(running_mean, running_var, counter, mean, var, count, momentum):
    """Fold the batch's mean and unbiased variance into the running ones, and count the batch.

    One call of compiled code, so that no exception can come between the three.
    """
    for c in range(mean.size):
        running_mean[c] = formulas.running_update(np.float64(running_mean[c]), mean[c], momentum)
        batch_var = formulas.unbiased(var[c], count)
        running_var[c] = formulas.running_update(np.float64(running_var[c]), batch_var, momentum)
    counter[0] += 1
