"""What `fastbn.save` notes of layers beside their arrays, so that they come back as they were."""

import json
from collections.abc import Mapping
from typing import Any

#: Name of the note: an entry of an .npz, and of the metadata of a safetensors file.
KEY = "__fastbn__"
#: Arguments of a constructor that a state dict does not hold, and what they are in a file.
NAMES: dict[str, Any] = {
    "eps": (float, int), "momentum": (float, int, type(None)), "axis": int, "dimensions": int,
    "activation": (str, type(None)), "negative_slope": (float, int), "on_nonfinite": str,
    "virtual_batch_size": (int, type(None)),
}  # fmt: skip


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
