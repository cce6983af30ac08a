"""Weights and biases of norms that are made of other arrays when they are used.

torch's pruning keeps ``weight_orig`` and ``weight_mask``, whose product is the weight. Others, such
as a parametrization, compute it by a function that no file holds.
"""

import re
from collections.abc import Iterable, Mapping

import numpy as np

#: ``bn.weight_orig``, ``bn.weight_g``, ``bn.parametrizations.weight.original0``.
_PART = re.compile(
    r"(?:(.*?)[./])??(?:parametrizations[./])?(weight|bias)(_[a-z]+|[./]original\d*)", re.DOTALL
)
_ORIGINAL, _MASK = "_orig", "_mask"


def parts_of(names: Iterable[str]) -> dict[tuple[str, str], dict[str, str]]:
    """What arrays are made of, by layer and ``weight`` or ``bias``: names by their endings."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for name in names:
        match = _PART.fullmatch(name)
        if match:
            found.setdefault((match[1] or "", match[2]), {})[match[3]] = name
    return found


def keys_of(layer: str, name: str, parts: Mapping[str, str]) -> tuple[str, str]:
    """The two arrays whose product is the one that is used; ValueError where there are others."""
    if {_ORIGINAL, _MASK} <= parts.keys():
        return parts[_ORIGINAL], parts[_MASK]
    key = parts.get(_ORIGINAL) or min(parts.values())
    if "parametrizations" in key:
        way = f"torch.nn.utils.parametrize.remove_parametrizations(module, {name!r})"
    elif _ORIGINAL in parts:
        way = f"torch.nn.utils.prune.remove(module, {name!r})"
    else:
        way = f"torch.nn.utils.remove_weight_norm(module, {name!r})"
    raise ValueError(
        f"has {key!r}, of which the {name} of batch norm {layer!r} is made when it is used, by "
        "what the file does not hold. Where torch is, put the result in its place and save again: "
        f"{way}"
    )


def product(tensors: Mapping[str, np.ndarray], original: str, mask: str) -> np.ndarray:
    """What torch's pruning makes of two arrays, exactly."""
    first, second = tensors[original], tensors[mask]
    if first.shape != second.shape:
        raise ValueError(
            f"{mask!r} has shape {second.shape}, and {original!r} {first.shape}: no mask of it"
        )
    return first * second.astype(first.dtype)
