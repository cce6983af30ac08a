"""Pictures, as Pillow reads them. It is imported when the first one is."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

__all__ = ["MODES", "SUFFIXES", "library", "pictures"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp")
#: Other formats are not tried, whatever a file's name: some are read by other programs.
_FORMATS = "PNG", "JPEG", "MPO", "TIFF", "WEBP", "BMP"
#: Of ``--mode``.
MODES = ("L", "RGB", "RGBA")
#: Modes whose numbers are no colours, or too few bits for NumPy, and what they become.
_WIDER = {"P": "RGB", "PA": "RGB", "1": "L"}
#: A page of a TIFF with this bit is another one, smaller.
_SUBFILE_TYPE, _REDUCED = 254, 1


def library() -> Any:
    """Pillow's module `Image`, or say where it comes from."""
    try:
        from PIL import Image  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ImportError("images are read with Pillow: pip install 'fastbn[images]'") from error
    return Image


def pictures(path: str, mode: str | None, max_pixels: int | None) -> Iterator[np.ndarray]:
    """The picture of a file, all pages of a TIFF, as arrays (height, width, channels).

    EXIF orientation is left alone: turning a picture does not change its statistics.
    Whatever is wrong with the file raises some exception.
    """
    image_module = library()
    image_module.MAX_IMAGE_PIXELS = max_pixels  # that of the process that asked for the statistics
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata, or large but within the limit
        try:
            with image_module.open(path, formats=_formats()) as image:
                for page in range(getattr(image, "n_frames", 1) if image.format == "TIFF" else 1):
                    if page:
                        image.seek(page)
                    if image.format == "TIFF" and image.tag_v2.get(_SUBFILE_TYPE, 0) & _REDUCED:
                        continue
                    yield _array(image, mode)
        except image_module.DecompressionBombError as error:
            raise ValueError(
                f"has more pixels than Pillow takes, {2 * (max_pixels or 0)}; if it is yours, set "
                "PIL.Image.MAX_IMAGE_PIXELS in Python, or save it as .npy"
            ) from error


@functools.cache
def _formats() -> list[str]:
    """Those that this Pillow has."""
    image_module = library()
    image_module.init()
    return [name for name in _FORMATS if name in image_module.OPEN]


def _array(image: Any, mode: str | None) -> np.ndarray:
    deep = image.mode.startswith(("I", "F"))
    if not deep and any(";16" in str(tile[-1]) for tile in image.tile):
        raise ValueError("has 16 bits a colour, of which Pillow reads 8; save it as .npy")
    if deep and mode:
        raise ValueError(f"has more than 8 bits, which conversion to {mode} would clip")
    wanted = mode or _WIDER.get(image.mode)
    converted = image.convert(wanted) if wanted and wanted != image.mode else image
    array = np.asarray(converted)
    if array.dtype == np.int32:  # Pillow's mode I; a PNG has 16 bits at most
        array = array.astype(np.uint16 if image.format == "PNG" else np.float64)
    return array[:, :, None] if array.ndim == 2 else array
