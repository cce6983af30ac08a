"""Whose arrays a device takes, and who computes on the same memory there: torch and CuPy."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numba import cuda

from tests.cases import Case

EPS, MOMENTUM = 1e-5, 0.1
#: What arrays of a dtype are to Numba, which has no bfloat16.
BITS = {"bfloat16": "int16"}
Call = Callable[[], object]


@dataclass(frozen=True)
class Library:
    """How to copy arrays of a library to the device, and to float64 on the host."""

    name: str
    dtypes: tuple[str, ...]
    put: Callable[[np.ndarray, str], Any]
    get: Callable[[Any], np.ndarray]


def load(name: str) -> tuple[ModuleType | None, str]:
    """A library with a device that it can use, or why there is none."""
    try:
        module = __import__(name)
        if name == "torch" and not module.cuda.is_available():
            return None, "sees no device"
        if name == "cupy":
            module.zeros(1).sum().item()
        return module, ""
    except Exception as error:  # whatever it is, the others are still worth measuring
        return None, f"{type(error).__name__}: {error}"


def libraries(torch: ModuleType | None, cupy: ModuleType | None) -> list[Library]:
    """Numba, and those that there are."""
    found = [
        Library(
            "numba", ("float32", "float64", "float16"),
            lambda values, dtype: cuda.to_device(np.ascontiguousarray(values.astype(dtype))),
            lambda array: array.copy_to_host().astype(np.float64),
        )
    ]  # fmt: skip
    if torch:
        found.append(Library(
            "torch", ("float32", "float16", "bfloat16"),
            lambda values, dtype: torch.from_numpy(np.ascontiguousarray(values)).to(
                "cuda", getattr(torch, dtype)
            ),
            lambda array: array.double().cpu().numpy(),
        ))  # fmt: skip
    if cupy:
        found.append(Library(
            "cupy", ("float32", "float16"),
            lambda values, dtype: cupy.asarray(values.astype(dtype)),
            lambda array: cupy.asnumpy(array).astype(np.float64),
        ))  # fmt: skip
    return found


class Memory:
    """The tensors of one call, each a Numba array, and what is given to fastbn."""

    def __init__(self, case: Case, dtype: str, pool: np.ndarray, torch: ModuleType | None) -> None:
        self.case, self.dtype = case, dtype
        self.x, self.y, self.dy, self.dx = (_filled(case.shape, pool) for _ in range(4))
        parameters = "float64" if dtype == "float64" else "float32"
        ones = np.ones(case.channels, parameters)
        #: Running mean and variance, weight, bias.
        self.vectors = [cuda.to_device(k * ones) for k in (0, 1, 1, 0)]
        #: Weight and bias of a layer norm over the last axis.
        self.of_last = [cuda.to_device(k * np.ones(case.shape[-1], parameters)) for k in (1, 0)]
        names = ("x", "y", "dy", "dx")
        raw = {name: getattr(self, name) for name in names}
        self.given = {k: as_torch(torch, a, dtype) for k, a in raw.items()} if (
            dtype in BITS
        ) else raw  # fmt: skip


def pool_of(dtype: str, size: int = 2**20) -> np.ndarray:
    """Random values in host memory, as Numba takes them."""
    values = np.random.default_rng(0).normal(2, 3, size).astype(np.float32)
    if dtype == "bfloat16":
        return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.int16)
    return values.astype(dtype)


def _filled(shape: tuple[int, ...], pool: np.ndarray) -> Any:
    """A new array with the values of ``pool`` again and again: zeros can be faster than data."""
    size = math.prod(shape)
    flat = cuda.device_array(size, pool.dtype)
    values = cuda.to_device(pool[: min(size, pool.size)])
    for begin in range(0, size, pool.size):
        end = min(begin + pool.size, size)
        flat[begin:end].copy_to_device(values[: end - begin])
    return flat.reshape(shape)


def as_torch(torch: ModuleType, array: Any, dtype: str = "") -> Any:
    """A tensor of the same memory."""
    tensor = torch.as_tensor(array, device="cuda")
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor


def torch_calls(torch: ModuleType, memory: Memory, cudnn: bool) -> dict[str, Call]:
    """The operations in torch, with cuDNN where it uses that, or with kernels of its own."""
    run = torch.nn.functional.batch_norm

    def tensor(array: Any) -> Any:  # torch has channels on axis 1, wherever they are in memory
        found = as_torch(torch, array, memory.dtype)
        return found.movedim(-1, 1) if memory.case.axis == -1 else found

    def forward(x: Any, training: bool) -> Any:
        with torch.backends.cudnn.flags(enabled=cudnn):
            return run(x, *vectors, training, MOMENTUM, EPS)

    x, dy = tensor(memory.x), tensor(memory.dy)
    vectors = [as_torch(torch, vector) for vector in memory.vectors]
    leaves = [leaf.detach().requires_grad_() for leaf in (x, *vectors[2:])]
    graph: list[Any] = []

    def backward() -> Any:
        with torch.backends.cudnn.flags(enabled=cudnn):
            if not graph:
                graph.append(run(leaves[0], *vectors[:2], *leaves[1:], True, MOMENTUM, EPS))
            return torch.autograd.grad(graph[0], leaves, dy, retain_graph=True)

    return {
        "evaluation": lambda: forward(x, False),
        "training": lambda: forward(x, True),
        "backward": backward,
    }


def cupy_calls(cupy: ModuleType, memory: Memory) -> dict[str, Call]:
    """The operations as array expressions, whose elementwise parts CuPy fuses."""
    case = memory.case
    axes = tuple(k for k in range(len(case.shape)) if k != case.axis % len(case.shape))
    shape = [case.channels if k not in axes else 1 for k in range(len(case.shape))]
    x, dy = cupy.asarray(memory.x), cupy.asarray(memory.dy)
    mean, var, weight, bias = (cupy.asarray(v).reshape(shape) for v in memory.vectors)

    @cupy.fuse()
    def normalize(x, mean, var, weight, bias):
        return (x - mean) / cupy.sqrt(var + EPS) * weight + bias

    @cupy.fuse()
    def input_gradient(dy, x, mean, rstd, weight, mean_dy, mean_product):
        return weight * rstd * (dy - mean_dy - (x - mean) * rstd * mean_product)

    def training() -> Any:
        m, v = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
        mean[...] = (1 - MOMENTUM) * mean + MOMENTUM * m
        var[...] = (1 - MOMENTUM) * var + MOMENTUM * case.count / (case.count - 1) * v
        return normalize(x, m, v, weight, bias)

    known: list[Any] = []

    def backward() -> Any:
        if not known:  # as a forward keeps them
            known[:] = x.mean(axes, keepdims=True), 1 / cupy.sqrt(x.var(axes, keepdims=True) + EPS)
        m, rstd = known
        d_bias = dy.sum(axes, keepdims=True)
        d_weight = (dy * (x - m)).sum(axes, keepdims=True) * rstd
        parts = d_bias / case.count, d_weight / case.count
        return input_gradient(dy, x, m, rstd, weight, *parts), d_weight, d_bias

    return {
        "evaluation": lambda: normalize(x, mean, var, weight, bias),
        "training": training,
        "backward": backward,
    }
