"""Layers and arrays into files."""

from __future__ import annotations  # so that `help` shows types as they are written here

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from fastbn._system.files import check_writable, replacing
from fastbn.checkpoint.safetensors_file import library
from fastbn.checkpoint.settings import KEY, NAMES, RENORM, limit_noted, noted
from fastbn.checkpoint.zip_file import leads_out
from fastbn.layers.layer import Layer
from fastbn.layers.renorm import BatchRenorm
from fastbn.layers.state import LayerState


def save(layers: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write layers, and other arrays of a network, to a file that `load_batch_norms` reads.

    Parameters
    ----------
    layers : mapping of str to layer or array
        Layers by name, as `load_batch_norms` gives them; arrays are written as they are.
    path : path
        Ends in ``.npz`` or ``.safetensors`` (which needs ``pip install 'fastbn[safetensors]'``).
        A file that is there is replaced, wholly or not at all.

    Raises
    ------
    TypeError
        If ``layers`` holds anything else.
    ValueError
        If the path ends otherwise, two arrays would have the same name, or a name, a dtype or a
        setting (a function as ``r_max``) cannot be written. No file was written or changed.

    Notes
    -----
    Arrays have torch's names, ``bn1.weight`` and so on: ``np.load`` and torch's
    ``load_state_dict`` take them. What a state dict does not hold (`eps`, `momentum`, the
    dimension, the channel axis, the activation, …) is kept in a note beside them, and comes back
    with `load_batch_norms`; the mode is not kept. A subclass of your own comes back as the layer
    of fastbn that it is made of. An instance norm that tracks statistics comes back as the batch
    norm that evaluates the same. Of layers without running statistics, such as `GroupNorm`, the
    arrays alone are kept: make the layer again, and load ``load_tensors(path)`` into it.

    An ``.npz`` cannot hold bfloat16: float32 holds the same values, and is written in its place.

    Examples
    --------
    >>> import fastbn, tempfile
    >>> layers = {"bn1": fastbn.BatchNorm2d(3, eps=1e-3)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fastbn.save(layers, f"{folder}/norms.npz")
    ...     fastbn.load_batch_norms(f"{folder}/norms.npz")["bn1"].eps
    0.001
    """
    arrays, settings = _parts(layers)
    path = Path(os.fsdecode(path))
    check_writable(path)
    match path.suffix.lower():
        case ".npz":
            write, cannot = _write_npz, leads_out
        case ".safetensors":
            library()  # or say where it comes from
            write, cannot = _write_safetensors, _is_metadata
        case suffix:
            raise ValueError(f"path must end in .npz or .safetensors, got {suffix!r} in '{path}'")
    for name in arrays:
        _check_name(name, cannot(name))
    # none where it says nothing: then every entry of the file is an array of numbers
    note = {KEY: noted(settings)} if settings else {}
    with replacing(path) as part:
        write(part, arrays, note)


def _parts(layers: Any) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
    """All arrays by name, and settings of layers."""
    if not isinstance(layers, Mapping):
        raise TypeError(
            "layers must be a mapping of names to layers or arrays, such as {'bn1': bn}, got "
            f"{type(layers).__name__}"
        )
    arrays: dict[str, np.ndarray] = {}
    settings: dict[str, dict[str, Any]] = {}
    for name, value in layers.items():
        if not isinstance(name, str):
            raise TypeError(f"names must be strings, got {name!r}")
        if isinstance(value, Layer):
            new = value.state_dict(f"{name}." if name else "")
            settings[name] = _settings(name, value)
        else:
            new = {name: _checked(name, value)}
        twice = [key for key in new if key in arrays or key == KEY]
        if twice:
            raise ValueError(f"two arrays would have the name {twice[0]!r}")
        arrays.update(new)
    return arrays, {name: values for name, values in settings.items() if values}


def _settings(name: str, layer: Layer) -> dict[str, Any]:
    """What a layer with running statistics was made with; of others only arrays are kept."""
    if not isinstance(layer, LayerState) or layer.running_mean is None:
        return {}
    values = {key: getattr(layer, key) for key in NAMES if hasattr(layer, key)}
    values["dimensions"] = layer._rank - 2  # without those of samples and channels
    if isinstance(layer, BatchRenorm):
        values["kind"] = RENORM
        try:
            values |= {key: limit_noted(key, values[key]) for key in ("r_max", "d_max")}
        except ValueError as error:
            raise ValueError(f"{name!r} {error}") from None
    return values


def _check_name(name: str, why: str) -> None:
    """Refuse what a file cannot have for a name, or would cut off."""
    if "\0" in name:
        why = "has a NUL character in it, at which names in files end"
    elif any("\ud800" <= letter <= "\udfff" for letter in name):
        why = "has half a character (a surrogate) in it, which no name of a file can hold"
    if why:
        raise ValueError(f"{name[:200]!r} {why}; give it another name")


def _is_metadata(name: str) -> str:
    """Why safetensors cannot have a name; empty where it can."""
    return "is what safetensors has as a name of its own" if name == "__metadata__" else ""


def _checked(name: str, value: Any) -> np.ndarray:
    if not isinstance(value, (np.ndarray, np.generic)):
        way = ""
        if hasattr(value, "state_dict"):
            way = "; pass the arrays of its state dict, or a layer of fastbn that has loaded them"
        raise TypeError(
            f"{name!r} must be a layer of fastbn or a NumPy array, got {type(value).__name__}{way}"
        )
    array = np.asarray(value)
    if array.dtype.kind not in "biufc" and not _is_extension(array.dtype):
        raise ValueError(f"{name!r} has dtype {array.dtype}, expected numbers")
    return array


def _is_extension(dtype: np.dtype) -> bool:
    """Whether it is one of `ml_dtypes`."""
    return dtype.name.startswith(("bfloat16", "float8"))


def _write_npz(path: Path, arrays: Mapping[str, np.ndarray], note: dict[str, str]) -> None:
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        for name, array in {
            **arrays,
            **{key: np.array(text) for key, text in note.items()},
        }.items():
            wide = array.astype(np.float32) if _is_extension(array.dtype) else array
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                npy.write_array(file, wide, allow_pickle=False)


def _write_safetensors(path: Path, arrays: Mapping[str, np.ndarray], note: dict[str, str]) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    dense = {
        name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()
    }
    try:
        save_file(dense, str(path), metadata={"format": "pt", **note})
    except (KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"safetensors cannot hold one of the arrays: {error}") from error
