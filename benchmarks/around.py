"""What is around the layer: fused passes, 16 bits, norms of samples; beside torch, NumPy, itself.

Each row is a call of fastbn into an output that is there, timed in turn with the same by torch
(unfused, as its users write it), by NumPy, and with the plain float32 call of fastbn that it is
held to. Ratios below 1 mean that fastbn takes less time, or less than its plain call.
"""

import importlib.util
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tabulate import tabulate

import fastbn
from benchmarks.measure import repeats, rounds, sample

Call = Callable[[], object]
#: Shapes of a network's layers, and tables of a transformer's.
FUSED = (32, 64, 56, 56), (1, 256, 56, 56)
GROUPED = ((8, 256, 56, 56), 32), ((32, 64, 14, 14), 8)
ROWS = (8192, 768), (2048, 4096), (64, 256)
EPS = 1e-5


class Row(NamedTuple):
    """A call, who it is compared with, and what its ratio to the plain call is to be at most."""

    name: str
    shape: tuple[int, ...]
    calls: dict[str, Call]
    bar: float | None = None


def _torch() -> Any:
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    torch.set_num_threads(fastbn.get_num_threads())
    return torch


def _drawn(shape: tuple[int, ...], *vectors: int) -> list[np.ndarray]:
    """An array, a gradient, a residual, an output; and parameters."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape, np.float32) for _ in range(3)]
    return [
        *arrays,
        np.empty_like(arrays[0]),
        *(rng.uniform(0.5, 2, n).astype("f4") for n in vectors),
    ]


def _fused(shape: tuple[int, ...]) -> list[Row]:
    """``relu(bn(x) + r)`` in evaluation, training and backward, and an activation that computes."""
    channels = shape[1]
    x, dy, r, out, weight, bias, mean, var = _drawn(shape, *[channels] * 4)
    given, along = (mean, var, weight, bias), (slice(None), None, None)
    add = {"residual": r, "activation": "relu"}
    # the residual's bytes: one more array that is read, of two that are moved (three in training)
    rows = [
        Row("evaluation, relu(bn(x) + r)", shape, {
            "call": lambda: fastbn.batch_norm(x, *given, out=out, **add),
            "plain": lambda: fastbn.batch_norm(x, *given, out=out),
            "numpy": lambda: np.maximum(
                (x - mean[along]) * (weight / np.sqrt(var + EPS))[along] + bias[along] + r, 0
            ),
        }, 1.1 * 1.5),
        Row("evaluation, relu(bn(x))", shape, {
            "call": lambda: fastbn.batch_norm(x, *given, out=out, activation="relu"),
            "plain": lambda: fastbn.batch_norm(x, *given, out=out),
        }, 1.1),
        Row("evaluation, silu(bn(x))", shape, {
            "call": lambda: fastbn.batch_norm(x, *given, out=out, activation="silu"),
            "plain": lambda: fastbn.batch_norm(x, *given, out=out),
        }, 1.1),
        Row("training, relu(bn(x) + r)", shape, {
            "call": lambda: fastbn.batch_norm(x, None, None, weight, bias, True, out=out, **add),
            "plain": lambda: fastbn.batch_norm(x, None, None, weight, bias, True, out=out),
        }, 1.1 * 4 / 3),
    ]  # fmt: skip
    _, cache = fastbn.batch_norm_forward(x, None, None, weight, bias, True, **add)
    _, plain = fastbn.batch_norm_forward(x, None, None, weight, bias, True)
    dx = np.empty_like(x)
    rows.append(Row("backward of relu(bn(x) + r)", shape, {
        "call": lambda: fastbn.batch_norm_backward(dy, cache, out=dx),
        "plain": lambda: fastbn.batch_norm_backward(dy, plain, out=dx),
    }))  # fmt: skip
    torch = _torch()
    if torch is None:
        return rows
    functional = torch.nn.functional
    tx, tr, *t = (torch.from_numpy(a) for a in (x, r, mean, var, weight, bias))
    tm, tv, tw, tb = t

    def chain(training: bool, after: Callable, *statistics: Any) -> Call:
        def call() -> object:
            with torch.no_grad():
                return after(functional.batch_norm(tx, *statistics, tw, tb, training))

        return call

    added = lambda y: y.add_(tr).relu_()  # noqa: E731
    rows[0].calls["torch"] = chain(False, added, tm, tv)
    rows[1].calls["torch"] = chain(False, lambda y: y.relu_(), tm, tv)
    rows[2].calls["torch"] = chain(False, lambda y: functional.silu(y, inplace=True), tm, tv)
    rows[3].calls["torch"] = chain(True, added, None, None)
    leaves = [a.clone().requires_grad_() for a in (tx, tr, tw, tb)]
    y = (functional.batch_norm(leaves[0], None, None, *leaves[2:], True) + leaves[1]).relu()
    tdy = torch.from_numpy(dy)
    rows[4].calls["torch"] = lambda: torch.autograd.grad(y, leaves, tdy, retain_graph=True)
    return rows


def _sixteen(shape: tuple[int, ...]) -> list[Row]:
    """float16 and bfloat16, held to the time of float32."""
    x, _, _, out, weight, bias, mean, var = _drawn(shape, *[shape[1]] * 4)
    given, torch, rows = (mean, var, weight, bias), _torch(), []
    kinds: dict[str, Any] = {"float16": np.float16}
    if importlib.util.find_spec("ml_dtypes") is not None:
        import ml_dtypes

        kinds["bfloat16"] = ml_dtypes.bfloat16
    for name, kind in kinds.items():
        small, small_out = x.astype(kind), out.astype(kind)
        for mode, training in (("evaluation", False), ("training", True)):
            how = (*((None, None) if training else given[:2]), *given[2:], training)
            calls: dict[str, Call] = {
                "call": lambda a=small, o=small_out, how=how: fastbn.batch_norm(a, *how, out=o),
                "plain": lambda how=how: fastbn.batch_norm(x, *how, out=out),
            }
            if torch is not None:
                t = torch.from_numpy(x).to(getattr(torch, name))
                tensors = [None if v is None else torch.from_numpy(v) for v in how[:4]]
                calls["torch"] = lambda t=t, tensors=tensors, training=training: (
                    torch.nn.functional.batch_norm(t, *tensors, training)
                )
            rows.append(Row(f"{mode}, {name}", shape, calls, None if training else 0.6))
    return rows


def _row_norms(shape: tuple[int, int]) -> list[Row]:
    """Layer and RMS norm, beside torch's own."""
    torch = _torch()
    size = shape[1]
    x, dy, _, out, weight, bias = _drawn(shape, size, size)
    _, cache = fastbn.layer_norm_forward(x, size, weight, bias)
    dx = np.empty_like(x)
    calls: dict[str, dict[str, Call]] = {
        "layer norm": {
            "call": lambda: fastbn.layer_norm(x, size, weight, bias, out=out),
            "numpy": lambda: (x - (m := x.mean(1, keepdims=True)))
            / np.sqrt(((x - m) ** 2).mean(1, keepdims=True) + EPS) * weight + bias,
        },
        "layer norm, backward": {
            "call": lambda: fastbn.norm_backward(dy, cache, out=dx),
        },
        "RMS norm": {"call": lambda: fastbn.rms_norm(x, size, weight, EPS, out=out)},
    }  # fmt: skip
    if torch is not None:
        tx, tdy, tw, tb = map(torch.from_numpy, (x, dy, weight, bias))
        native = torch.ops.aten
        _, mean, rstd = native.native_layer_norm(tx, (size,), tw, tb, EPS)
        f = torch.nn.functional
        calls["layer norm"]["torch"] = lambda: f.layer_norm(tx, (size,), tw, tb)
        calls["layer norm, backward"]["torch"] = lambda: native.native_layer_norm_backward(
            tdy, tx, (size,), mean, rstd, tw, tb, [True] * 3
        )
        calls["RMS norm"]["torch"] = lambda: f.rms_norm(tx, (size,), tw, EPS)
    return [Row(name, shape, calls[name]) for name in calls]


def _group_norms(shape: tuple[int, ...], groups: int) -> list[Row]:
    """Group norm, forward and backward, beside torch's own."""
    torch = _torch()
    channels = shape[1]
    x, dy, _, out, weight, bias = _drawn(shape, channels, channels)
    _, cache = fastbn.group_norm_forward(x, groups, weight, bias)
    dx = np.empty_like(x)
    calls: dict[str, dict[str, Call]] = {
        f"group norm of {groups}": {
            "call": lambda: fastbn.group_norm(x, groups, weight, bias, out=out),
            "plain": lambda: fastbn.batch_norm(x, None, None, weight, bias, True, out=out),
        },
        f"group norm of {groups}, backward": {
            "call": lambda: fastbn.norm_backward(dy, cache, out=dx),
        },
    }
    if torch is not None:
        tx, tdy, tw, tb = map(torch.from_numpy, (x, dy, weight, bias))
        native, sizes = torch.ops.aten, (shape[0], channels, x[0, 0].size, groups)
        _, mean, rstd = torch.native_group_norm(tx, tw, tb, *sizes, EPS)
        forward, backward = calls.values()
        forward["torch"] = lambda: torch.nn.functional.group_norm(tx, groups, tw, tb)
        backward["torch"] = lambda: native.native_group_norm_backward(
            tdy, tx, mean, rstd, tw, *sizes, [True] * 3
        )
    return [Row(name, shape, calls[name]) for name in calls]


def measured(rows: list[Row]) -> list[dict[str, Any]]:
    """What was measured of each row: seconds, and medians of the ratios of each round."""
    found = []
    for row in rows:
        counts = {name: repeats(call) for name, call in row.calls.items()}
        times: dict[str, list[float]] = {name: [] for name in row.calls}
        for _ in range(max(7, rounds(row.calls))):
            for name, call in row.calls.items():
                times[name].append(sample(call, counts[name]) / counts[name])
        ratios = {
            f"/ {name}": statistics.median(a / b for a, b in zip(times["call"], of, strict=True))
            for name, of in times.items()
            if name != "call"
        }
        shape = "x".join(map(str, row.shape))
        seconds = statistics.median(times["call"])
        found.append(
            {"call": f"{row.name}: {shape}", "ms": 1e3 * seconds, **ratios, "bar": row.bar}
        )
    return found


def around(threads: int, to: Path | None) -> bool:
    """Measure and print the table; whether every bar is met."""
    if threads:
        fastbn.set_num_threads(threads)
    rows = []
    for shape in FUSED:
        rows += measured(_fused(shape))
    rows += measured(_sixteen((32, 256, 56, 56)))
    for table in ROWS:
        rows += measured(_row_norms(table))
    for shape, groups in GROUPED:
        rows += measured(_group_norms(shape, groups))
    if to is not None:
        to.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    columns = ["call", "ms", "/ plain", "bar", "/ torch", "/ numpy"]
    table = [["" if row.get(c) is None else row[c] for c in columns] for row in rows]
    print(f"{fastbn.get_num_threads()} threads. Time of the call, and as a ratio to others:\n")
    print(tabulate(table, columns, tablefmt="github", floatfmt=".3g"))
    missed = [row["call"] for row in rows if row["bar"] and row["/ plain"] > row["bar"]]
    slower = [row["call"] for row in rows if row.get("/ torch", 0) > 1]
    for what, calls in (("Above the bar", missed), ("Slower than torch", slower)):
        print(f"\n{what}: {'; '.join(calls) or 'none'}.")
    return not missed
