"""SIMD vectors, memory and calls for kernels: LLVM's, or plain Python under NUMBA_DISABLE_JIT.

A vector has 512 bits, 16 float32 or 8 float64, and +, - and *. ``count`` vectors can be one:
four lines of memory, or four sequences of sums, then stand in the source as one. A maker takes
what must be known when code is compiled.

=====================================================  ========================================
``lanes(share)(like)``                                 values of a vector, or one of its shares
``broadcasts(count, share, wide)(like, value)``        ``value`` in every lane; wide: as float64
``loads(count, share)(p, i, apart)``                   ``count`` vectors that begin ``apart``
``loads_first(count)(p, i, apart, n, less, rest)``     ``n`` values, each further vector ``less``
                                                       fewer; then lanes of ``rest``
``stores(count)(p, i, apart, vector)``                 the reverse
``stores_streaming(count)(p, i, apart, vector)``       past the caches, to multiples of 64 bytes
``stores_first(count)(p, i, apart, n, vector)``        the first ``n`` lanes of each vector
``loads_each(count)(ps, starts, aparts, i)``           `loads` from each of some pointers
``loads_each_first(count)(ps, starts, aparts, i, n)``  the same of ``n`` values
``terms_of_channel(rows)(table, columns, c, like)``    a column of a table, each in every lane
``terms_along(rows, count)(table, columns, j, n, like)``  ``n`` columns, a lane each
``folded(v)``                                          ``(a + b) + (c + d)`` of four vectors
``folded_products(u, v)``                              the same of their products
``total(v)``                                           sum of the lanes, always in the same order
``widened(vectors)``, ``narrowed(v, like)``            to float64 and back
``chosen(marks, yes, no)``                             lane by lane, where marks are not 0
``compiled_formula(f)``                                ``f`` for scalars and vectors
=====================================================  ========================================

Pointers and addresses keep no memory alive: an entry does that for the whole call.

=====================================================  ========================================
``address_of(array)``                                  where its memory begins
``data_at(address, like)``                             pointer of ``like``'s dtype
``values_at(address, like)``                           of what that is computed in: float32, where
                                                       memory holds 16 bits
``value_at(p, i)``                                     one value, as float64
``singles_at``, ``doubles_at``, ``words_at``           the same of float32, float64, int64
``value_rows(n)(address, distance, like)``             pointers to rows, ``distance`` bytes apart
``double_rows(n)(address, distance, like)``            the same of float64
``frame_at(address)``                                  the frame there; fields can be set
``copy_of(address)``                                   a copy of the frame, while the caller runs
``allocate(bytes)``, ``free(address)``                 memory, which `free` gives back; 0 without
``memory(count)(like)``                                values of memory, while the caller runs
``held_memory(count)(like)``                           the same, of what memory holds
``short_memory(count)(like)``                          the same, of what `as_short` makes
``as_held(number, like)``                              an integer of ``like``'s dtype
``as_short(number, like)``                             an integer of 32 bits for one of 8, else of
                                                       64: vectors then have more lanes
``call(part, frame, task)``                            run native code
``call_loop(loop, part, frame, tasks)``                run it on all tasks, on threads
``to_boundary(p, i)``                                  values before the next aligned vector
``fetch(p, i)``                                        into the caches (prefetch); any address
``fence()``                                            wait for streaming stores
=====================================================  ========================================

Memory of any kind (`kinds`); a vector has ``working`` values, and ``count`` of them can be one:

=====================================================  ========================================
``pointers_of(kind)(address)``                         pointer to values of a kind
``reads(kind, working, count)(p, i, apart)``           ``count`` vectors that begin ``apart``
``reads_turned(kind, working, count)(p, i)``           values of ``count`` channels in turn; of
                                                       each channel a vector
``reads_apart(kind, working)(p, i, apart)``            values that lie ``apart``
``reads_one(kind, working)(p, i)``                     one value, in every lane
``reads_terms(rows, working, count, same)``            ``(p, columns, i)``: vectors of some rows
                                                       of a table; or ``count`` times the same
``writes``, ``writes_turned``, ``writes_apart``        the reverse; ``writes(..., streaming)`` goes
                                                       past the caches, to multiples of a vector
``writes_one(kind, working)(p, i, vector)``            the first lane
=====================================================  ========================================
"""

from typing import Any

from numba import config

if config.DISABLE_JIT:
    from fastbn.kernels.simd import kinds_python as _kinds
    from fastbn.kernels.simd import python as _simd
else:
    from fastbn.kernels.simd import kinds as _kinds  # type: ignore[no-redef]
    from fastbn.kernels.simd import llvm as _simd  # type: ignore[no-redef]


def __getattr__(name: str) -> Any:
    return getattr(_kinds if name.startswith(("reads", "writes", "pointers_of")) else _simd, name)
