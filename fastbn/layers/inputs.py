"""Why a layer does not take an array: the dimensions first, then the channels, and the way out."""


def does_not_fit(
    layer: str,
    shapes: tuple[str, ...],
    num_features: int,
    shape: tuple[int, ...],
    axis: int | None,
) -> str:
    """What to say of an ``x`` of a wrong shape.

    ``shapes`` are those that the layer takes, that of a batch last; ``axis`` is where ``x`` has
    its channels, None if it has no number of dimensions that the layer takes.
    """
    taken = " or ".join(shapes)
    if axis is None:
        return f"{layer} expects {taken}, got {len(shape)} dimensions: shape {shape}" + _other(
            len(shape), layer
        )
    channels = (
        f"it has {shape[axis]} channels on axis {axis}, and the layer has "
        f"num_features={num_features}"
    )
    batch_dimensions = shapes[-1].count(",") + 1
    if len(shape) < batch_dimensions and layer != "BatchNorm1d":
        return (
            f"{layer} takes {len(shape)} dimensions as one sample, {shapes[0]}"
            f"{_other(len(shape), layer)}: x has shape {shape}; as one sample, {channels}"
        )
    hint = ""
    if shape[-1] == num_features and len(shape) > 2:
        hint = "; for channels last, make the layer with axis=-1"
    elif len(shape) > 2 and shape[1] == num_features:
        hint = "; for channels first, make the layer with axis=1"
    return f"{layer} expects {taken}, got x of shape {shape}: {channels}{hint}"


#: Which layer takes a batch of so many dimensions.
_OF_BATCHES = {
    2: "(N, C) is for BatchNorm1d",
    3: "(N, C, L) is for BatchNorm1d",
    4: "(N, C, H, W) is for BatchNorm2d",
    5: "(N, C, D, H, W) is for BatchNorm3d",
}


def _other(dimensions: int, layer: str) -> str:
    hint = _OF_BATCHES.get(dimensions, "")
    return f"; {hint}" if hint and not hint.endswith(layer) else ""
