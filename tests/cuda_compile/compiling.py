"""Kernels for NVIDIA GPUs, compiled to PTX and to machine code without a GPU.

The private names that these tests touch are all here. To be imported where `missing` finds nothing.
"""

import csv
import inspect
import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numba.cuda.compiler
import numba.cuda.dispatcher
from cuda.bindings import nvjitlink
from numba.cuda import types

from fastbn._call import device
from fastbn.kernels.cuda.kernels import Kernels, kernels_of
from fastbn.kernels.cuda.once import OnceKernels, once_kernels_of
from fastbn.kernels.cuda.sums import THREADS

__all__ = ["CAPABILITIES", "THREADS", "Variant", "compiled", "recorded", "variants"]

#: By the name of a design, its kernels and what makes them.
_DESIGNS = {"two launches": (Kernels, kernels_of), "once": (OnceKernels, once_kernels_of)}

#: A100, H100 and H200, B200.
CAPABILITIES = (8, 0), (9, 0), (10, 0)
_TABLE = Path(__file__).with_name("registers.csv")
_COLUMNS = [f"sm_{major}{minor}" for major, minor in CAPABILITIES]

#: How kernels hold the values of a tensor.
_HELD = {
    "float16": types.float16, "bfloat16": types.uint16, "float32": types.float32,
    "float64": types.float64,
}  # fmt: skip
_DATA, _PARAMETER = "as x", "as weight"
#: Types by the names that all kernels share; `device` launches them with these.
_ARGUMENTS = {
    "x": _DATA, "dy": _DATA, "out": _DATA,
    "mean": _PARAMETER, "var": _PARAMETER, "running_mean": _PARAMETER, "running_var": _PARAMETER,
    "weight": _PARAMETER, "bias": _PARAMETER, "d_weight": _PARAMETER, "d_bias": _PARAMETER,
    "statistics": types.float64[::1], "sums": types.float64[::1], "partial": types.float64[::1],
    "tickets": types.int32[::1], "arrivals": types.int32[::1], "tiles": types.int64,
    "eps": types.float64, "momentum": types.float64,
    "samples": types.int64, "channels": types.int64, "length": types.int64, "blocks": types.int64,
    "frozen": types.boolean, "back": types.boolean,
}  # fmt: skip


class Variant(NamedTuple):
    """A kernel for one dtype and one way of reading."""

    design: str
    kernel: str
    dtype: str
    lanes: int
    width: int
    #: Normalizing with the batch's statistics, which are float64 whatever the dtype of x.
    batch: bool

    def __str__(self):
        once = "once-" if self.design == "once" else ""
        statistics = "-batch" if self.batch else ""
        return f"{once}{self.kernel}{statistics}-{self.dtype}-{self.lanes}x{self.width}"


def variants():
    """Every variant that `device` can launch: ways of reading are taken from many shapes."""
    found = []
    for dtype, bytes_each in device._BYTES.items():
        cuts = {
            device.cut_of(samples, channels, length, bytes_each, aligned, arrays, 1)
            for samples in (4, 10_000)
            for channels in (3, 20, 40)
            for length in range(1, 33)
            for aligned in (False, True)
            for arrays in (1, 2)
        }
        # what reads once is small; two launches are of any size, for one of them evaluates
        once = {(cut.lanes, cut.width) for cut in cuts if cut.once}
        for lanes, width in sorted({(cut.lanes, cut.width) for cut in cuts}):
            for design, (kernels, _) in _DESIGNS.items():
                if design == "once" and (lanes, width) not in once:
                    continue
                for kernel in kernels._fields:
                    given = "var" in arguments_of(design, kernel) and dtype != "float64"
                    found += [
                        Variant(design, kernel, dtype, lanes, width, batch)
                        for batch in ((False, True) if given else (False,))
                    ]
    return found


def bytes_of(variant):
    """Bytes of a value in memory."""
    return device._BYTES[variant.dtype]


def arguments_of(design, kernel):
    """Names of a kernel's arguments."""
    return list(inspect.signature(_dispatcher(design, kernel, False, 1, 1).py_func).parameters)


def signature_of(variant):
    """Types of the arguments that a kernel is launched with."""
    data, parameter = _HELD[variant.dtype], _HELD[device._PARAMETERS[variant.dtype]]
    found = []
    for name in arguments_of(variant.design, variant.kernel):
        if name not in _ARGUMENTS:
            raise LookupError(f"{variant.kernel} has an argument {name}: name its type here")
        kind = {_DATA: data[::1], _PARAMETER: parameter[::1]}.get(_ARGUMENTS[name])
        if variant.batch and name in ("mean", "var"):
            kind = types.float64[::1]
        found.append(kind or _ARGUMENTS[name])
    return tuple(found)


def _dispatcher(design, kernel, wide, lanes, width):
    return getattr(_DESIGNS[design][1](wide, lanes, width), kernel)


class Compiled(NamedTuple):
    """What came out for one compute capability."""

    ptx: str
    registers: int
    #: In bytes a thread: local memory, for whatever reason, and how much of it is written and read.
    stack: int
    spilled: int


def compiled(variant):
    """A variant for each compute capability, compiled as at its first launch."""
    dispatcher = _dispatcher(
        variant.design, variant.kernel, variant.dtype == "float64", variant.lanes, variant.width
    )
    options = {name: dispatcher.targetoptions[name] for name in ("fastmath", "launch_bounds")}
    # functions that a kernel calls ask for the current device; there is none
    current = mock.Mock(return_value=mock.Mock(compute_capability=CAPABILITIES[0]))
    with mock.patch.object(numba.cuda.dispatcher, "get_current_device", current):
        # what `cuda.compile_ptx` does first; typing takes long, and is the same for all
        library, _ = numba.cuda.compiler._compile_pyfunc_with_fixup(
            dispatcher.py_func, signature_of(variant), device=False, abi="numba",
            cc=CAPABILITIES[0], **options,
        )  # fmt: skip
    return {
        column: _linked(library.get_asm_str(cc=capability), column)
        for capability, column in zip(CAPABILITIES, _COLUMNS, strict=True)
    }


def _linked(ptx, architecture):
    code = ptx.encode()
    linker = nvjitlink.create(2, [f"-arch={architecture}", "-verbose", "-Xptxas=-v"])
    try:
        nvjitlink.add_data(linker, nvjitlink.InputType.PTX, code, len(code), "kernel")
        nvjitlink.complete(linker)
        log = bytearray(nvjitlink.get_info_log_size(linker))
        nvjitlink.get_info_log(linker, log)
    except nvjitlink.nvJitLinkError as error:
        log = bytearray(nvjitlink.get_error_log_size(linker))
        nvjitlink.get_error_log(linker, log)
        raise RuntimeError(log.decode().strip("\0")) from error
    finally:
        nvjitlink.destroy(linker)
    # a kernel and what is not inlined into it, such as division: the sum, and the most registers
    text = log.decode()
    stack, stores, loads = (
        sum(map(int, _found(rf"(\d+) bytes {what}", text)))
        for what in ("stack frame", "spill stores", "spill loads")
    )
    registers = max(map(int, _found(r"used (\d+) registers", text)))
    return Compiled(ptx, registers, stack, stores + loads)


def _found(pattern, text):
    numbers = re.findall(pattern, text)
    if not numbers:
        raise LookupError(f"the linker does not say {pattern!r}:\n{text}")
    return numbers


# --- the table ------------------------------------------------------------------------------------


@lru_cache
def recorded():
    """Registers a thread, by variant and architecture."""
    with _TABLE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {row["variant"]: {name: int(row[name]) for name in _COLUMNS} for row in rows}


def record(registers):
    """Write the table anew."""
    with _TABLE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["variant", *_COLUMNS])
        for variant, numbers in registers.items():
            writer.writerow([variant, *(numbers[name] for name in _COLUMNS)])
