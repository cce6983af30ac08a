"""Pictures, as Pillow reads them. It is imported when the first one is."""

from __future__ import annotations

import functools
import os
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

__all__ = ["MODES", "SUFFIXES", "Settings", "adopt", "library", "pictures", "quiet", "settings"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp")
#: Other formats are not tried, whatever a file's name: some are read by other programs.
_FORMATS = "PNG", "JPEG", "MPO", "TIFF", "WEBP", "BMP"
#: Of ``--mode``.
MODES = ("L", "RGB", "RGBA")
#: Modes whose numbers are no colours, or too few bits for NumPy, and what they become.
_WIDER = {"P": "RGB", "PA": "RGB", "1": "L"}
#: Modes that are told apart by their channels and dtype, as arrays are; of others the name counts.
_USUAL = ("L", "LA", "RGB", "RGBA")
#: Tags of a TIFF: how many bits a number has, and whether it is unsigned, signed, or a float.
_BITS, _FORMAT = 258, 339
#: A page of a TIFF with this bit is another one, smaller.
_SUBFILE_TYPE, _REDUCED = 254, 1


def library() -> Any:
    """Pillow's module `Image`, or say where it comes from."""
    try:
        from PIL import Image  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ImportError("images are read with Pillow: pip install 'fastbn[images]'") from error
    return Image


class Settings(NamedTuple):
    """What Pillow does in the process that asked for the statistics, and what that process is."""

    max_pixels: int | None
    truncated: bool
    process: tuple[int, str]


#: With the number of the process: others may have the same number, on other machines.
_HERE = uuid.uuid4().hex


def settings() -> Settings:
    """Those of this process."""
    most = library().MAX_IMAGE_PIXELS
    from PIL import ImageFile

    truncated = bool(ImageFile.LOAD_TRUNCATED_IMAGES)
    return Settings(most, truncated, (os.getpid(), _HERE))


def adopt(given: Settings) -> None:
    """In a worker, read images as the process does that asked; in that one, change nothing.

    For the whole process: what is changed and put back around an image, another thread sees.
    """
    if given.process == (os.getpid(), _HERE):
        return
    from PIL import ImageFile

    library().MAX_IMAGE_PIXELS = given.max_pixels
    ImageFile.LOAD_TRUNCATED_IMAGES = given.truncated
    _ignore_warnings()


@contextmanager
def quiet() -> Iterator[None]:
    """While a scan runs, no warnings of Pillow's: odd metadata, or large but within the limit."""
    with warnings.catch_warnings():
        _ignore_warnings()
        yield


def _ignore_warnings() -> None:
    warnings.filterwarnings("ignore", module=r"PIL\.")


def pictures(path: str, mode: str | None) -> Iterator[tuple[np.ndarray, str]]:
    """The picture of a file, all pages of a TIFF, as arrays (height, width, channels).

    With each the name of its colours, where they are not grey, RGB or with opacity.
    EXIF orientation is left alone: turning a picture does not change its statistics.
    Whatever is wrong with the file raises some exception.
    """
    image_module = library()
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
            f"has more pixels than Pillow takes, {2 * (image_module.MAX_IMAGE_PIXELS or 0)}; if it "
            "is yours, set PIL.Image.MAX_IMAGE_PIXELS in Python, or save it as .npy"
        ) from error


@functools.cache
def _formats() -> list[str]:
    """Those that this Pillow has."""
    image_module = library()
    image_module.init()
    return [name for name in _FORMATS if name in image_module.OPEN]


def _array(image: Any, mode: str | None) -> tuple[np.ndarray, str]:
    deep = image.mode.startswith(("I", "F"))
    if not deep and any(";16" in str(tile[-1]) for tile in image.tile):
        raise ValueError("has 16 bits a colour, of which Pillow reads 8; save it as .npy")
    if image.format == "TIFF":
        _check_numbers(image)
    if deep and mode:
        raise ValueError(f"has more than 8 bits, which conversion to {mode} would clip")
    wanted = mode or _WIDER.get(image.mode)
    converted = image.convert(wanted) if wanted and wanted != image.mode else image
    array = np.asarray(converted)
    if array.dtype == np.int32:  # Pillow's mode I; a PNG has 16 bits at most
        array = array.astype(np.uint16 if image.format == "PNG" else np.float64)
    colours = "" if deep or converted.mode in _USUAL else converted.mode
    return (array[:, :, None] if array.ndim == 2 else array), colours


def _check_numbers(image: Any) -> None:
    """Refuse a page of a TIFF whose numbers Pillow takes for others, or cuts."""
    from PIL import ImageMode

    bits, formats = (
        set(np.ravel(image.tag_v2.get(tag, 1)).tolist()) for tag in (_BITS, _FORMAT)
    )  # fmt: skip
    dtype = np.dtype(ImageMode.getmode(image.mode).typestr)
    most = max(bits)
    held = {
        "b": formats <= {1, 4} and most == 1,
        "u": formats <= {1, 4} and (most <= 8) == (dtype.itemsize == 1) and most <= 16,
        "i": (formats == {2} and most <= 32) or (formats <= {1, 4} and most <= 31),
        "f": formats == {3} and most <= 32,
    }
    if len(bits) > 1 or len(formats) > 1 or not held[dtype.kind]:
        words = {1: "unsigned", 2: "signed", 3: "floating-point"}
        kind = words.get(min(formats), "unknown")
        raise ValueError(
            f"has {kind} numbers of {most} bits, which Pillow does not read as they are; save it "
            "as .npy"
        )
