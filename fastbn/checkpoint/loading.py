"""Layers and arrays out of files and mappings."""

from __future__ import annotations  # so that `help` shows types as they are written here

import difflib
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastbn._call import backend, places
from fastbn.checkpoint import files
from fastbn.checkpoint.contents import Checkpoint, Lazy, Norm, Tensors
from fastbn.checkpoint.layers import layer_of
from fastbn.checkpoint.names import flatten
from fastbn.checkpoint.prefixes import named
from fastbn.checkpoint.recognize import norms_of
from fastbn.layers.base import BatchNorm
from fastbn.layers.names import COUNTER

_SHOWN = 3


def load_batch_norms(
    source: Any,
    *,
    prefix: str = "",
    eps: float | None = None,
    dimensions: int | Mapping[str, int] | None = None,
) -> dict[str, BatchNorm]:
    """Every batch norm of a trained network, as layers in evaluation mode.

    They compute ``y = (x - running_mean) / sqrt(running_var + eps) * weight + bias`` per channel;
    ``train()`` makes a layer learn on. All of them are loaded, or none. Nothing of a file is run,
    and PyTorch is not needed.

    Parameters
    ----------
    source : path or mapping
        A file: ``.pth`` or ``.pt`` of ``torch.save`` (of today and before torch 1.6),
        ``.safetensors``, ``.npz``, ``.onnx``, ``.keras`` or ``.h5``, or the ``.index.json`` of
        several files. Or a mapping of names to arrays, or to what converts to them: torch's state
        dicts, on a GPU as well, and nested ones such as ``{"model": state_dict}``.
    prefix : str
        Only layers whose names begin with it, such as ``"backbone."``; it is left off.
    eps : float, optional
        For all layers. By default it is the file's, where it says one (ONNX, Keras, and what
        `fastbn.save` has written); otherwise 1e-5, as in torch, whose files do not hold it: give
        it where the network was made with another (MobileNetV3 and Inception have 1e-3). Names of
        Keras in a mapping or ``.npz`` mean 1e-3.
    dimensions : 1, 2, 3 or mapping of names to these, optional
        Make layers `BatchNorm1d`, `BatchNorm2d` or `BatchNorm3d`. By default it is what fits the
        convolution or linear layer before it: the nearest weight before, in the file's order, whose
        output channels match (in a safetensors file, which is sorted by name, the one of the most
        similar path). Where there is none, 2. Evaluation computes the same whatever it is.

    Returns
    -------
    dict of str to BatchNorm1d, BatchNorm2d or BatchNorm3d
        By the names that the layers have in the network, in the file's order; `BatchRenorm2d` and
        the like where `fastbn.save` has noted it. Dictionaries around a state dict, and the
        ``module.`` of torch's DataParallel (``_orig_mod.`` of ``torch.compile``), are no part of a
        name, unless two arrays would then have the same. Arrays are float32 (float64 where the
        file's are) and the layer's own. ``momentum`` is in torch's meaning: Keras's 0.99 is 0.01.

    Raises
    ------
    ValueError
        If the file is damaged, or holds anything but arrays and plain containers (the message
        names it); if there is no batch norm; if an array has a wrong shape or dtype, holds NaN or
        infinity, or a negative variance. The message names the file and the array.
    FileNotFoundError
        If there is no such file.
    ImportError
        If a package for this kind of file is missing; the message says what to install.

    Notes
    -----
    A batch norm is what has ``running_mean`` and ``running_var``, with ``weight`` and ``bias`` or
    Gluon's ``gamma`` and ``beta`` (Keras: ``moving_mean`` and ``moving_variance``; Flax: ``mean``
    and ``var`` under ``batch_stats``). A weight that torch has pruned is the product
    ``weight_orig * weight_mask``; one that is computed in another way, as by a parametrization, is
    refused, with what to do. An instance norm that tracks statistics has the same names, and
    cannot be told apart. Keras and Flax keep the biased variance, torch the unbiased one;
    evaluation uses either as it is. A file of torch is read by an interpreter that knows plain
    values and tensors only; of its values, those that are used are read, through a memory map. A
    mapping of torch's tensors needs torch only where it was made.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> state = {"module.conv1.weight": np.ones((2, 3, 7, 7), np.float32),
    ...          "module.bn1.running_mean": np.zeros(2), "module.bn1.running_var": np.ones(2)}
    >>> fastbn.load_batch_norms({"model": state}, eps=1e-3)
    {'bn1': BatchNorm2d(2, eps=0.001, momentum=0.1, affine=False, bias=False, \
track_running_stats=True, dtype=float64)}
    """
    if not isinstance(prefix, str):
        raise TypeError(f"prefix must be a string, got {prefix!r}")
    with files.naming(source):
        checkpoint = checkpoint_of(source)
        return layers_of(checkpoint, norms_of(checkpoint), prefix, eps, dimensions)


def layers_of(
    checkpoint: Checkpoint,
    norms: list[Norm],
    prefix: str,
    eps: float | None,
    dimensions: int | Mapping[str, int] | None,
) -> dict[str, BatchNorm]:
    """What `load_batch_norms` returns, of the norms that were found in a checkpoint."""
    found = named(norms, prefix)
    if not found:
        raise ValueError(nothing_found(checkpoint, norms, prefix))
    sizes = _checked_dimensions(dimensions, found)
    return {
        name: layer_of(norm, eps, sizes.get(name), checkpoint.settings.get(norm.name, {}))
        for name, norm in found.items()
    }


def load_tensors(source: Any, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Arrays of a checkpoint by name: the convolutions beside its batch norms, and all others.

    Parameters
    ----------
    source : path or mapping
        What `load_batch_norms` takes.
    names : iterable of str, optional
        Which ones; only these are read. By default all.

    Returns
    -------
    dict of str to numpy.ndarray
        In the order of ``names``, or of the file; copies that can be changed, of the file's dtypes
        and unchecked values. bfloat16 is that of `ml_dtypes` where it is installed (and is
        float32, which holds the same values, where it is not, and for torch's tensors in a
        mapping). Names are as `load_batch_norms` has them.

    Raises
    ------
    KeyError
        If there is no array of a name; the message has the most similar ones.
    ValueError, FileNotFoundError, ImportError
        As `load_batch_norms`, for what is wrong with a file.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> state = {"conv1.weight": np.ones((2, 3, 7, 7)), "bn1.running_mean": np.zeros(2)}
    >>> fastbn.load_tensors(state, ["conv1.weight"])["conv1.weight"].shape
    (2, 3, 7, 7)
    """
    if isinstance(names, str):
        raise TypeError(f"names must be several names, got one string; names=[{names!r}]")
    with files.naming(source):
        tensors = checkpoint_of(source).tensors
        wanted = list(tensors) if names is None else list(names)
        for name in wanted:
            if name not in tensors:
                known = list(tensors)
                near = difflib.get_close_matches(str(name), known, _SHOWN) or known[:_SHOWN]
                raise KeyError(f"there is no array {name!r}; there are {_some(near, len(known))}")
        return {name: tensors[name] for name in wanted}


def find_batch_norms(source: Any) -> list[Norm]:
    """What `load_batch_norms` would make layers of, as arrays without any check of their values.

    For looking at a damaged network: NaN and negative variances come as they are, and ``invalid``
    says of a norm why it could be no layer at all.
    """
    with files.naming(source):
        return norms_of(checkpoint_of(source))


def checkpoint_of(source: Any) -> Checkpoint:
    """What a file or a mapping holds."""
    if isinstance(source, (str, os.PathLike)):
        return files.read(Path(os.fsdecode(source)))
    if not isinstance(source, Mapping):
        raise TypeError(
            "source must be a path, or a mapping of names to arrays such as model.state_dict(), "
            f"got {type(source).__name__}"
        )
    found = flatten(source, _is_array)
    entries = {
        name: Lazy(partial(_array_of, name, value), _shape_of(value))
        for name, value in found.items()
    }
    return Checkpoint(Tensors(entries), None)


# --- mappings -------------------------------------------------------------------------------------


def _is_array(name: str, value: Any) -> bool:
    """Whether a value is one of the arrays, and not of what is kept beside them."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return True
    if type(value) in (list, tuple):
        return bool(value) and all(type(number) in (int, float) for number in value)
    return type(value) in (int, float) and name.endswith(COUNTER)


def _shape_of(value: Any) -> tuple[int, ...] | None:
    with suppress(Exception):  # some values have no shape before they are used
        return tuple(map(int, value.shape))
    return None


def _array_of(name: str, value: Any) -> np.ndarray:
    """A copy of what may be a tensor of torch; NumPy refuses those that learn, and bfloat16."""
    try:
        if places.on_device(value):
            return backend.to_numpy(value, name)
        if not places.is_tensor(value):
            return np.array(value)
        value = value.detach().cpu()
        try:
            return np.asarray(value).copy()
        except TypeError:  # a dtype that NumPy has not
            return np.asarray(value.float()).copy()
    except Exception as error:
        raise ValueError(f"{name!r} cannot be read as an array: {error}") from error


# --- arguments and messages -----------------------------------------------------------------------


def _checked_dimensions(dimensions: Any, found: Mapping[str, Norm]) -> dict[str, int]:
    """Dimensions by names of layers, for those that were given any."""
    if dimensions is None:
        return {}
    sizes = (
        dict(dimensions) if isinstance(dimensions, Mapping) else dict.fromkeys(found, dimensions)
    )
    for name, size in sizes.items():
        if name not in found:
            near = difflib.get_close_matches(str(name), found, _SHOWN) or list(found)[:_SHOWN]
            raise KeyError(
                f"dimensions has {name!r}, which is no batch norm; there are "
                f"{_some(near, len(found))}"
            )
        if isinstance(size, bool) or size not in (1, 2, 3):
            raise ValueError(
                f"dimensions must be 1, 2 or 3, or a mapping of names to these, got {size!r}"
            )
    return sizes


def nothing_found(checkpoint: Checkpoint, norms: list[Norm], prefix: str) -> str:
    """Why there is no batch norm of such a name, and what there is."""
    if norms:
        shown = _some([norm.name for norm in norms[:_SHOWN]], len(norms))
        return f"no batch norm has a name that begins with prefix={prefix!r}; there are {shown}"
    if checkpoint.no_norms:
        return checkpoint.no_norms
    names = list(checkpoint.tensors)
    there = f"the {len(names)} arrays are {_some(names[:_SHOWN], len(names))}" if names else "empty"
    return (
        "has no batch norm: no array running_mean or moving_mean beside a variance; were they "
        f"folded into the convolutions, or made without running statistics? {there}"
    )


def _some(names: list[str], total: int) -> str:
    shown = ", ".join(repr(name[:200]) for name in names)
    return shown if len(names) >= total else f"{shown} and {total - len(names)} more"
