"""Calls on a device that have no bars yet: fused ones, and norms of each sample."""

from types import ModuleType
from typing import Any

import fastbn
from benchmarks.device_peers import EPS, MOMENTUM, Call, Memory, as_torch

GROUPS = 32


def _groups(channels: int) -> int:
    return GROUPS if channels % GROUPS == 0 and channels > GROUPS else 1


def more_calls(memory: Memory) -> dict[str, Call]:
    """fastbn's, whose backwards take the cache of a forward that is called once."""
    arrays, vectors, axis = memory.given, memory.vectors, memory.case.axis
    x, y, dy, dx = arrays["x"], arrays["y"], arrays["dy"], arrays["dx"]
    known: dict[str, Any] = {}
    last, groups = memory.case.shape[-1], _groups(memory.case.channels)

    def fused(activation: str, residual: Any = None) -> Any:
        return fastbn.batch_norm_forward(
            x, *vectors, True, axis=axis, out=y, activation=activation, residual=residual
        )

    def layer() -> Any:
        return fastbn.layer_norm_forward(x, last, *memory.of_last, out=y)

    def group() -> Any:
        return fastbn.group_norm_forward(x, groups, *vectors[2:], axis=axis, out=y)

    def backward(name: str, forward: Any, run: Any) -> Any:
        if name not in known:
            known[name] = forward()[1]
        return run(dy, known[name], out=dx)

    return {
        "training, relu + residual": lambda: fused("relu", dy),
        "backward, relu + residual": lambda: backward(
            "fused", lambda: fused("relu", dx), fastbn.batch_norm_backward
        ),
        "training, silu": lambda: fused("silu"),
        "layer norm": layer,
        "layer norm backward": lambda: backward("layer", layer, fastbn.norm_backward),
        "group norm": group,
        "group norm backward": lambda: backward("group", group, fastbn.norm_backward),
    }


def torch_more(torch: ModuleType, memory: Memory) -> dict[str, Call]:
    """torch's, one call after the other where it fuses nothing."""
    functional = torch.nn.functional

    def tensor(array: Any) -> Any:
        found = as_torch(torch, array, memory.dtype)
        return found.movedim(-1, 1) if memory.case.axis == -1 else found

    x, dy, residual = tensor(memory.x), tensor(memory.dy), tensor(memory.dx)
    rows, d_rows = (as_torch(torch, a, memory.dtype) for a in (memory.x, memory.dy))
    # torch wants parameters of these norms in the dtype of x
    vectors = [as_torch(torch, vector) for vector in memory.vectors]
    weight, bias = (vector.to(x.dtype) for vector in vectors[2:])
    ones, zeros = (as_torch(torch, vector).to(x.dtype) for vector in memory.of_last)
    groups, last = _groups(memory.case.channels), memory.case.shape[-1]

    def batch(x: Any, parameters: Any) -> Any:
        return functional.batch_norm(x, *vectors[:2], *parameters, True, MOMENTUM, EPS)

    forwards = {
        "relu + residual": (
            lambda x, w, b, r: torch.relu(batch(x, (w, b)) + r), (x, *vectors[2:], residual), dy
        ),
        "layer norm": (
            lambda x, w, b: functional.layer_norm(x, (last,), w, b), (rows, ones, zeros), d_rows
        ),
        "group norm": (
            lambda x, w, b: functional.group_norm(x, groups, w, b), (x, weight, bias), dy
        ),
    }  # fmt: skip

    def backward(name: str) -> Call:
        graph: list[Any] = []

        def call() -> Any:
            function, arguments, gradient = forwards[name]
            if not graph:
                leaves = [a.detach().requires_grad_() for a in arguments]
                graph.extend((function(*leaves), leaves))
            return torch.autograd.grad(graph[0], graph[1], gradient, retain_graph=True)

        return call

    def forward(name: str) -> Call:
        function, arguments, _ = forwards[name]
        return lambda: function(*arguments)

    return {
        "training, relu + residual": forward("relu + residual"),
        "backward, relu + residual": backward("relu + residual"),
        "training, silu": lambda: functional.silu(batch(x, vectors[2:])),
        "layer norm": forward("layer norm"),
        "layer norm backward": backward("layer norm"),
        "group norm": forward("group norm"),
        "group norm backward": backward("group norm"),
    }
