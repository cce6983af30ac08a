"""Layers of a network, made to take statistics over all ranks."""

import zlib
from typing import Any

import numpy as np

from fastbn.distributed.collectives import Communicator, check_comm
from fastbn.distributed.exchange import agree
from fastbn.distributed.layer import Sums, SyncBatchNorm
from fastbn.layers.base import BatchNorm
from fastbn.layers.batch import BatchNorm1d, BatchNorm2d, BatchNorm3d

_PLAIN = BatchNorm1d, BatchNorm2d, BatchNorm3d


def convert_sync_batchnorm(
    layers: Any, comm: Communicator, *, parameter_gradients: Sums = "local"
) -> Any:
    """``layers`` with a `SyncBatchNorm` for every BatchNorm1d, 2d and 3d.

    The new layers take over the arrays, settings and modes of the old ones: the arrays
    themselves, so an optimizer that holds them goes on. The call is collective, as making such a
    layer is: all ranks make it, with the same layers.

    Parameters
    ----------
    layers : a layer, or dicts, lists and tuples of layers, nested as you like
        Not changed. What is no batch norm stays as it is, and so does a `SyncBatchNorm`. A layer
        that is there twice is one layer afterwards too.
    comm : communicator of mpi4py
        Whose ranks have the batches.
    parameter_gradients : {"local", "global"}
        As of `SyncBatchNorm`.

    Returns
    -------
    layers
        New containers of the same kinds. Inputs of (C, H, W) and (C, D, H, W), which BatchNorm2d
        and 3d take for one sample, are batches to the new layers.

    Raises
    ------
    TypeError
        For a layer of a class derived from BatchNorm, such as BatchRenorm2d, which does more; or
        if there is no batch norm in ``layers``: the attributes of an object are not looked at.
    NotImplementedError
        For a layer with ``virtual_batch_size``, or on a device.
    ValueError, RuntimeError
        If ranks have different layers, weights or running statistics, or another rank has raised.
        No layer was made then.

    Examples
    --------
    >>> import fastbn
    >>> from fastbn.distributed import convert_sync_batchnorm
    >>> class Alone:  # in place of mpi4py's MPI.COMM_WORLD: a communicator of one rank
    ...     def Get_rank(self): return 0
    ...     def Get_size(self): return 1
    ...     def Allgather(self, send, receive): receive[...] = send
    >>> network = {"bn1": fastbn.BatchNorm2d(8), "blocks": [fastbn.BatchNorm1d(4, eps=1e-3)]}
    >>> network = convert_sync_batchnorm(network, Alone())
    >>> network["blocks"]
    [SyncBatchNorm(4, eps=0.001, momentum=0.1, affine=True, bias=True, track_running_stats=True)]
    """
    found: list[tuple[str, BatchNorm]] = []
    plain: dict[int, BatchNorm] = {}

    def look() -> tuple[str, list[np.ndarray]]:
        _collect(layers, "layers", found)
        if not found:
            raise TypeError(
                f"there is no BatchNorm1d, 2d or 3d in layers, got a {type(layers).__name__}; pass "
                "a layer, or a dict or list of layers, such as vars(network)"
            )
        for _, layer in found:
            if not isinstance(layer, SyncBatchNorm):
                plain[id(layer)] = layer
        # the checksum is of all of it, since a long text is cut off
        described = ", ".join(f"{path}: {layer!r}" for path, layer in found)
        checksum = zlib.crc32(described.encode())
        arrays = [array for layer in plain.values() for array in layer._arrays().values()]
        said = f"{len(plain)} layers to convert (checksum {checksum:08x} of {described})"
        return said, arrays

    agree(check_comm(comm), look)
    made = {
        key: _converted(layer, comm, parameter_gradients) for key, layer in plain.items()
    }  # fmt: skip
    return _replaced(layers, made)


def _collect(item: Any, path: str, found: list[tuple[str, BatchNorm]]) -> None:
    """All layers of batch norm, in the order of the containers; or an error that says where."""
    if isinstance(item, dict):
        for k, (key, value) in enumerate(item.items()):
            # a key of another kind may be shown otherwise by each process
            shown = repr(key) if isinstance(key, (str, int)) else f"<{type(key).__name__} {k}>"
            _collect(value, f"{path}[{shown}]", found)
    elif isinstance(item, (list, tuple)):
        for k, value in enumerate(item):
            _collect(value, f"{path}[{k}]", found)
    elif isinstance(item, SyncBatchNorm):
        found.append((path, item))
    elif isinstance(item, BatchNorm):
        if type(item) not in _PLAIN:
            raise TypeError(
                f"{path} is a {type(item).__name__}, expected BatchNorm1d, 2d or 3d, which are "
                "what SyncBatchNorm does; leave it out of the layers to keep it"
            )
        if item.virtual_batch_size is not None or item._device != "cpu":
            raise NotImplementedError(
                f"{path} has virtual_batch_size={item.virtual_batch_size} and is on "
                f"{item._device!r}, and SyncBatchNorm has no virtual batches and is on the CPU; "
                "set bn.virtual_batch_size = None, bn.to('cpu')"
            )
        found.append((path, item))


def _converted(layer: BatchNorm, comm: Communicator, parameter_gradients: Sums) -> SyncBatchNorm:
    new = SyncBatchNorm(
        layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats,
        comm=comm, bias=layer.bias is not None, axis=layer.axis, on_nonfinite=layer.on_nonfinite,
        activation=layer.activation, negative_slope=layer.negative_slope,
        parameter_gradients=parameter_gradients,
    )  # fmt: skip
    for name, array in layer._arrays().items():
        object.__setattr__(new, name, array)  # of the layer's dtypes, whatever they are
    return new._set_mode(layer._training, layer._frozen)


def _replaced(item: Any, made: dict[int, SyncBatchNorm]) -> Any:
    if isinstance(item, dict):
        new = {key: _replaced(value, made) for key, value in item.items()}
        return new if type(item) is dict else _of_kind(item, new)
    if isinstance(item, (list, tuple)):
        values = [_replaced(value, made) for value in item]
        if hasattr(item, "_fields"):  # a named tuple
            return type(item)(*values)
        return values if type(item) is list else type(item)(values)
    return made.get(id(item), item)


def _of_kind(old: dict, new: dict) -> dict:
    """``new`` as a dict of the kind of ``old``, such as an OrderedDict."""
    copy = old.copy()
    copy.update(new)
    return copy
