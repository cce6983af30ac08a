"""Kernels for NVIDIA GPUs, by ``numba.cuda``. Imported when the first device array comes."""
