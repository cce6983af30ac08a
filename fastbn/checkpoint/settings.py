"""What `fastbn.save` notes of layers beside their arrays, so that they come back as they were."""

import json
from collections.abc import Mapping
from dataclasses import astuple
from typing import Any

from fastbn.layers import Ramp

#: Name of the note: an entry of an .npz, and of the metadata of a safetensors file.
KEY = "__fastbn__"
#: Arguments of a constructor that a state dict does not hold, and what they are in a file.
NAMES: dict[str, Any] = {
    "eps": (float, int), "momentum": (float, int, type(None)), "axis": int, "dimensions": int,
    "activation": (str, type(None)), "negative_slope": (float, int), "on_nonfinite": str,
    "virtual_batch_size": (int, type(None)),
    "kind": str, "r_max": (float, int, list), "d_max": (float, int, list),
}  # fmt: skip
#: Those that are set on a layer as it is made: a `Norm` has the others.
ATTRIBUTES = (
    "activation", "negative_slope", "on_nonfinite", "virtual_batch_size", "r_max", "d_max"
)  # fmt: skip
#: What ``kind`` says of batch renormalization; batch norms have none.
RENORM = "BatchRenorm"


def limit_noted(name: str, value: Any) -> Any:
    """``r_max`` or ``d_max`` as JSON has it: a number, or the four of a `Ramp`."""
    if isinstance(value, Ramp):
        return [k if type(k) is int else float(k) for k in astuple(value)]
    if callable(value):
        raise ValueError(
            f"has {name}={value!r}, a function, which cannot be written; take a number or a "
            f"fastbn.Ramp, or set it again after loading: layer.{name} = ..."
        )
    return value


def limit_of(value: Any) -> Any:
    """What `limit_noted` was given."""
    return Ramp(*value) if isinstance(value, list) else value


def by_names(
    settings: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]
) -> dict[str, Mapping[str, Any]]:
    """Settings of layers under the names that a reader gives them.

    ``names``: of arrays in the file, by those that the reader gives them, which may be shorter.
    """
    layers = {short.rpartition(".")[0]: name.rpartition(".")[0] for short, name in names.items()}
    return {short: settings[name] for short, name in layers.items() if name in settings}


def noted(settings: Mapping[str, Mapping[str, Any]]) -> str:
    """The note as text."""
    return json.dumps(settings)


def settings_of(text: Any) -> dict[str, dict[str, Any]]:
    """Settings by names of layers, out of a note; none where there is no note."""
    if text is None:
        return {}
    try:
        settings = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the note {KEY!r} is damaged: it is no JSON") from error
    if not isinstance(settings, dict):
        raise ValueError(f"the note {KEY!r} is damaged: it is no dictionary")
    for name, values in settings.items():
        if not isinstance(values, dict):
            raise ValueError(f"the note {KEY!r} is damaged at {name[:200]!r}")
        for key, value in values.items():
            if key not in NAMES or not isinstance(value, NAMES[key]):
                raise ValueError(
                    f"the note {KEY!r} is damaged, or of a later version: {name[:200]!r} has a "
                    f"setting {key[:200]!r} that is not known here"
                )
    return settings
