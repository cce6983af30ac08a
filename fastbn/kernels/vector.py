"""SIMD vectors for kernels: 16 float32 or 8 float64, with +, - and *.

======================================  ====================================================
``lanes(array)``                        how many values of ``array`` a vector holds
``broadcast(array, value)``             ``value`` in every lane, in ``array``'s dtype
``rounded(array, value)``               ``value`` rounded to ``array``'s dtype, a float
``load(array, i)``                      ``array[i : i + lanes]``
``load_first(array, i, n, rest)``       ``array[i : i + n]``, then lanes of ``rest``
``store(array, i, vector)``             ``array[i : i + lanes] = vector``
``store_first(array, i, n, vector)``    ``array[i : i + n]`` = the first lanes
``total(vector)``                       sum of the lanes as float64, always in the same order
======================================  ====================================================

``array`` is flat; ``n`` may exceed the number of lanes, and then all of them count.
"""

from numba import config

if config.DISABLE_JIT:
    from fastbn.kernels import vector_python as _vector
else:
    from fastbn.kernels import vector_llvm as _vector

lanes = _vector.lanes
broadcast = _vector.broadcast
rounded = _vector.rounded
load = _vector.load
load_first = _vector.load_first
store = _vector.store
store_first = _vector.store_first
total = _vector.total
