"""What Pillow reads for something else, and its settings, which are of a whole process."""

import concurrent.futures
import multiprocessing
import struct
import warnings

import numpy as np
import pytest

import fastbn

from .test_dataset import check, same

Image = pytest.importorskip("PIL.Image")
ImageFile = pytest.importorskip("PIL.ImageFile")


def write_tiff(path, planes, dtype, tags=()):
    """A TIFF whose samples (planes, height, width) are one strip each, with other tags too."""
    planes = np.asarray(planes, np.dtype(dtype).newbyteorder("<"))
    number, height, width = planes.shape
    kinds = {"u": 1, "i": 2, "f": 3}
    values = {
        256: [width], 257: [height], 258: [8 * planes.itemsize] * number, 259: [1],
        262: [2 if number == 3 else 1], 273: [], 277: [number], 278: [height],
        279: [planes[0].nbytes] * number, 284: [2 if number > 1 else 1],
        339: [kinds[planes.dtype.kind]] * number, **dict(tags),
    }  # fmt: skip
    begin = 8
    values[273] = [begin + k * planes[0].nbytes for k in range(number)]
    at = begin + planes.nbytes
    longs = {273, 279}
    entries, extra = b"", b""
    directory = 2 + 12 * len(values) + 4
    for tag, numbers in sorted(values.items()):
        form = "<%dI" if tag in longs else "<%dH"
        data = struct.pack(form % len(numbers), *numbers)
        if len(data) > 4:
            place = struct.pack("<I", at + directory + len(extra))
            extra += data
        else:
            place = data.ljust(4, b"\0")
        entries += struct.pack("<HHI", tag, 4 if tag in longs else 3, len(numbers)) + place
    path.write_bytes(
        b"II*\0" + struct.pack("<I", at) + planes.tobytes() + struct.pack("<H", len(values))
        + entries + bytes(4) + extra
    )  # fmt: skip


@pytest.mark.parametrize(
    ("dtype", "planes", "right"),
    [
        ("u1", 1, True), ("u1", 3, True), ("u2", 1, True), ("i2", 1, True), ("i4", 1, True),
        ("f4", 1, True), ("u2", 3, False), ("u4", 1, False), ("i1", 1, False), ("f8", 1, False),
    ],
)  # fmt: skip
def test_tiffs_are_read_as_they_are_or_refused(rng, tmp_path, dtype, planes, right):
    kind = np.dtype(dtype)
    if kind.kind == "f":
        x = rng.normal(size=(planes, 20, 30)).astype(kind)
    else:
        x = rng.integers(np.iinfo(kind).min, np.iinfo(kind).max, (planes, 20, 30), kind, True)
    write_tiff(tmp_path / "x.tif", x, dtype)
    if right:
        found = fastbn.dataset_stats(tmp_path)
        check(found.stats, x.transpose(1, 2, 0).reshape(-1, planes), rtol=1e-6)
    else:
        with pytest.raises(ValueError, match=r"x\.tif: .* (numbers of|16 bits a colour|identify)"):
            fastbn.dataset_stats(tmp_path)


@pytest.mark.parametrize(("mode", "beside"), [("CMYK", "RGBA"), ("LAB", "RGB")])
def test_other_colours_are_another_kind(rng, tmp_path, mode, beside):
    size = (30, 20)
    for name, colours in (("a.png", beside), ("b.tif", mode)):
        pixels = rng.integers(0, 256, 600 * len(colours), np.uint8)
        Image.frombytes(colours, size, pixels.tobytes()).save(tmp_path / name)
    with pytest.raises(ValueError, match=f"{len(mode)} channels of uint8, {mode}: 1 file"):
        fastbn.dataset_stats(tmp_path, resume=tmp_path / "journal")
    assert fastbn.dataset_stats(tmp_path / "b.tif").dtype == "uint8"


class TestSettings:
    @pytest.fixture
    def folder(self, rng, tmp_path):
        (tmp_path / "data").mkdir()
        for k in range(60):
            image = Image.fromarray(rng.integers(0, 256, (50, 60, 3), np.uint8))
            image.save(tmp_path / "data" / f"{k:02}.jpg")
        return tmp_path / "data"

    @pytest.fixture
    def torn(self, folder):
        data = (folder / "05.jpg").read_bytes()
        (folder / "05.jpg").write_bytes(data[: len(data) // 2])
        return folder

    def test_threads_leave_everything_as_it_was(self, folder, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # each has more: a warning of Pillow's
        before = list(warnings.filters)
        with concurrent.futures.ThreadPoolExecutor(4) as executor:
            found = fastbn.dataset_stats(folder, executor=executor)
            Image.MAX_IMAGE_PIXELS = 4000
            assert same(found.stats, fastbn.dataset_stats(folder, workers=1).stats)
        assert list(warnings.filters) == before
        assert Image.MAX_IMAGE_PIXELS == 4000

    def test_truncated_images_with_any_number_of_workers(self, torn, monkeypatch, tmp_path):
        with pytest.raises(ValueError, match="1 file cannot be read"):
            fastbn.dataset_stats(torn, workers=2)
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
        found = [fastbn.dataset_stats(torn, workers=n) for n in (1, 2)]
        assert same(found[0].stats, found[1].stats)
        assert found[1].files == 60
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, context) as executor:
            assert same(found[0].stats, fastbn.dataset_stats(torn, executor=executor).stats)

    def test_a_journal_knows_of_them(self, torn, monkeypatch, tmp_path):
        with pytest.raises(ValueError, match="1 file cannot be read"):
            fastbn.dataset_stats(torn, resume=tmp_path / "journal")
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
        with pytest.raises(ValueError, match="journal of another scan: it had truncated images"):
            fastbn.dataset_stats(torn, resume=tmp_path / "journal")


def test_a_histogram_whose_first_image_is_damaged(rng, tmp_path):
    for k, channels in enumerate((4, 3, 3)):
        pixels = rng.integers(0, 256, (50, 60, channels), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
    data = (tmp_path / "0.png").read_bytes()
    (tmp_path / "0.png").write_bytes(data[: len(data) // 2])
    found = fastbn.dataset_stats(tmp_path, histogram=True, on_unreadable="skip")
    assert found.histograms.counts.sum(1).tolist() == [6000] * 3


def test_arrays_in_a_folder_of_images(rng, tmp_path):
    pixels = rng.integers(0, 256, (50, 60, 3), np.uint8)
    (tmp_path / "sub").mkdir()
    Image.fromarray(pixels).save(tmp_path / "sub" / "x.png")
    np.save(tmp_path / "labels.npy", np.arange(3))
    with pytest.warns(UserWarning, match=r"arrays are left out: 1 file, such as .*labels\.npy"):
        found = fastbn.dataset_stats(tmp_path)
    check(found.stats, pixels.reshape(-1, 3))
    np.save(tmp_path / "labels.npy", pixels.reshape(-1, 3))
    with pytest.warns(UserWarning, match="left out"):
        found = fastbn.dataset_stats([tmp_path, tmp_path / "labels.npy"])
    assert found.files == 2
