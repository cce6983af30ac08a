"""Arrays of other libraries: whose memory is read as it is, and who is told how to hand it over."""

import sys
from types import FrameType
from typing import Any

import numpy as np

from fastbn._call import places

#: DLPack's kinds of memory that the CPU reads: its own, and what it shares with a GPU's driver.
_HOST = 1, 3, 11
#: What comes as a copy from a device, or from a file bit by bit: the caller is to ask for it.
_REFUSED = frozenset(
    ("cupy", "dask", "dask_expr", "h5netcdf", "h5py", "netCDF4", "numba", "tables", "tensorstore",
     "zarr")
)  # fmt: skip
#: How arrays of other libraries become NumPy's, where `np.asarray` is not the best or does not do.
_TO_NUMPY = {
    "cupy": "{name}.get() copies it from the device; all arrays of a call lie in one place",
    "dask": "{name}.compute() loads all of it into memory; or take it block by block: "
    "fastbn.distributed.on_dask does, and {name}.map_blocks(function) with any function",
    "h5netcdf": "{name}[...] reads it",
    "h5py": "{name}[...] reads it",
    "netCDF4": "{name}[...] reads it",
    "numba": "{name}.copy_to_host() copies it from the device; all arrays of a call lie in one "
    "place",
    "pandas": "{name}.to_numpy(np.float32) converts it",
    "polars": "{name}.to_numpy() converts it",
    "tables": "{name}[...] reads it",
    "tensorflow": "{name}.numpy() converts it",
    "tensorstore": "{name}.read().result() reads it",
    "torch": "{name}.detach().cpu().numpy() gives its values, without a copy on the CPU",
    "xarray": "{name}.to_numpy() converts it",
    "zarr": "{name}[...] reads it",
}
_DASK = "dask.array.core"
_BFLOAT16 = "{name}.detach().cpu().float().numpy() gives its values as float32"


def is_bfloat16(array: Any) -> bool:
    """Whether an array of any library says that it is of bfloat16, which few can convert."""
    return str(getattr(array, "dtype", "")).endswith("bfloat16")


def lends(array: Any) -> bool:
    """Whether an array of another library can hand its values to NumPy."""
    kind = type(array)
    if isinstance(array, (np.generic, type)) or _library(array) in _REFUSED:
        return False
    return hasattr(kind, "__array__") or hasattr(kind, "__dlpack__")


def is_array(array: Any) -> bool:
    """Whether it is an array of another library, which lends its values or says how to get them."""
    return not isinstance(array, np.ndarray) and (lends(array) or _library(array) in _REFUSED)


def is_frame(array: Any) -> bool:
    """Whether it is a table of a library of those."""
    return _library(array) in ("pandas", "polars", "pyarrow")


def borrowed(name: str, array: Any, integers: bool = False) -> np.ndarray:
    """The values of an array of another library, in its own memory where it lends that.

    TypeError for what is no such array, or lies elsewhere, or would lose something on the way.
    """
    if not lends(array):
        raise not_numpy(name, array, integers=integers)
    if _library(array) == "xarray" and hasattr(array, "variable"):
        array = _inside(name, array)
        if type(array) is np.ndarray:
            return array
        return borrowed(name, array, integers)
    elsewhere = _elsewhere(array)
    if elsewhere:
        raise not_numpy(name, array, f" on {elsewhere}")
    if places.is_tensor(array):
        array = _of_torch(name, array)
    try:
        if hasattr(type(array), "__array__"):
            return np.asarray(array)
        return np.from_dlpack(array)
    except MemoryError:
        raise
    except Exception as error:
        raise not_numpy(name, array, f", which cannot be read ({_first_line(error)})") from error


def check_lent(name: str, given: Any, array: np.ndarray) -> None:
    """Refuse what is to be updated in place if its library has made a copy, which nobody sees."""
    if isinstance(given, np.ndarray) or array.size == 0:
        return
    again = borrowed(name, given)
    if again.__array_interface__["data"] != array.__array_interface__["data"]:
        raise ValueError(
            f"{name} is a {type(given).__name__} that NumPy gets a copy of, but training updates "
            f"it in place; keep it in an array of NumPy's (np.array({name}))"
        )


def is_question(x: np.ndarray) -> bool:
    """Whether Dask asks, with an array of one zero, which dtype a function returns.

    `map_blocks` does so whatever it has learnt from an array without values. Nothing else tells
    the question from data, so it is looked for among the callers.
    """
    if x.size != 1 or _DASK not in sys.modules:
        return False
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "apply_infer_dtype" and frame.f_globals["__name__"] == _DASK:
            return True
        frame = frame.f_back
    return False


def not_numpy(name: str, array: Any, why: str = "", integers: bool = False) -> TypeError:
    """The error that says what came and how it becomes what is taken."""
    library = _library(array)
    as_it_is = integers and hasattr(type(array), "__array_interface__")  # a picture, for instance
    dtype = "" if as_it_is else ", np.float32"
    way = _TO_NUMPY.get(library, f"np.asarray({{name}}{dtype}) converts array-likes")
    if library == "torch":
        way = _way_of_tensor(array) or way
    of = f" of {library}" if library in _TO_NUMPY else ""
    return TypeError(
        f"{name} must be a numpy.ndarray, got {type(array).__name__}{of}{why}; "
        f"{way.format(name=name)}"
    )


def _way_of_tensor(tensor: Any) -> str:
    """How a tensor becomes an array, if not as most do."""
    if getattr(tensor, "is_meta", False):
        return "{name} has no values: torch.empty_like({name}, device='cpu') has room for some"
    if str(getattr(tensor, "layout", "torch.strided")) != "torch.strided":
        return "{name}.to_dense().detach().cpu().numpy() gives its values"
    if getattr(tensor, "is_quantized", False):
        return "{name}.dequantize().cpu().numpy() gives its values"
    if any(getattr(tensor, which, bool)() for which in ("is_conj", "is_neg")):
        return "{name}.detach().cpu().resolve_conj().resolve_neg().numpy() gives its values"
    return _BFLOAT16 if is_bfloat16(tensor) else ""


def _library(array: Any) -> str:
    return type(array).__module__.partition(".")[0]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _elsewhere(array: Any) -> str:
    """Where an array lies, if not in the CPU's memory."""
    kind = type(array)
    if hasattr(kind, "__dlpack_device__"):
        try:
            device = array.__dlpack_device__()
            return "" if device[0] in _HOST else f"DLPack's device {tuple(map(int, device))}"
        except Exception:  # of several devices, or of none
            if not hasattr(kind, "__array__"):
                return "a device that it does not name"
    where = str(getattr(array, "device", "cpu")) if hasattr(kind, "device") else "cpu"
    return "" if "cpu" in where.lower() else where


def _inside(name: str, array: Any) -> Any:
    """What an array of xarray's is made of; what is still in a file stays there."""
    if not getattr(array.variable, "_in_memory", True):
        raise not_numpy(name, array, ", whose values are not in memory")
    return array.data


def _of_torch(name: str, tensor: Any) -> Any:
    """A tensor that NumPy can read; bfloat16 as that of `ml_dtypes`, in the same memory."""
    if tensor.requires_grad:
        raise TypeError(
            f"{name} requires grad, and autograd does not see what is done here: its gradient "
            f"would be lost; {name}.detach() is the same memory without it (gradients come from "
            "batch_norm_forward and batch_norm_backward)"
        )
    if not is_bfloat16(tensor):
        return tensor
    try:
        import ml_dtypes
    except ImportError:
        raise not_numpy(name, tensor, ", which takes the package ml_dtypes") from None
    bits = tensor.view(sys.modules["torch"].int16)
    return np.asarray(bits).view(ml_dtypes.bfloat16)
