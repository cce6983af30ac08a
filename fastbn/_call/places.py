"""Where an array lies: in host memory or on an NVIDIA GPU. Nothing of CUDA is imported for it."""

from typing import Any

import numpy as np
from numba import config

from fastbn._call import dlpack


def on_device(array: Any) -> bool:
    """Whether an array lies on an NVIDIA GPU."""
    kind = type(array)
    if kind is np.ndarray:
        return False
    if kind.__module__.startswith("numba.cuda"):  # the simulator's say so in no other way
        return hasattr(array, "copy_to_host")
    if is_tensor(array):
        return bool(getattr(array, "is_cuda", False))
    if not hasattr(kind, "__cuda_array_interface__"):
        return hasattr(kind, "__dlpack_device__") and dlpack.on_gpu(array)
    try:  # some have it wherever they are, and refuse it on the CPU
        return array.__cuda_array_interface__ is not None
    except Exception:  # or for a dtype that it has no letter for
        return hasattr(kind, "__dlpack_device__") and dlpack.on_gpu(array)


def is_tensor(array: Any) -> bool:
    """Whether it is one of torch's, or of a class that is made of them."""
    return any(kind.__module__.partition(".")[0] == "torch" for kind in type(array).__mro__)


def simulated() -> bool:
    """Whether Numba simulates a device."""
    return bool(getattr(config, "ENABLE_CUDASIM", False))
