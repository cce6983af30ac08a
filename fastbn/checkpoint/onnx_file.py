"""ONNX models: BatchNormalization nodes with their constants, and all other constants."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastbn.checkpoint import onnx_tensor
from fastbn.checkpoint.contents import Checkpoint, Lazy, Norm, Tensors
from fastbn.checkpoint.onnx_graph import Scope, dimensions_of, name_of, ranks_of, scopes
from fastbn.layers.names import TORCH

__all__ = ["read"]

_LARGEST = 2**31 - 1  # of a protobuf message
_EPSILON, _MOMENTUM = 1e-5, 0.9  # defaults of the operator
_CONVOLUTIONS = ("Conv", "ConvTranspose", "FusedConv", "QLinearConv", "ConvInteger")


def read(path: Path) -> Checkpoint:
    """Batch norms and other constants of an ONNX model; needs ``pip install 'fastbn[onnx]'``.

    Tensors are the initializers of the graph and the results of its Constant nodes, under their
    names there, those of batch norms too, in the order of the nodes that use them. A kernel of a
    convolution is ``(out, in / groups, ...)``, as in torch. Each norm is a BatchNormalization
    node, under the name that its running statistics share (``layer1.bn.running_mean``,
    ``layer1.bn.running_var``), else that of the node. ONNX's momentum is the weight of the old
    value, so 0.9 there becomes 0.1. Tensors in files of their own ("external data") are read from
    the folder of the model, and from nowhere else.

    Exporters fold a batch norm into the convolution before it, and then nothing of it is left.
    torch 2.13 keeps it with ``torch.onnx.export(..., optimize=False)``, or, from its older
    exporter (``dynamo=False``), with ``do_constant_folding=False``.

    Where a batch norm's parameters are no constants, there are no norms, and ``no_norms`` says
    why; so it does where there is no batch norm.

    Raises
    ------
    ImportError
        Without onnx.
    ValueError
        If the file is damaged or no ONNX model. When a tensor is read: if it has another size than
        it claims, or lies outside the folder of the model.

    References
    ----------
    https://onnx.ai/onnx/operators/onnx__BatchNormalization.html
    """
    model = _parse(path)
    tensors: dict[str, Any] = {}
    norms: list[Norm] = []
    convolutions, missing = 0, _in_functions(model)
    for scope in scopes(model.graph):
        for name, tensor in _in_order_of_use(scope):
            tensors[name if name not in tensors else f"{scope.name}{name}"] = tensor
        try:
            norms += _norms(scope, path)
        except ValueError as error:  # the other tensors can be loaded all the same
            missing = missing or str(error)
        convolutions += sum(node.op_type in _CONVOLUTIONS for node in scope.graph.node)
    onnx_tensor.check_copies(tensors.values(), path.parent)
    entries = {name: _lazy(tensor, name, path) for name, tensor in tensors.items()}
    if not norms:
        missing = missing or _nothing_found(convolutions)
    return Checkpoint(Tensors(entries), [] if missing else _named(norms), no_norms=missing)


def _parse(path: Path) -> Any:
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise ImportError(f"ONNX models take onnx: pip install 'fastbn[onnx]' ({error})") from error
    size = path.stat().st_size
    if size > _LARGEST:
        raise ValueError(
            f"is no ONNX model: it has {size} bytes, and a model has at most {_LARGEST} "
            "(larger ones keep their tensors in files beside it)"
        )
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise ValueError(f"is damaged, cut off, or no ONNX model: {error}") from error
    # An empty file, and one that is cut off between two fields, are valid messages.
    if not model.HasField("graph") or not model.ir_version:
        raise ValueError("is cut off, or no ONNX model: there is no graph in it")
    if model.ir_version >= 3 and not model.opset_import:
        raise ValueError("is cut off: it does not say which operators it uses")
    return model


def _in_order_of_use(scope: Scope) -> Iterator[tuple[str, Any]]:
    tensors = {
        name: tensor for name, tensor in scope.constants.items() if onnx_tensor.is_numeric(tensor)
    }
    for node in scope.graph.node:
        for name in node.input:
            if name in tensors:
                yield name, tensors.pop(name)
    yield from tensors.items()


def _lazy(tensor: Any, name: str, path: Path) -> Lazy:
    return Lazy(lambda: onnx_tensor.read(tensor, name, path), tuple(tensor.dims))


def _in_functions(model: Any) -> str:
    for function in model.functions:
        if any(_is_norm(node) for node in function.node):
            return (
                f"has a batch norm within the function {function.name!r} of the model; write the "
                "functions out: onnx.save(onnx.inliner.inline_local_functions(onnx.load(file)), "
                "'inlined.onnx')"
            )
    return ""


def _nothing_found(convolutions: int) -> str:
    if not convolutions:
        return "has no BatchNormalization node"
    return (
        f"has no BatchNormalization node, but convolutions ({convolutions}): the "
        "exporter has folded the batch norms into them. Export with batch norms: "
        "torch.onnx.export(model, args, file, optimize=False), or with the older exporter "
        "torch.onnx.export(model, args, file, dynamo=False, do_constant_folding=False); or load "
        "the checkpoint that was exported"
    )


# --- a norm ---------------------------------------------------------------------------------------


def _norms(scope: Scope, path: Path) -> list[Norm]:
    nodes = [node for node in scope.graph.node if _is_norm(node)]
    ranks = ranks_of(scope) if nodes else {}
    return [_norm(node, scope, path, dimensions_of(node, ranks)) for node in nodes]


def _is_norm(node: Any) -> bool:
    return node.op_type == "BatchNormalization" and node.domain in ("", "ai.onnx")


def _norm(node: Any, scope: Scope, path: Path, dimensions: int | None) -> Norm:
    """A node as a norm; its values are small, so they are read at once."""
    name = name_of(node)
    where = f"batch norm {name!r}"
    attributes = {a.name: a for a in node.attribute}
    if "spatial" in attributes and attributes["spatial"].i == 0:
        raise ValueError(
            f"{where} has spatial=0, statistics of each position, which are no channels'"
        )
    if len(node.input) != 5:
        raise ValueError(f"{where} has {len(node.input)} inputs, expected 5")
    found = {
        key: _constant(scope, i, where, path)
        for key, i in zip(TORCH[:4], node.input[1:], strict=True)
    }
    shape = max((array.shape for array, uniform in found.values() if not uniform), default=())
    return Norm(
        name,
        {
            key: np.full(shape, array.reshape(())) if uniform else array
            for key, (array, uniform) in found.items()
        },
        eps=_number(attributes, "epsilon", _EPSILON),
        momentum=round(1 - _number(attributes, "momentum", _MOMENTUM), 7),
        dimensions=dimensions,
    )


def _constant(scope: Scope, name: str, where: str, path: Path) -> tuple[np.ndarray, bool]:
    """The array that an input of a norm is, and whether it is one value for all channels."""
    tensor, uniform, by = scope.constant(name)
    if tensor is None:
        raise ValueError(
            f"{where} takes {name!r}, which is {by}; only constants can be read. Load the "
            "checkpoint that was exported, or export with parameters as initializers"
        )
    array = onnx_tensor.read(tensor, name, path)
    if uniform and array.size != 1:
        raise ValueError(f"{where} takes {name!r}, {array.size} values that are repeated")
    return array, uniform


def _number(attributes: dict[str, Any], name: str, default: float) -> float:
    """The decimal number that was meant: 1e-05, where float32 has 9.999999747378752e-06."""
    return float(str(np.float32(attributes[name].f))) if name in attributes else default


def _named(norms: list[Norm]) -> list[Norm]:
    """Each under a name of its own; a layer that is called twice is one."""
    named: dict[str, Norm] = {}
    seen, counts = set(), dict.fromkeys((norm.name for norm in norms), 0)
    for norm in norms:
        values = tuple(array.tobytes() for array in norm.arrays.values())
        key = (norm.name, norm.eps, norm.momentum, norm.dimensions, values)
        if key in seen:
            continue
        seen.add(key)
        counts[norm.name] += 1
        name = norm.name if counts[norm.name] == 1 else f"{norm.name}_{counts[norm.name]}"
        while name in named:
            name += "_"
        named[name] = norm._replace(name=name)
    return list(named.values())
