"""What can be read off an ONNX graph: constants, ranks, and names of its batch norms."""

import itertools
import re
from collections import ChainMap
from collections.abc import Iterator, MutableMapping
from typing import Any, NamedTuple

#: Nodes whose result has the values of their first input.
_SAME_VALUES = ("Identity", "Cast", "CastLike")
#: Nodes whose result has as many axes as their first input.
_SAME_RANK = {
    *("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "Pad", "Resize", "Upsample"),
    *("BatchNormalization", "InstanceNormalization", "LRN", "Dropout", "Transpose"),
    *("Cast", "CastLike", "Celu", "Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "Identity"),
    *("LeakyRelu", "Mish", "PRelu", "QuickGelu", "Relu", "Selu", "Sigmoid", "Softplus", "Swish"),
    "Tanh",
}
#: More nodes than any exporter puts one after the other to pass a constant on.
_MOST_HOPS = 100
_CONVOLUTIONS = ("Conv", "ConvTranspose")
#: Names that a framework has made up, which say nothing.
_MADE_UP = re.compile(r"onnx::.*|val_\d+|\d+")


class Scope(NamedTuple):
    """A graph, the main one or the branch of an If or the body of a Loop.

    ``constants`` are its own tensors; ``values`` also hold the nodes that pass a constant on,
    and what the graphs around it have.
    """

    name: str
    graph: Any
    constants: dict[str, Any]
    values: MutableMapping[str, Any]

    def constant(self, name: str) -> tuple[Any, bool, str]:
        """The tensor behind a name, whether it is repeated, and if there is none, why."""
        repeated = False
        for _ in range(_MOST_HOPS):
            source: Any = self.values.get(name)
            if source is None:
                return None, False, "an input of the network, or missing"
            if not hasattr(source, "op_type"):
                return source, repeated, ""
            if source.op_type not in (*_SAME_VALUES, "Expand") or not source.input:
                break
            repeated = repeated or source.op_type == "Expand"
            name = source.input[0]
        return None, False, f"computed in the graph, by {source.op_type}"


def scopes(graph: Any, name: str = "", outer: ChainMap[str, Any] | None = None) -> Iterator[Scope]:
    """A graph and those within it. How deep they nest, protobuf has limited to 100."""
    _check_names(graph)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    values = ChainMap({}, constants) if outer is None else outer.new_child(constants).new_child()
    for node in graph.node:
        tensor = _tensor_of(node) if node.op_type == "Constant" else None
        if tensor is not None and node.output:
            constants[node.output[0]] = tensor
        else:
            values.update(dict.fromkeys(node.output, node))
    yield Scope(name, graph, constants, values)
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if _has_graph(attribute) else ():
                yield from scopes(inner, f"{name}{node.name}.{attribute.name}.", values)


def _check_names(graph: Any) -> None:
    """Protobuf gives bytes where a text is none."""
    names = [tensor.name for tensor in graph.initializer]
    for node in graph.node:
        names += [node.name, node.op_type, node.domain, *node.input, *node.output]
    if not all(isinstance(name, str) for name in names):
        raise ValueError("is damaged: a name in it is no text")


def _has_graph(attribute: Any) -> bool:
    return attribute.HasField("g") or len(attribute.graphs) > 0


def _tensor_of(node: Any) -> Any:
    """The tensor of a Constant node; None if it is a text or sparse."""
    from onnx import helper

    for attribute in node.attribute:
        if attribute.name == "value":
            return attribute.t
        if attribute.name in ("value_float", "value_floats"):
            values = attribute.floats or [attribute.f]
            dims = [len(values)] if attribute.name == "value_floats" else []
            return helper.make_tensor("", 1, dims, values)
    return None


# --- dimensions -----------------------------------------------------------------------------------


def dimensions_of(node: Any, ranks: dict[str, int]) -> int | None:
    """1, 2 or 3 spatial dimensions of a norm's input, where the graph tells."""
    rank = ranks.get(node.input[0]) or ranks.get(node.output[0])
    return {2: 1, 3: 1, 4: 2, 5: 3}.get(rank or 0)


def ranks_of(scope: Scope) -> dict[str, int]:
    """Number of axes of values: as declared, and from nodes that tell or pass it on."""
    graph = scope.graph
    ranks = {name: len(tensor.dims) for name, tensor in scope.constants.items()}
    for info in (*graph.input, *graph.output, *graph.value_info):
        if info.type.tensor_type.HasField("shape"):
            ranks[info.name] = len(info.type.tensor_type.shape.dim)
    for node in graph.node:  # in the order in which they run
        rank = _rank_of_result(node, ranks)
        if rank:
            ranks.update({name: rank for name in node.output[:1] if name not in ranks})
    for node in reversed(graph.node):  # and back, from who uses a value
        rank = _rank_of_input(node, ranks)
        if rank:
            ranks.update({name: rank for name in node.input[:1] if name not in ranks})
    return ranks


def _rank_of_result(node: Any, ranks: dict[str, int]) -> int | None:
    known = [ranks.get(name) for name in node.input]
    if node.op_type in _SAME_RANK:
        return known[0] if known else None
    if node.op_type in _CONVOLUTIONS and len(known) > 1:
        return known[1] or known[0]
    if node.op_type in ("Gemm", "Flatten"):
        return 2
    if node.op_type in ("Add", "Sub", "Mul", "Div", "Concat", "Sum"):  # those broadcast
        return max(known, default=None) if all(known) else None  # type: ignore[type-var]
    return None


def _rank_of_input(node: Any, ranks: dict[str, int]) -> int | None:
    if node.op_type in _SAME_RANK and node.output:
        return ranks.get(node.output[0])
    if node.op_type in _CONVOLUTIONS and len(node.input) > 1:
        return ranks.get(node.input[1])
    return 2 if node.op_type == "Gemm" else None


# --- names ----------------------------------------------------------------------------------------


def name_of(node: Any) -> str:
    """What the names of a norm's running statistics share, else the node's own, with dots."""
    statistics = list(node.input[3:5])
    pairs = zip(*statistics, strict=False) if len(statistics) == 2 else ()
    before = "".join(a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    before = re.sub(r"[^./_:]*$", "", before)  # whole words
    before = re.sub(r"[./_:]*(input|running|moving|saved)?[./_:]*$", "", before)
    if before and not _MADE_UP.fullmatch(statistics[0]):
        return _dotted(before)
    own = re.sub(r"[/_]*(BatchNormalization|FusedBatchNorm)[V\d]*$", "", node.name) or node.name
    return _dotted(own or (node.output[0] if node.output else "batch_norm"))


def _dotted(name: str) -> str:
    return name.strip("/").replace("/", ".")
