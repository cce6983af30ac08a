"""Hostile and broken files: each is an error that names the file, and nothing of it runs."""

import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest

import fastbn
from fastbn.checkpoint import npz_file
from tests import hostile_files, hostile_pickles, subprocess_tools
from tests.hostile_files import FILES
from tests.hostile_pickles import CANARY, COMMAND, PICKLES

DATA = Path(__file__).parent / "data"
WHOLE = ["network.pth", "network.old.pth", "network.safetensors", "tensors.npz", "tensors.old.pth"]
CASES = {
    **FILES,
    **{
        f"{kind}, {why}": (".pth", form(hostile_pickles.pickled(code)), message)
        for kind, form in (("zip", hostile_files.zipped), ("old", hostile_files.old))
        for why, (code, message) in PICKLES.items()
    },
}


@pytest.fixture(autouse=True)
def _no_canary(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / CANARY).exists()


def test_there_are_enough_of_them():
    assert len(CASES) >= 150


@pytest.mark.parametrize("why", CASES)
def test_a_hostile_file_is_an_error(why, tmp_path):
    suffix, data, message = CASES[why]
    path = tmp_path / f"hostile{suffix}"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"hostile\.") as caught:
        fastbn.load_batch_norms(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_the_files_would_be_read_if_nothing_was_wrong(tmp_path):
    """Otherwise all of the above may fail for another reason."""
    good = hostile_files.GOOD
    for data in (hostile_files.zipped(good), hostile_files.old(good)):
        (tmp_path / "good.pth").write_bytes(data)
        assert fastbn.load_batch_norms(tmp_path / "good.pth")["bn"].running_var.tolist() == [1] * 4
    array = hostile_files.npy(hostile_files.header())
    names = ["bn.running_mean", "bn.running_var"]
    (tmp_path / "good.npz").write_bytes(hostile_files.npz(**dict.fromkeys(names, array)))
    text = hostile_files.both(hostile_files.entry(), hostile_files.entry(offsets="[16, 32]"))
    (tmp_path / "good.safetensors").write_bytes(hostile_files.safetensors(text))
    for name in ("good.npz", "good.safetensors"):
        assert fastbn.load_batch_norms(tmp_path / name)["bn"].num_features == 4


def test_pickle_would_have_run_it(tmp_path):
    """The canary is one: Python's own reader runs what ours refuses."""
    data = hostile_pickles.pickled(
        hostile_pickles.call("os", "system", hostile_pickles.text(COMMAND))
    )
    pickle.loads(data)
    assert (tmp_path / CANARY).exists()
    (tmp_path / CANARY).unlink()


@pytest.mark.parametrize("name", WHOLE)
def test_a_truncated_file_is_an_error(name, tmp_path):
    data = (DATA / name).read_bytes()
    path = tmp_path / f"cut{Path(name).suffix}"
    for length in {*range(1, 40), *range(40, len(data), 97), *range(len(data) - 9, len(data))}:
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match="cut"):
            fastbn.load_tensors(path)


@pytest.mark.parametrize("name", WHOLE)
def test_a_damaged_file_is_read_or_an_error(name, tmp_path):
    """A changed byte may be part of a value; it never leads to another error, or further."""
    data = (DATA / name).read_bytes()
    path = tmp_path / f"damaged{Path(name).suffix}"
    numbers = random.Random(name)
    errors = 0
    for _ in range(400):
        damaged = bytearray(data)
        for _ in range(numbers.choice([1, 1, 2, 8])):
            damaged[numbers.randrange(len(data))] = numbers.randrange(256)
        path.write_bytes(damaged)
        errors += fails(path)
    assert errors > 20


def fails(path):
    """Whether reading fails, as it should: with a ValueError that names the file."""
    try:
        fastbn.load_tensors(path)
    except ValueError as error:
        if str(path) not in str(error):
            raise
        return True
    return False


BOMBS = """
import resource, zipfile
from pathlib import Path
import numpy as np
import fastbn
from tests import hostile_files as h
from tests.hostile_pickles import PICKLES, pickled, state

names = ["bn.running_mean", "bn.running_var"]
header = h.npy(h.header("(78643200,)"), b"")
bomb = h.npz(zipfile.ZIP_DEFLATED, **{names[0]: header + bytes(300 << 20), names[1]: header})
claims = h.npz(zipfile.ZIP_DEFLATED, **dict.fromkeys(names[::-1], header))
claims = h.directory(claims, 24, 2**32 - 2)  # of 4 GB
files = {
    "bomb.npz": bomb, "claims.npz": claims,
    **{why + suffix: data for why, (suffix, data, _) in h.FILES.items()},
    **{f"pickle {why}.pth": h.old(pickled(code)) for why, (code, _) in PICKLES.items()},
}
fastbn.load_batch_norms({"a.running_mean": np.zeros(2), "a.running_var": np.ones(2)})
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20),) * 2)
for name, data in files.items():
    path = Path(FOLDER) / name.replace("/", "")
    path.write_bytes(data)
    try:
        fastbn.load_batch_norms(path)
    except ValueError as error:
        if name in ("bomb.npz", "claims.npz"):
            assert "zip bomb" in str(error), error
    else:
        raise SystemExit(f"{name} was read")
path.write_bytes(h.zipped(pickled(state(x=b"Nr\\xff\\xff\\xff\\xff"))))
fastbn.load_batch_norms(path)  # the number of a value is no size of a table
print(len(files))
"""


def test_a_small_bomb(tmp_path, monkeypatch):
    """An array may unpack to 256 MB, or to 200 times its bytes; most of what is zero does."""
    array = np.zeros(1 << 18, np.float32)
    names = ["bn.running_mean", "bn.running_var"]
    np.savez_compressed(tmp_path / "bomb.npz", **dict.fromkeys(names, array))
    assert fastbn.load_batch_norms(tmp_path / "bomb.npz")["bn"].num_features == 1 << 18
    monkeypatch.setattr(npz_file, "_FREE", 1 << 10)
    with pytest.raises(ValueError, match=r"unpacks from \d+ bytes to 2097408, as a zip bomb does"):
        fastbn.load_batch_norms(tmp_path / "bomb.npz")


def test_a_bomb_beside_numbers_that_do_not_shrink(tmp_path, monkeypatch):
    """Then the file as a whole is not suspicious, and the array is, when it is read."""
    rng = np.random.default_rng(0)
    arrays = {"noise": rng.bytes(200_000), "bn.running_mean": bytes(1 << 20)}
    arrays = {name: np.frombuffer(data, np.uint8) for name, data in arrays.items()}
    np.savez_compressed(tmp_path / "bomb.npz", **arrays)
    monkeypatch.setattr(npz_file, "_FREE", 1 << 10)
    assert fastbn.load_tensors(tmp_path / "bomb.npz", ["noise"])["noise"].size == 200_000
    with pytest.raises(ValueError, match=r"'bn\.running_mean.*unpacks from \d+ bytes to 1048704"):
        fastbn.load_tensors(tmp_path / "bomb.npz", ["bn.running_mean"])


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_hostile_files_take_no_memory(tmp_path):
    """With 200 MB to spare, a bomb of 300 MB and claims of terabytes are plain errors."""
    code = f"FOLDER = {str(tmp_path)!r}\n{BOMBS}"
    assert int(subprocess_tools.run(code, threads=1)) > 150


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file '.*none\.pth'"):
        fastbn.load_batch_norms(tmp_path / "none.pth")
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is a folder; name the file in it, .*index\.json"):
        fastbn.load_batch_norms(tmp_path)
    os.mkfifo(tmp_path / "pipe.pth")  # reading it would wait for ever
    with pytest.raises(ValueError, match=r"pipe\.pth: is neither a file nor a folder"):
        fastbn.load_batch_norms(tmp_path / "pipe.pth")
    with pytest.raises(TypeError, match="source must be a path, or a mapping"):
        fastbn.load_batch_norms([1, 2])
    with pytest.raises(TypeError, match="prefix must be a string"):
        fastbn.load_batch_norms({}, prefix=3)
