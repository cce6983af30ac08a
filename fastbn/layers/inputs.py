"""Why a layer does not take an array: the dimensions first, then the channels, and the way out."""

from collections.abc import Mapping

#: By number of dimensions, the shape of a batch and which layer of a family takes it.
_BATCHES = {
    2: ("(N, C)", "1d"),
    3: ("(N, C, L)", "1d"),
    4: ("(N, C, H, W)", "2d"),
    5: ("(N, C, D, H, W)", "3d"),
}


def does_not_fit(
    layer: str,
    takes: Mapping[int, str],
    num_features: int,
    shape: tuple[int, ...],
    axis: int | None,
) -> str:
    """What to say of an ``x`` of a wrong shape.

    ``takes`` has the shapes that the layer takes by their number of dimensions; ``axis`` is where
    ``x`` has its channels, None if there is no such number.
    """
    dimensions = len(shape)
    batch, suffix = _BATCHES.get(dimensions, ("", ""))
    other = f"if x is a batch {batch}, take a layer for {suffix}, such as BatchNorm{suffix}"
    if axis is None:
        way = f"; {other}" if batch else ""
        expected = " or ".join(takes.values())
        return f"{layer} expects {expected}, got {dimensions} dimensions: shape {shape}{way}"
    channels = f"{shape[axis]} channels on axis {axis}, and num_features={num_features}"
    if takes[dimensions] != batch:  # a single sample
        return f"{layer} reads x of shape {shape} as one sample {takes[dimensions]}; {other}. As " \
            f"one sample it has {channels}"  # fmt: skip
    way = ""
    if dimensions > 2 and shape[-1] == num_features:
        way = "; for channels last, make the layer with axis=-1"
    elif dimensions > 2 and shape[1] == num_features:
        way = "; for channels first, make the layer with axis=1"
    return f"{layer} reads x of shape {shape} as {takes[dimensions]}, with {channels}{way}"
