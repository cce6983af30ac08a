"""How fast fastbn is, always as a ratio: absolute times are not stable on shared machines.

=========================================  ====================================================
``python -m benchmarks compare REF``       is the working tree slower than the commit REF?
``python -m benchmarks cold [REF]``        what do the first calls cost, which compile?
``python -m benchmarks sharing``           how do several processes share the processors?
``python -m benchmarks scaling``           what does batch norm over MPI ranks cost?
``python -m benchmarks around``            fused passes, 16 bits, norms of samples: how fast?
``python -m benchmarks scaler``            StandardScaler beside scikit-learn's: how fast?
``python -m benchmarks device``            is the CUDA path right and fast on this GPU?
``pytest benchmarks``                      fastbn beside a copy, by pytest-benchmark, whose
                                           ``--benchmark-autosave`` and ``--benchmark-compare``
                                           keep a history on one machine
``pytest benchmarks --grid report``        the same beside torch, ONNX Runtime, JAX and NumPy
``python -m benchmarks record RUN.json``   keeps such a run in ``results.json``
``python -m benchmarks report``            makes ``RESULTS.md``, ``roofline.png`` and the
                                           README's table of ``results.json``
=========================================  ====================================================

- ``compare.py``, ``worker.py``, ``cold.py``, ``trees.py``: two commits side by side, and the rule.
- ``sharing.py``: processes that work at the same time. ``around.py``: what is around the layer.
  ``scaler.py``: StandardScaler beside scikit-learn's.
- ``scaling.py`` (the command and a model), ``scaling_ranks.py`` (what a rank measures).
- ``test_speed.py``, ``test_start.py``: what pytest measures, made of ``problem.py`` (operation,
  shape, dtype), ``providers.py`` (who computes it), ``copies.py`` (copies of the same bytes) and
  ``measure.py`` (calls timed in turn).
- ``conftest.py``, ``estimate.py``: options, the table, and how long it takes.
- ``device.py`` (the command; ``device.sh`` installs what it needs), ``device_checks.py`` (results),
  ``device_times.py`` (times), ``device_peers.py`` (torch and CuPy), ``device_report.py`` (bars).
- ``results.py`` (what is kept), ``bars.py`` (what is asked of it), ``report.py`` and
  ``roofline.py`` (the page and the picture).

A *bar* is what fastbn is held to, its *limit* the number. The shapes are in ``tests/cases.py``.
"""
