"""Which files are data, which are not, and what nothing is written over."""

import errno
import os
import shutil
import warnings
import zipfile
import zlib
from types import SimpleNamespace

import numpy as np
import pytest

import fastbn
from fastbn.dataset import arrays, checksum, measure, scan, sources

from .test_dataset import check, same


@pytest.fixture
def x(rng):
    return rng.normal(size=(40, 3))


@pytest.fixture
def folder(tmp_path, x):
    np.savez(tmp_path / "in.npz", a=x[:10], b=x[10:])
    return tmp_path


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def refused(folder, words, paths, error=ValueError, **options):
    before = content(folder)
    with pytest.raises(error, match=words) as caught:
        fastbn.dataset_stats(paths, progress=False, **options)
    assert content(folder) == before
    return str(caught.value)


class TestWhatIsWritten:
    @pytest.mark.parametrize("argument", ["save", "resume"])
    @pytest.mark.parametrize("source", ["in.npz", "in.npz:a", "."])
    def test_a_source_is_not_overwritten(self, folder, argument, source):
        paths = folder if source == "." else f"{folder}/{source}"
        words = f"{argument} names .*in.npz, which is of the data"
        refused(folder, words, paths, **{argument: folder / "in.npz"})
        os.link(folder / "in.npz", folder.parent / f"{folder.name}-link.npz")
        refused(folder, words, paths, **{argument: folder.parent / f"{folder.name}-link.npz"})

    def test_saved_statistics_are_never_data(self, folder, x):
        for name in ("s.npz", "other.npz", "s.npz"):
            found = fastbn.dataset_stats(folder, save=folder / name)
            check(found.stats, x)
        assert fastbn.dataset_stats(folder).files == 2
        refused(folder, "other.npz:format has dtype", folder / "other.npz", TypeError)

    def test_save_and_resume_are_two_files(self, folder):
        refused(folder, "save and resume are one file", folder, save=folder / "j.npz",
                resume=f"{folder}/../{folder.name}/j.npz")  # fmt: skip
        fastbn.dataset_stats(folder, save=folder / "j.npz")
        os.link(folder / "j.npz", folder / "k.npz")
        refused(folder, "are one file", folder, save=folder / "j.npz", resume=folder / "k.npz")

    @pytest.mark.parametrize("data", [b'{"a": 1}', b"x", b"0" * 100_000, b"journal of fastbn X"])
    def test_a_foreign_file_without_lines_stays(self, folder, data):
        (folder / "config.json").write_bytes(data)
        refused(folder, "is no journal of fastbn", folder, resume=folder / "config.json")

    @pytest.mark.parametrize("size", [0, 1, 10])
    def test_a_journal_that_is_torn_in_its_first_line(self, folder, x, size):
        scan.Journal(folder / "journal", {}).close()
        os.truncate(folder / "journal", size)
        check(fastbn.dataset_stats(folder, resume=folder / "journal").stats, x)

    def test_what_took_the_place_of_the_journal_stays(self, folder):
        journal = scan.Journal(folder / "journal", {})
        (folder / "journal").unlink()
        (folder / "journal").write_text("of somebody else")
        journal.remove()
        assert (folder / "journal").read_text() == "of somebody else"


class TestTwice:
    def test_file_systems_without_numbers_of_files(self):
        """Where every file has the number 0, only names tell them apart."""
        status = SimpleNamespace(st_dev=1, st_ino=0)
        assert sources._identity("a", status) == sources._identity("a", status)
        assert sources._identity("a", status) != sources._identity("b", status)

    def test_the_very_same_string(self, folder):
        path = str(folder / "in.npz")
        refused(folder, "is named twice, and", [path, path])

    def test_an_array_by_itself_and_in_its_file(self, folder):
        refused(folder, "a is named twice", [folder / "in.npz", f"{folder}/in.npz:a"])
        refused(folder, "a is named twice", [f"{folder}/in.npz:a", folder / "in.npz"])
        assert fastbn.dataset_stats([f"{folder}/in.npz:{name}" for name in "ab"]).files == 2

    @pytest.mark.parametrize("link", [os.link, os.symlink])
    def test_links(self, folder, link):
        np.save(folder / "x.npy", np.ones((3, 3)))
        link(folder / "x.npy", folder / "y.npy")
        assert "x.npy too" in refused(folder, "y.npy is named twice, as", folder)

    def test_members_of_one_name(self, folder):
        with (
            warnings.catch_warnings(),
            zipfile.ZipFile(folder / "in.npz", "a") as archive,
        ):
            warnings.simplefilter("ignore")
            archive.writestr("a.npy", archive.read("b.npy"))
        refused(folder, "two entries of the same name", folder)
        refused(folder, "two entries of the same name", f"{folder}/in.npz:a")


def test_names_with_colons(folder, x):
    np.savez(folder / "in.npz", **{"a:b": x, "c": x[:5]})
    check(fastbn.dataset_stats(f"{folder}/in.npz:a:b").stats, x)
    fastbn.normalize_dataset(f"{folder}/in.npz:a:b", folder / "y.npy", 0, 2, dtype="float64")
    assert np.array_equal(np.load(folder / "y.npy"), x / 2)
    shutil.copy(folder / "in.npz", folder / "in.npz:c.npz")
    check(fastbn.dataset_stats(f"{folder}/in.npz:c.npz:c").stats, x[:5])


class TestWhatCannotBeRead:
    def test_a_link_to_itself(self, folder, x):
        os.symlink("round", folder / "round")
        os.symlink("round.npy", folder / "round.npy")
        refused(folder, "2 files cannot be read", folder)
        found = fastbn.dataset_stats(folder, on_unreadable="skip")
        check(found.stats, x)
        assert set(found.unreadable) == {str(folder / "round"), str(folder / "round.npy")}

    def test_a_folder(self, folder, x, monkeypatch):
        (folder / "sub").mkdir()
        scandir = os.scandir

        def refusing(path):
            if os.path.basename(path) == "sub":
                raise PermissionError(errno.EACCES, "Permission denied", path)
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refusing)
        found = fastbn.dataset_stats(folder, on_unreadable="skip")
        check(found.stats, x)
        assert found.unreadable == {str(folder / "sub"): "permission denied"}

    @pytest.mark.parametrize("number", ["EMFILE", "ENFILE", "ENOMEM", "EIO", "ESTALE"])
    @pytest.mark.parametrize("where", ["describe", "read"])
    def test_errors_of_the_machine_are_no_damage(self, folder, monkeypatch, number, where):
        def failing(*arguments):
            raise OSError(getattr(errno, number), os.strerror(getattr(errno, number)))

        monkeypatch.setattr(arrays if where == "describe" else measure, where, failing)
        with pytest.raises(OSError, match=r"in\.npz") as caught:
            fastbn.dataset_stats(folder, on_unreadable="skip")
        assert caught.value.errno == getattr(errno, number)

    def test_too_little_memory_is_no_damage(self, folder, monkeypatch):
        def failing(*arguments):
            raise MemoryError

        monkeypatch.setattr(measure, "read", failing)
        with pytest.raises(MemoryError):
            fastbn.dataset_stats(folder, on_unreadable="skip")


class TestChecksums:
    """Of members that are not compressed, whose blocks are read apart."""

    @pytest.fixture(autouse=True)
    def small_blocks(self, monkeypatch):
        monkeypatch.setattr(sources, "BLOCK_VALUES", 2000)
        monkeypatch.setattr(measure, "PIECE", 700)

    @pytest.fixture
    def x(self, rng):
        return rng.normal(size=(4000, 3))  # a small member is read as a whole with its header

    @pytest.mark.parametrize("fortran", [False, True])
    def test_sound_members(self, folder, x, fortran):
        order = np.asfortranarray if fortran else np.asarray
        np.savez(folder / "in.npz", a=order(x), b=order(x[:7]), c=np.zeros((0, 3)))
        check(fastbn.dataset_stats(folder).stats, np.concatenate([x, x[:7]]))

    @pytest.mark.parametrize("workers", [1, 2])
    @pytest.mark.parametrize("place", [5000, 20_000, 95_000])
    def test_damaged_values(self, folder, x, place, workers):
        data = bytearray((folder / "in.npz").read_bytes())
        data[data.index(b"b.npy") + place] ^= 1
        (folder / "in.npz").write_bytes(data)
        refused(folder, "in.npz:b: its values are damaged", folder, workers=workers)
        found = fastbn.dataset_stats(folder, on_unreadable="skip", workers=workers)
        assert same(found.stats, fastbn.dataset_stats(f"{folder}/in.npz:a").stats)
        for out_axis in (None, 0):
            with pytest.raises(ValueError, match=r"in\.npz"):
                fastbn.normalize_dataset(
                    f"{folder}/in.npz:b", folder / "y.npy", 0, 1, out_axis=out_axis
                )
            assert not (folder / "y.npy").exists()

    def test_after_an_interruption(self, folder, monkeypatch):
        data = bytearray((folder / "in.npz").read_bytes())
        data[data.index(b"b.npy") + 40_000] ^= 1
        (folder / "in.npz").write_bytes(data)
        done, real = [], scan.measure

        def interrupted(block, options):
            if len(done) == 4:
                raise KeyboardInterrupt
            done.append(block)
            return real(block, options)

        monkeypatch.setattr(scan, "measure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fastbn.dataset_stats(folder, resume=folder / "journal")
        monkeypatch.setattr(scan, "measure", real)
        with pytest.raises(ValueError, match="values are damaged"):
            fastbn.dataset_stats(folder, resume=folder / "journal")

    def test_members_that_overlap_or_lie_elsewhere(self, folder):
        data = (folder / "in.npz").read_bytes()
        at = data.index(b"PK\x03\x04", 10)
        (folder / "in.npz").write_bytes(data[:at] + b"PK\x05\x04" + data[at + 4 :])
        with pytest.raises(ValueError, match=r"in\.npz"):
            fastbn.dataset_stats(folder)


@pytest.mark.parametrize("length", [0, 1, 2, 255, 4097])
def test_checksums_of_parts(rng, length):
    first, second = rng.bytes(77), rng.bytes(length)
    found = checksum.combined(zlib.crc32(first), zlib.crc32(second), length)
    assert found == zlib.crc32(first + second)


def test_channels_that_have_seen_nothing_end_no_range(rng):
    x = rng.normal(5, 1, (20, 2))
    some = [
        measure.Found(fastbn.channel_stats(part, extremes=True), np.zeros(1, int), 1, "", None)
        for part in (x[:, :1], x[:, 1:])
    ]
    found = measure.added(measure._spread(some[0], 0, 2), measure._spread(some[1], 1, 2)).stats
    assert np.array_equal(found.min, x.min(0))
    assert np.array_equal(found.max, x.max(0))


class TestHistograms:
    def test_bins_are_for_one_kind(self, tmp_path):
        np.save(tmp_path / "a.npy", np.full((9, 3), 0.5, np.float32))
        np.save(tmp_path / "b.npy", np.full((9, 3), 255, np.uint8))
        with pytest.raises(ValueError, match="of several kinds"):
            fastbn.dataset_stats(tmp_path, histogram=True, on_unreadable="skip")

    def test_the_first_array_is_damaged(self, rng, tmp_path):
        np.savez(tmp_path / "a.npz", rng.normal(size=(9000, 2)))
        data = bytearray((tmp_path / "a.npz").read_bytes())
        data[50_000] ^= 1
        (tmp_path / "a.npz").write_bytes(data)
        np.save(tmp_path / "b.npy", np.full((9, 3), 255, np.uint8))
        with pytest.raises(ValueError, match=r"bins .* are for the first array.*a\.npz"):
            fastbn.dataset_stats(tmp_path, histogram=True, on_unreadable="skip")

    @pytest.mark.parametrize("most", [1.7e308, 1e308, 1e200, 1e-300, 5e-324])
    def test_of_the_whole_range(self, rng, tmp_path, most):
        x = most * rng.uniform(-1, 1, (500, 2))
        x[0] = -most, 0
        x[1] = most, 0
        np.save(tmp_path / "x.npy", x)
        with np.errstate(all="ignore"):
            found = fastbn.dataset_stats(tmp_path, histogram=True).histograms
        assert np.isfinite(found.edges).all()
        assert (np.diff(found.edges) >= 0).all()
        assert not found.below.any()
        assert (found.counts.sum(1) + found.above == 500).all()
        for c in range(2):
            inside = np.searchsorted(found.edges[c], x[:, c], "right") - 1
            right = np.bincount(np.minimum(inside, 256), minlength=257)
            assert [*found.counts[c], found.above[c]] == right.tolist()


def test_short_ways_to_the_statistics(folder, x):
    found = fastbn.dataset_stats(folder)
    assert found.mean is found.stats.mean
    assert np.array_equal(found.std(1), found.stats.std(1))
    found.save(folder / "s.json")
    assert same(fastbn.ChannelStats.load(folder / "s.json"), found.stats)


def test_channels_last_without_an_axis(rng, tmp_path):
    x = rng.normal(size=(4, 20, 30, 3))
    np.save(tmp_path / "x.npy", x)
    with pytest.warns(UserWarning, match=r"x\.npy has shape .* last axis has 3: axis=-1"):
        check(fastbn.dataset_stats(tmp_path).stats, x)
    check(fastbn.dataset_stats(tmp_path, axis=1).stats, x)
    check(fastbn.dataset_stats(tmp_path, axis=-1).stats, x, -1)
