"""Scans that are interrupted, killed, go on, or meet a full disk."""

import contextlib
import json
import operator
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import fastbn
from fastbn.dataset import pool, scan, sources

from .test_dataset import same

posix = pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX")


@pytest.fixture
def folder(rng, tmp_path):
    """Two arrays of 20 blocks each."""
    (tmp_path / "data").mkdir()
    for name in "ab":
        x = rng.integers(0, 256, (20, 4, 1000), np.uint8)
        np.save(tmp_path / "data" / f"{name}.npy", x)
    return tmp_path


@pytest.fixture
def counted(monkeypatch):
    """Small blocks, and a list of those that are measured."""
    monkeypatch.setattr(sources, "BLOCK_VALUES", 4000)
    done, measure = [], scan.measure

    def counting(block, options):
        if len(done) == counting.stop:
            raise KeyboardInterrupt
        done.append(block)
        return measure(block, options)

    counting.stop = -1
    monkeypatch.setattr(scan, "measure", counting)
    return done, counting


def interrupted(folder, counting, after, **options):
    counting.stop = after
    with pytest.raises(KeyboardInterrupt):
        fastbn.dataset_stats(folder / "data", resume=folder / "journal", **options)
    counting.stop = -1


def test_going_on(folder, counted):
    done, counting = counted
    whole = fastbn.dataset_stats(folder / "data", histogram=True)
    assert len(done) == 40
    done.clear()
    interrupted(folder, counting, 25, histogram=True)
    found = fastbn.dataset_stats(folder / "data", resume=folder / "journal", histogram=True)
    assert len(done) == 40
    assert same(whole.stats, found.stats)
    assert np.array_equal(whole.histograms.counts, found.histograms.counts)
    assert whole.files == found.files == 2
    assert not (folder / "journal").exists()


def test_nan_and_infinity_come_back(folder, counted):
    done, counting = counted
    x = np.ones((40, 4, 1000))
    x[3, 1, 7], x[4, 2, 8] = np.nan, np.inf
    np.save(folder / "data" / "a.npy", x)
    (folder / "data" / "b.npy").unlink()
    whole = fastbn.dataset_stats(folder / "data")
    interrupted(folder, counting, len(done) + 20)
    found = fastbn.dataset_stats(folder / "data", resume=folder / "journal")
    assert same(whole.stats, found.stats)
    assert found.nan_count.tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("torn", [1, 30, 200])
def test_a_torn_record_is_dropped(folder, counted, torn):
    done, counting = counted
    whole = fastbn.dataset_stats(folder / "data")
    interrupted(folder, counting, len(done) + 10)
    done.clear()
    journal = folder / "journal"
    journal.write_bytes(journal.read_bytes()[:-torn])
    found = fastbn.dataset_stats(folder / "data", resume=journal)
    assert len(done) == 31
    assert same(whole.stats, found.stats)


def test_a_record_whose_bits_have_changed_is_dropped_and_all_after_it(folder, counted):
    done, counting = counted
    whole = fastbn.dataset_stats(folder / "data")
    interrupted(folder, counting, len(done) + 10)
    done.clear()
    lines = (folder / "journal").read_bytes().splitlines(keepends=True)
    lines[6] = lines[6].replace(b"1", b"2")
    (folder / "journal").write_bytes(b"".join(lines))
    found = fastbn.dataset_stats(folder / "data", resume=folder / "journal")
    assert len(done) == 36
    assert same(whole.stats, found.stats)


def test_a_journal_of_other_data(folder, rng, counted):
    _, counting = counted
    interrupted(folder, counting, 25)
    journal, a = folder / "journal", folder / "data" / "a.npy"
    before = journal.read_bytes()

    def refused(words, **options):
        with pytest.raises(ValueError, match=words) as caught:
            fastbn.dataset_stats(folder / "data", resume=journal, **options)
        assert "Remove it to begin anew" in str(caught.value)
        assert journal.read_bytes() == before

    refused("had axis 1, and this one has 0", axis=0)
    refused("had skipna False, and this one has True", skipna=True)
    refused("had histogram False", histogram=True)
    os.utime(a, (1, 1))
    refused(r"a\.npy was changed since")
    np.save(a, rng.integers(0, 256, (20, 4, 1001), np.uint8))
    refused(r"a\.npy is cut differently")
    a.rename(a.with_name("c.npy"))
    refused(r"block 0 was .*a\.npy, and is .*b\.npy")


def test_a_file_that_is_no_journal_stays(folder):
    (folder / "journal").write_text("my notes\n")
    with pytest.raises(ValueError, match="no journal of fastbn"):
        fastbn.dataset_stats(folder / "data", resume=folder / "journal")
    assert (folder / "journal").read_text() == "my notes\n"


@posix
def test_one_run_at_a_time(folder):
    journal = folder / "journal"
    with contextlib.ExitStack() as stack:
        first = scan.Journal(journal, {})
        stack.callback(first.close)
        with pytest.raises(ValueError, match="another run is using"):
            fastbn.dataset_stats(folder / "data", resume=journal)


def test_unreadable_files_are_read_again(folder, counted):
    done, _ = counted
    broken = folder / "data" / "c.npz"
    np.savez_compressed(broken, np.zeros((20, 4, 1000), np.uint8))
    sound = broken.read_bytes()
    broken.write_bytes(sound[:100] + b"!!!!" + sound[104:])
    with pytest.raises(ValueError, match="1 file cannot be read"):
        fastbn.dataset_stats(folder / "data", resume=folder / "journal")
    done.clear()
    broken.write_bytes(sound)
    found = fastbn.dataset_stats(folder / "data", resume=folder / "journal")
    assert len(done) == 1
    assert found.files == 3


SLOW = """
import sys
from fastbn.dataset import sources

sources.BLOCK_VALUES = 1 << 20
from fastbn.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def slow_scan(rng, tmp_path):
    """Start a scan in a process of its own, which takes a second or so, with histograms."""
    np.save(tmp_path / "x.npy", rng.integers(0, 256, (40, 1 << 20), np.uint8))
    (tmp_path / "scan.py").write_text(SLOW)
    started = []

    def start(*options):
        command = [sys.executable, tmp_path / "scan.py", "stats", tmp_path / "x.npy", "--axis", "0",
                   "-o", tmp_path / "s.npz", "--plot", tmp_path / "h.png", *options]  # fmt: skip
        process = subprocess.Popen(
            list(map(str, command)), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def lines_of(journal):
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def children_of(process):
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat") as file:
                if int(file.read().rpartition(")")[2].split()[1]) == process.pid:
                    found.append(int(entry))
    return found


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@posix
@pytest.mark.compiled
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks at processes in /proc")
@pytest.mark.parametrize(
    ("how", "workers"),
    [(signal.SIGKILL, "2"), (signal.SIGINT, "1"), (signal.SIGINT, "2"), (signal.SIGTERM, "1")],
)
def test_a_run_that_is_ended_goes_on_with_the_same_bits(slow_scan, tmp_path, how, workers):
    pytest.importorskip("matplotlib")
    journal = tmp_path / "s.npz.partial"
    process = slow_scan("--workers", workers)
    wait_for(lambda: lines_of(journal) > 4 or process.poll() is not None)
    children = children_of(process)
    assert process.poll() is None, "it was too fast for this test"
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # as a terminal does
    else:
        process.send_signal(how)
    out, err = process.communicate(timeout=60)
    assert not (tmp_path / "s.npz").exists()
    wait_for(lambda: not any(map(is_running, children)), 20)
    if how == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 128 + how
        assert "goes on from" in err
        assert "Traceback" not in err
    done = lines_of(journal)
    assert 4 < done < 41
    process = slow_scan("--json", "--workers", workers)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert not journal.exists()
    whole = fastbn.dataset_stats(tmp_path / "x.npy", axis=0)
    assert json.loads(out)["mean"] == whole.stats.mean.tolist()
    with np.load(tmp_path / "s.npz") as file:
        assert file["m2"].tobytes() == whole.stats.m2.tobytes()
    assert {f.name for f in tmp_path.iterdir()} == {"x.npy", "scan.py", "s.npz", "h.png"}


@posix
@pytest.mark.compiled
def test_a_killed_worker_is_an_error_that_says_so(slow_scan, tmp_path):
    pytest.importorskip("matplotlib")
    process = slow_scan("--workers", "2")
    wait_for(lambda: lines_of(tmp_path / "s.npz.partial") > 2 or process.poll() is not None)
    workers = [pid for pid in children_of(process) if b"fastbn.dataset.pool" in _command(pid)]
    os.kill(workers[0], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "a worker process ended before its work did" in err
    assert (tmp_path / "s.npz.partial").exists()


def _command(pid):
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read()


@pytest.mark.parametrize("how", ["file", "stdin"])
def test_workers_do_not_run_the_script_again(tmp_path, how):
    """They need no `if __name__ == "__main__":`, and no file of the script."""
    np.save(tmp_path / "x.npy", np.ones((4, 3)))
    code = f"""
import fastbn
print(fastbn.dataset_stats({str(tmp_path / "x.npy")!r}, workers=2).stats.mean)
"""
    (tmp_path / "script.py").write_text(code)
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"] if how == "file" else [sys.executable, "-"],
        input=code, capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    assert done.stdout == "[1. 1. 1.]\n"
    assert done.stderr == ""


def test_an_error_of_a_worker_comes_here():
    with pool.Workers(2) as workers:
        future = workers.submit(operator.truediv, 1, 0)
        with pytest.raises(ZeroDivisionError):
            future.result(60)
        assert workers.submit(operator.truediv, 1, 2).result(60) == 0.5


def test_what_a_worker_prints_is_no_answer():
    with pool.Workers(1) as workers:
        assert workers.submit(print, "words").result(60) is None
        assert workers.submit(operator.truediv, 1, 2).result(60) == 0.5


@posix
def test_a_full_disk(rng, tmp_path):
    """The journal meets the limit of a file's size."""
    np.save(tmp_path / "x.npy", rng.normal(size=(4000, 50)))
    code = f"""
import resource, signal, sys
from fastbn.cli import main
from fastbn.dataset import sources
sources.BLOCK_VALUES = 1000
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
sys.exit(main(["stats", {str(tmp_path / "x.npy")!r}, "-o", {str(tmp_path / "s.npz")!r}]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 2
    assert "s.npz.partial cannot be written: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "s.npz").exists()
    sources.BLOCK_VALUES, before = 1000, sources.BLOCK_VALUES
    try:  # with room again, it goes on
        whole = fastbn.dataset_stats(tmp_path / "x.npy")
        assert lines_of(tmp_path / "s.npz.partial") > 3
        found = fastbn.dataset_stats(tmp_path / "x.npy", resume=tmp_path / "s.npz.partial")
    finally:
        sources.BLOCK_VALUES = before
    assert same(whole.stats, found.stats)
