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

from fastbn._call import device_tensor
from fastbn.kernels.activations import FUSED, UNFUSED
from fastbn.kernels.cuda.kernels import Kernels, kernels_of
from fastbn.kernels.cuda.norms import NormKernels, norm_kernels_of
from fastbn.kernels.cuda.once import OnceKernels, once_kernels_of
from fastbn.kernels.cuda.steps import PLAIN, Extra
from fastbn.kernels.cuda.sums import THREADS

__all__ = ["CAPABILITIES", "THREADS", "Variant", "compiled", "recorded", "variants"]

#: By the name of a design, its kernels and what makes them.
_DESIGNS = {
    "two launches": (Kernels, kernels_of),
    "once": (OnceKernels, once_kernels_of),
    "norms": (NormKernels, lambda wide, lanes, width, _=PLAIN: norm_kernels_of(wide, lanes, width)),
}

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
    "place": types.UniTuple(types.int64, 6), "count": types.int64,
    "samples": types.int64, "channels": types.int64, "length": types.int64, "blocks": types.int64,
    "frozen": types.boolean, "back": types.boolean,
}  # fmt: skip


#: Beside plain calls: what is quick and adds a residual, what takes long, what has a number more.
_EXTRAS = (
    Extra("relu", True), Extra("silu"), Extra("gelu_tanh"), Extra("leaky_relu"),
    # of group and instance norm, layer norm, RMS norm
    Extra(own="span"), Extra(own="column"), Extra(own="column", centered=False),
)  # fmt: skip


class Variant(NamedTuple):
    """A kernel for one dtype and one way of reading."""

    design: str
    kernel: str
    dtype: str
    lanes: int
    width: int
    #: Normalizing with the batch's statistics, which are float64 whatever the dtype of x.
    batch: bool
    extra: Extra = PLAIN

    def __str__(self):
        once = "once-" if self.design == "once" else ""
        statistics = "-batch" if self.batch else ""
        names = FUSED.get((self.extra.activation, self.extra.residual), UNFUSED)
        extra = names.normalize.removeprefix("normalize")
        extra += f"_{self.extra.own}" * bool(self.extra.own)
        extra += "_uncentered" * (not self.extra.centered)
        return f"{once}{self.kernel}{extra}{statistics}-{self.dtype}-{self.lanes}x{self.width}"

    @property
    def way(self):
        """How it reads and computes."""
        return self.dtype == "float64", self.lanes, self.width, self.extra


def variants():
    """Every variant that `device` can launch: ways of reading are taken from many shapes."""
    found = []
    for dtype, bytes_each in device_tensor.BYTES.items():
        cuts = {
            device_tensor.cut_of(samples, channels, length, bytes_each, aligned, arrays, 1)
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
                    if kernel == "average" and (lanes, width) != (1, 1):
                        continue  # which is the same for all
                    given = "var" in arguments_of(design, kernel) and dtype != "float64"
                    found += [
                        Variant(design, kernel, dtype, lanes, width, batch)
                        for batch in ((False, True) if given else (False,))
                    ]
    return found + _with_extras(found)


def _with_extras(plain):
    """Of some dtypes and both layouts those that read most at once, with everything besides."""
    most = {}
    for v in plain:
        key = v.dtype, v.design, v.kernel, v.width > 1
        if v.dtype != "float16" and not v.batch and v.lanes >= most.get(key, v).lanes:
            most[key] = v
    found = [v._replace(extra=extra) for v in most.values() for extra in _EXTRAS]
    return [v for v in map(_as_launched, found) if _is_launched(v)]


def _as_launched(variant):
    """A gradient through an activation has no more than four channels a thread.

    A forward with a weight of its own mostly has a bias; moments need to know nothing of them.
    """
    extra = variant.extra
    if variant.kernel == "moments":
        return variant._replace(extra=extra._replace(own=None))
    if extra.own and extra.centered and variant.kernel in ("normalize", "forward"):
        return variant._replace(extra=extra._replace(shifts=True))
    four = variant.width > 1 and variant.kernel in ("products", "gradient")
    return variant._replace(lanes=min(variant.lanes, 4)) if four else variant


def _is_launched(variant):
    """Whether `device` launches such a kernel, which is made with the others of its design."""
    extra = variant.extra
    if variant.design == "norms":
        return False
    if variant.kernel == "moments":
        return not extra.centered and variant.width == 1
    if extra.own:
        return variant.width == 1
    if variant.kernel == "gradient":  # with a residual, what dy has become is there
        return not extra.residual
    if variant.design == "once":
        reads = 2 if variant.kernel == "backward" else 1
        return device_tensor.may_keep(extra, variant.width > 1, reads)
    return True


def bytes_of(variant):
    """Bytes of a value in memory."""
    return device_tensor.BYTES[variant.dtype]


def arguments_of(design, kernel):
    """Names of a kernel's arguments."""
    return list(inspect.signature(_dispatcher(design, kernel, (False, 1, 1)).py_func).parameters)


def signature_of(variant):
    """Types of the arguments that a kernel is launched with."""
    data, parameter = _HELD[variant.dtype], _HELD[device_tensor.PARAMETERS[variant.dtype]]
    found = []
    for name in arguments_of(variant.design, variant.kernel):
        if name == "more":
            found.append(_more(variant, data[::1], parameter[::1]))
            continue
        if name not in _ARGUMENTS:
            raise LookupError(f"{variant.kernel} has an argument {name}: name its type here")
        kind = {_DATA: data[::1], _PARAMETER: parameter[::1]}.get(_ARGUMENTS[name])
        if variant.batch and name in ("mean", "var"):
            kind = types.float64[::1]
        found.append(kind or _ARGUMENTS[name])
    return tuple(found)


def _more(variant, data, parameter):
    """Types of what the steps of a call take besides; see `steps`."""
    extra = variant.extra
    if extra.own:
        return types.Tuple(
            (parameter, types.int64, types.int64, *(parameter,) * variant.extra.shifts)
        )
    if extra.activation is None:
        return types.Tuple(())
    if variant.kernel in ("normalize", "forward"):
        return types.Tuple((types.float64, *(data,) * variant.extra.residual))
    return types.Tuple((parameter, types.float64, *(data, data) * variant.extra.residual))


def _dispatcher(design, kernel, way):
    return getattr(_DESIGNS[design][1](*way), kernel)


class Compiled(NamedTuple):
    """What came out for one compute capability."""

    ptx: str
    registers: int
    #: In bytes a thread: local memory, for whatever reason, and how much of it is written and read.
    stack: int
    spilled: int


def compiled(variant):
    """A variant for each compute capability, compiled as at its first launch."""
    dispatcher = _dispatcher(variant.design, variant.kernel, variant.way)
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
