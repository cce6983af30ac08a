"""uint8 images to normalized float32: beside NumPy, torchvision and albumentations.

Each row is a call of fastbn that makes a new array, as its users write it, timed in turn with the
same by others, with as many threads. Ratios below 1 mean that fastbn takes less time. "copy"
copies the float32 result. What takes single images gets a batch one by one, and need not stack it.
What compiling costs: ``python -m benchmarks cold --cases 'standardize*'``.
"""

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

import fastbn
from benchmarks.around import Row, measured

Call = Callable[[], object]
#: Height and width, and images of a batch; 0 stands for an image alone.
IMAGES = ((224, 224), 0), ((1080, 1920), 0), ((224, 224), 32)
#: Where the channels are and where they go, counted from the end.
LAYOUTS = {"NHWC": (-1, -1), "NHWC to NCHW": (-1, -3), "NCHW": (-3, -3), "NCHW to NHWC": (-3, -1)}
#: Of NumPy's time fastbn takes this part at most.
NUMPY_BAR = 0.25
MEAN, STD, SCALE = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1 / 255
OTHERS = "torchvision", "albumentations"


def _numpy(x: np.ndarray, axis: int, out_axis: int) -> Call:
    """As a user would write it, in float32."""
    shape = [1] * x.ndim
    shape[axis] = 3
    scale = np.float32(SCALE)
    mean, std = (np.array(v, np.float32).reshape(shape) for v in (MEAN, STD))
    if axis == out_axis:
        return lambda: ((x * scale - mean) / std).astype(np.float32)
    return lambda: np.ascontiguousarray(np.moveaxis((x * scale - mean) / std, axis, out_axis))


def _torchvision(x: np.ndarray, axis: int, out_axis: int) -> dict[str, Call]:
    """Both generations of its transforms, which all give channels first."""
    import torch
    from torchvision import transforms
    from torchvision.transforms import v2

    torch.set_num_threads(fastbn.get_num_threads())
    if out_axis == -1:
        return {}
    normalize = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    if axis == -3:
        tensor = torch.from_numpy(x)
        return {"torchvision v2": lambda: normalize(tensor)}
    first = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    second = v2.Compose([v2.ToImage(), normalize])
    return {
        "torchvision": lambda: [first(image) for image in _images(x)],
        "torchvision v2": lambda: [second(image) for image in _images(x)],
    }


def _albumentations(x: np.ndarray, axis: int, out_axis: int) -> dict[str, Call]:
    """Its transform is of one image, with channels last."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations
    import cv2

    cv2.setNumThreads(fastbn.get_num_threads())
    if axis != -1 or out_axis != -1:
        return {}
    transform = albumentations.Normalize(MEAN, STD, 1 / SCALE)
    return {"albumentations": lambda: [transform(image=image) for image in _images(x)]}


def _images(x: np.ndarray) -> Any:
    return x if x.ndim == 4 else (x,)


def _rows(size: tuple[int, int], batch: int, peers: list[str]) -> list[Row]:
    """Each layout of an image, or of a batch."""
    rng = np.random.default_rng(0)
    shape = (*((batch,) if batch else ()), *size, 3)
    last = rng.integers(0, 256, shape, np.uint8)
    first = np.ascontiguousarray(np.moveaxis(last, -1, -3))
    result = rng.standard_normal(shape, np.float32)
    rows = []
    for name, (axis, out_axis) in LAYOUTS.items():
        x = last if axis == -1 else first
        calls: dict[str, Call] = {
            "call": lambda x=x, axis=axis, out_axis=out_axis: fastbn.standardize(
                x, MEAN, STD, scale=SCALE, axis=axis, out_axis=out_axis
            ),
            "numpy": _numpy(x, axis, out_axis),
            "copy": result.copy,
        }
        if "torchvision" in peers:
            calls |= _torchvision(x, axis, out_axis)
        if "albumentations" in peers:
            calls |= _albumentations(x, axis, out_axis)
        rows.append(Row(name, x.shape, calls, NUMPY_BAR))
    y = fastbn.standardize(last, MEAN, STD, scale=SCALE, axis=-1, out_axis=-3)
    rows.append(Row("back to bytes, NCHW to NHWC", y.shape, {
        "call": lambda: fastbn.destandardize(
            y, MEAN, STD, scale=SCALE, axis=-3, out_axis=-1, dtype=np.uint8
        ),
        "copy": result.copy,
    }))  # fmt: skip
    return rows


def _agree(rows: list[Row]) -> None:
    """Others compute the same, or the comparison is of nothing."""
    for row in rows:
        found = np.asarray(row.calls["call"]())
        for name, call in row.calls.items():
            if name in ("call", "copy"):
                continue
            other: Any = call()
            if isinstance(other, list):
                other = np.stack([np.asarray(o["image"] if isinstance(o, dict) else o)
                                  for o in other])  # fmt: skip
            np.testing.assert_allclose(
                np.asarray(other).reshape(found.shape), found, atol=1e-5, err_msg=name
            )


def standardize(threads: int, to: Path | None) -> bool:
    """Measure and print the table; whether every bar is met."""
    if threads:
        fastbn.set_num_threads(threads)
    peers = [name for name in OTHERS if importlib.util.find_spec(name) is not None]
    for name in OTHERS:
        if name not in peers:
            print(f"{name} is not installed, and left out.")
    found = []
    for size, batch in IMAGES:
        rows = _rows(size, batch, peers)
        _agree(rows)
        found += measured(rows)
    if to is not None:
        to.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    columns = ["call", "ms", "/ copy", "/ numpy", "/ torchvision", "/ torchvision v2",
               "/ albumentations"]  # fmt: skip
    table = [["" if row.get(c) is None else row[c] for c in columns] for row in found]
    print(f"{fastbn.get_num_threads()} threads. Time of the call, and as a ratio to others:\n")
    print(tabulate(table, columns, tablefmt="github", floatfmt=".3g"))
    missed = [row["call"] for row in found if row["bar"] and row["/ numpy"] > row["bar"]]
    slower = [row["call"] for row in found if any(row.get(c, 0) > 1 for c in columns[4:])]
    print(f"\nMore than {NUMPY_BAR} of NumPy's time: {'; '.join(missed) or 'none'}.")
    print(f"Slower than others: {'; '.join(slower) or 'none'}.")
    return not missed and not slower
