"""What fastbn works with on this machine: versions, processor, threads, caches, GPU."""

import importlib.metadata
import importlib.util
import os
import platform
from typing import Any

import llvmlite
import numba
import numpy as np

from fastbn._system import processor, threads
from fastbn.kernels import disk_cache, targets

__all__ = ["describe"]

#: Features of x86 and ARM processors that decide how fast kernels are, or what they can do.
_THAT_MATTER = ("sse4.2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "neon", "sve")


def describe() -> dict[str, Any]:
    """Describe what fastbn works with here, as ``fastbn info`` shows it. It compiles nothing.

    Returns
    -------
    dict
        Of plain values, fit for JSON:

        - ``"versions"``: of fastbn, python, numpy, numba, llvmlite
        - ``"cpu"``: ``"name"`` as LLVM has it, ``"features"`` that kernels make use of, ``"all
          features"``, ``"from"`` ("this machine", or Numba's variables), ``"processors"``,
          ``"last-level cache"`` in bytes (None if the system does not say)
        - ``"threads"``: ``"number"``, what it is ``"from"``, Numba's threading ``"layer"`` (None
          if there is none; it is started if need be)
        - ``"caches"``: the folders of compiled kernels in the order in which they are read; of
          each ``"path"``, what it is ``"from"`` ("FASTBN_CACHE_DIR", "NUMBA_CACHE_DIR",
          "package", "user"), whether it ``"exists"``, whether it is ``"read"``, whether this user
          may write to it (``"writable"``), whether it is the one that is ``"written"``, how many
          ``"kernels"`` it has that run here, how many ``"others"``, and whom it is ``"made for"``
        - ``"gpu"``: ``"numba-cuda"``'s version or None, and with it ``"devices"`` or an
          ``"error"``

    Examples
    --------
    >>> from fastbn.environment import describe
    >>> sorted(describe())
    ['caches', 'cpu', 'gpu', 'threads', 'versions']
    """
    return {
        "versions": _versions(),
        "cpu": _cpu(),
        "threads": {
            "number": threads.get_num_threads(),
            "from": threads.number_is_from(),
            "layer": _threading_layer(),
        },
        "caches": _caches(),
        "gpu": _gpu(),
    }


def _versions() -> dict[str, str]:
    from fastbn import __version__

    return {
        "fastbn": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numba": numba.__version__,
        "llvmlite": llvmlite.__version__,
    }


def _cpu() -> dict[str, Any]:
    name, features = targets.processor()
    having = {each[1:] for each in features.split(",") if each.startswith("+")}
    return {
        "name": name,
        "features": [each for each in _THAT_MATTER if each in having],
        "all features": features,
        "from": "NUMBA_CPU_NAME, NUMBA_CPU_FEATURES" if targets.told() else "this machine",
        "processors": os.cpu_count(),
        "last-level cache": processor.known_cache() or None,
    }


def _threading_layer() -> str | None:
    try:
        numba.get_num_threads()  # starts it
        return numba.threading_layer()
    except Exception:  # one is asked for that is not there
        return None


def _caches() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    mine = targets.ours()
    for origin, folder in disk_cache.places().items():
        files = disk_cache.units_in(folder)
        known = targets.known(folder)
        runs = {each.digest for each in known if mine.runs(each)} | {mine.digest}
        kernels = [file for file in files or () if targets.of_unit(file) in runs]
        writable = disk_cache.may_write(folder)
        found.append(
            {
                "from": origin,
                "path": str(folder),
                "exists": folder.is_dir(),
                "read": files is not None,
                "writable": writable,
                "written": writable and not any(each["written"] for each in found),
                "kernels": len(kernels),
                "others": len(files or ()) - len(kernels),
                "made for": sorted({each.processor for each in known}),
            }
        )
    return found


def _gpu() -> dict[str, Any]:
    try:
        if importlib.util.find_spec("numba_cuda") is None:
            return {"numba-cuda": None}
        found: dict[str, Any] = {"numba-cuda": importlib.metadata.version("numba-cuda")}
    except Exception as error:  # an installation that is broken
        return {"numba-cuda": None, "error": str(error)}
    try:
        from numba import cuda

        found["devices"] = [_device(cuda, device) for device in cuda.gpus]
    except Exception as error:  # no driver, no device, or one that is not well
        found["error"] = " ".join(str(error).split()) or type(error).__name__
    return found


def _device(cuda: Any, device: Any) -> dict[str, Any]:
    name = device.name
    with device:
        free, total = cuda.current_context().get_memory_info()
    return {
        "name": name.decode() if isinstance(name, bytes) else str(name),
        "compute capability": ".".join(map(str, device.compute_capability)),
        "memory": int(total),
        "free": int(free),
    }
