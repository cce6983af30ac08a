"""SIMD vectors for kernels: 16 float32 or 8 float64, with +, - and *.

======================================  ====================================================
``pointer(array)``                      its memory alone, for loops: see below
``lanes(array)``                        how many values of ``array`` a vector holds
``broadcast(array, value)``             ``value`` in every lane, in ``array``'s dtype
``rounded(array, value)``               ``value`` rounded to ``array``'s dtype, a float
``load(array, i)``                      ``array[i : i + lanes]``
``load_first(array, i, n, rest)``       ``array[i : i + n]``, then lanes of ``rest``
``store(array, i, vector)``             ``array[i : i + lanes] = vector``
``store_streaming(array, i, vector)``   `store` past the caches; the address is a multiple of 64
``fence()``                             wait for streaming stores; before other threads may read
``to_boundary(array, i)``               how many values from ``i`` on come before such an address
``store_first(array, i, n, vector)``    ``array[i : i + n]`` = the first lanes
``total(vector)``                       sum of the lanes as float64, always in the same order
======================================  ====================================================

``array`` is flat; ``n`` may exceed the number of lanes, and then all of them count.

Where a function takes an array, compiled code counts a reference, which costs more than a short
row. So the innermost functions take a pointer, which all of these take in place of an array.
It does not keep the memory alive: make pointers of a function's arguments, never of an
array that the function itself has allocated.
"""

from numba import config

if config.DISABLE_JIT:
    from fastbn.kernels import vector_python as _vector
else:
    from fastbn.kernels import vector_llvm as _vector

pointer = _vector.pointer
lanes = _vector.lanes
broadcast = _vector.broadcast
rounded = _vector.rounded
load = _vector.load
load_first = _vector.load_first
store = _vector.store
store_first = _vector.store_first
store_streaming = _vector.store_streaming
to_boundary = _vector.to_boundary
fence = _vector.fence
total = _vector.total
