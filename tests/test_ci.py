"""Steps of CI that run side by side: what is shown of them, and how they fail."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

BESIDE = Path(__file__).parent.parent / ".ci" / "beside.sh"

pytestmark = [
    pytest.mark.skipif(not BESIDE.exists(), reason="not in a checkout"),
    pytest.mark.compiled,  # nothing of it is about kernels: once is enough
    pytest.mark.skipif(not shutil.which("bash"), reason="needs bash"),
]

BEGIN = f"""
set -euo pipefail
work=$PWD/work
mkdir "$work"
. {BESIDE}
trap 'end_steps; rm -rf "$work"' EXIT
trap 'exit 143' TERM
"""


def start(steps, folder):
    """Start a script of some steps: a name, and the shell commands that it stands for."""
    functions = "".join(
        f"f{k}() {{\n{commands}\n}}\nbeside '{name}' f{k}\n"
        for k, (name, commands) in enumerate(steps.items())
    )
    code = f"{BEGIN}{functions}run_steps 2\necho afterwards\n"
    return subprocess.Popen(
        ["bash", "-c", code], cwd=folder, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def run(steps, folder):
    """Exit code and output of such a script, which leaves no folder behind."""
    process = start(steps, folder)
    out, _ = process.communicate(timeout=120)
    assert not (folder / "work").exists()
    return process.returncode, out


def blocks(out):
    """What is shown of each step that has ended, by its name, in order."""
    parts = re.split(r"\n=== (.*?) \(", out.replace("\nafterwards\n", "\n"))[1:]
    bodies = [re.split(r"\n\.\.\. ", body.partition("\n")[2])[0].strip() for body in parts[1::2]]
    return dict(zip(parts[::2], bodies, strict=True))


def test_each_step_is_shown_whole_when_it_has_ended(tmp_path):
    code, out = run(
        {"slow": "echo s1; sleep 2; echo s2 >&2", "quick": "echo q1; sleep 0.2; echo q2",
         "last": "echo l1"},
        tmp_path,
    )  # fmt: skip
    assert code == 0
    assert list(blocks(out).items()) == [("quick", "q1\nq2"), ("last", "l1"), ("slow", "s1\ns2")]
    assert re.search(r"\n=== slow \(took 0 min [1-9] s, \d\d:\d\d:\d\d\)\n", out)
    assert out.endswith("\nafterwards\n")


def test_two_run_at_a_time(tmp_path):
    mark = "touch {0}; sleep 0.7; printf '%s\\n' [a-d] > seen.{0}; rm {0}"
    code, _ = run({name: mark.format(name) for name in "abcd"}, tmp_path)
    assert code == 0
    seen = [len((tmp_path / f"seen.{name}").read_text().split()) for name in "abcd"]
    assert max(seen) == 2


@pytest.mark.parametrize(
    ("commands", "code"),
    [
        ("false | cat; echo never", 1), ("return 3", 3), ("kill -KILL $BASHPID", 137),
    ],
)  # fmt: skip
def test_one_that_fails_ends_the_others_and_the_script(commands, code, tmp_path):
    begun = time.monotonic()
    steps = {
        "long": "echo l1; (sleep 90; touch later) & wait; echo never",
        "wrong": f"echo w1; sleep 0.2; {commands}", "third": "touch third",
    }  # fmt: skip
    ended, out = run(steps, tmp_path)
    assert ended != 0
    assert time.monotonic() - begun < 60
    assert f"\n=== wrong (FAILED with exit code {code}, took 0 min" in out
    assert "\n=== long (ended before it was done; its last lines)\nl1\n" in out
    for absent in ("never", "afterwards", "third"):
        assert absent not in out
    assert not (tmp_path / "third").exists()
    assert not running(tmp_path)


def running(folder):
    """Processes that work in a folder, where the system tells."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if Path(os.readlink(process / "cwd")) == folder:
                found.append(process.name)
    return found


def test_a_script_that_is_ended_ends_its_steps(tmp_path):
    process = start({"long": "touch begun; sleep 90", "other": "sleep 90"}, tmp_path)
    while not (tmp_path / "begun").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "afterwards" not in out
    assert not (tmp_path / "work").exists()
    assert not running(tmp_path)
