"""Statistics of images that Pillow has written."""

import struct
import zlib

import numpy as np
import pytest

import fastbn

from .test_dataset import check, reference, same

Image = pytest.importorskip("PIL.Image")


def picture(rng, height=20, width=30, channels=3, dtype=np.uint8):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return rng.integers(0, np.iinfo(dtype).max, shape, endpoint=True).astype(dtype)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".PNG"])
@pytest.mark.parametrize("channels", [1, 3])
def test_formats_without_loss(rng, tmp_path, suffix, channels):
    pixels = []
    for k in range(40):  # more than a group; of several sizes
        x = picture(rng, 3 + k, 50 - k, channels)
        Image.fromarray(x).save(tmp_path / f"{k}{suffix}")
        pixels.append(x.reshape(-1, channels))
    found = fastbn.dataset_stats(tmp_path)
    check(found.stats, np.concatenate(pixels))
    assert (found.files, found.dtype) == (40, "uint8")


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp"])
def test_formats_with_loss(rng, tmp_path, suffix):
    file = tmp_path / f"x{suffix}"
    Image.fromarray(picture(rng)).save(file)
    check(fastbn.dataset_stats(file).stats, np.asarray(Image.open(file)).reshape(-1, 3))


@pytest.mark.parametrize("mode", ["LA", "RGBA", "CMYK", "F", "I;16"])
def test_modes(rng, tmp_path, mode):
    file = tmp_path / "x.tif"
    if mode == "F":
        image = Image.fromarray(rng.normal(size=(20, 30)).astype(np.float32))
    elif mode == "I;16":
        image = Image.fromarray(picture(rng, channels=1, dtype=np.uint16))
    else:
        image = Image.fromarray(picture(rng, channels=2 if mode == "LA" else 4), mode=None)
        if mode == "CMYK":
            image = image.convert("RGB").convert("CMYK")
    image.save(file)
    x = np.asarray(Image.open(file))
    check(fastbn.dataset_stats(file).stats, x.reshape(600, -1), rtol=1e-6)


def test_png_of_16_bits(rng, tmp_path):
    x = picture(rng, channels=1, dtype=np.uint16)
    Image.fromarray(x).save(tmp_path / "x.png")
    found = fastbn.dataset_stats(tmp_path)
    assert found.dtype == "uint16"
    check(found.stats, x.reshape(-1, 1))
    with pytest.raises(ValueError, match="conversion to L would clip"):
        fastbn.dataset_stats(tmp_path, mode="L")


def test_16_bits_a_colour_are_not_cut_to_8(tmp_path):
    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    rows = b"".join(b"\0" + bytes(6 * 4) for _ in range(4))
    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    (tmp_path / "x.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )  # fmt: skip
    with pytest.raises(ValueError, match="16 bits a colour"):
        fastbn.dataset_stats(tmp_path)


def test_palettes_and_black_and_white(rng, tmp_path):
    image = Image.fromarray(picture(rng)).quantize(16)
    image.save(tmp_path / "palette.png")
    found = fastbn.dataset_stats(tmp_path / "palette.png")
    check(found.stats, np.asarray(image.convert("RGB")).reshape(-1, 3))
    bits = Image.fromarray(rng.random((20, 30)) < 0.3)
    bits.save(tmp_path / "bits.png")
    found = fastbn.dataset_stats(tmp_path / "bits.png")
    check(found.stats, 255 * np.asarray(bits).reshape(-1, 1).astype(np.uint8))


def test_all_pages_of_a_tiff_and_the_first_picture_of_others(rng, tmp_path):
    x = [picture(rng, 10 + k) for k in range(3)]
    pages = [Image.fromarray(page) for page in x]
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:])
    found = fastbn.dataset_stats(tmp_path / "x.tif")
    check(found.stats, np.concatenate([page.reshape(-1, 3) for page in x]))
    assert found.files == 1
    same_size = [page.resize((30, 10)) for page in pages]
    same_size[0].save(
        tmp_path / "x.webp", save_all=True, append_images=same_size[1:], lossless=True
    )
    found = fastbn.dataset_stats(tmp_path / "x.webp")
    assert found.stats.count[0] == 300


def test_orientation_does_not_matter(rng, tmp_path):
    image = Image.fromarray(picture(rng))
    exif = Image.Exif()
    exif[274] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    check(fastbn.dataset_stats(tmp_path).stats, np.asarray(image).reshape(-1, 3))


def test_mixed_channels(rng, tmp_path):
    for k, channels in enumerate([3, 3, 1, 4]):
        Image.fromarray(picture(rng, channels=channels)).save(tmp_path / f"{k}.png")
    with pytest.raises(ValueError, match="several kinds") as caught:
        fastbn.dataset_stats(tmp_path, resume=tmp_path / "journal")
    assert "3 channels of uint8: 2 files, such as" in str(caught.value)
    assert "1 channel of uint8: 1 file" in str(caught.value)
    assert "--mode RGB" in str(caught.value)
    assert not (tmp_path / "journal").exists()
    found = fastbn.dataset_stats(tmp_path, mode="RGB", resume=tmp_path / "journal")
    pixels = [
        np.asarray(Image.open(tmp_path / f"{k}.png").convert("RGB")).reshape(-1, 3)
        for k in range(4)
    ]
    check(found.stats, np.concatenate(pixels))


def test_damaged_files(rng, tmp_path):
    for k in range(30):
        Image.fromarray(picture(rng, 100, 100)).save(tmp_path / f"{k:02d}.jpg")
    whole = fastbn.dataset_stats(tmp_path)
    for k in range(40, 54):
        data = (tmp_path / f"{k - 40:02d}.jpg").read_bytes()
        (tmp_path / f"{k}.jpg").write_bytes(data[: len(data) // 2] if k % 2 else b"not a picture")
    (tmp_path / "60.png").write_bytes(b"")
    with pytest.raises(ValueError, match="15 files cannot be read") as caught:
        fastbn.dataset_stats(tmp_path)
    assert str(caught.value).count(".jpg: ") == 10
    assert "and 5 more" in str(caught.value)
    assert "on_unreadable='skip'" in str(caught.value)
    left = fastbn.dataset_stats(tmp_path, on_unreadable="skip")
    assert len(left.unreadable) == 15
    assert left.files == 30
    assert same(left.stats, whole.stats)
    assert same(left.stats, fastbn.dataset_stats(tmp_path, on_unreadable="skip", workers=2).stats)


def test_more_pixels_than_pillow_takes(rng, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    Image.fromarray(picture(rng, 20, 31)).save(tmp_path / "large.png")
    with pytest.raises(ValueError, match="more pixels than Pillow takes, 600"):
        fastbn.dataset_stats(tmp_path)
    with pytest.raises(ValueError, match="more pixels than Pillow takes, 600"):
        fastbn.dataset_stats(tmp_path, workers=2)  # which know of the limit
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)  # a warning of Pillow's, no more
    assert fastbn.dataset_stats(tmp_path).files == 1


def test_other_formats_under_a_known_name(rng, tmp_path):
    Image.fromarray(picture(rng)).save(tmp_path / "x.gif")
    (tmp_path / "x.gif").rename(tmp_path / "x.png")
    with pytest.raises(ValueError, match="cannot identify image file"):
        fastbn.dataset_stats(tmp_path)


def test_without_pillow(rng, tmp_path, monkeypatch):
    Image.fromarray(picture(rng)).save(tmp_path / "x.png")
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(ImportError, match=r"fastbn\[images\]"):
        fastbn.dataset_stats(tmp_path)


def test_reference():
    mean, var = reference(np.array([[1, 2], [3, 6]]))
    assert mean.tolist() == [2, 4]
    assert var.tolist() == [1, 4]
