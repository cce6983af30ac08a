"""Evaluations in processes of their own, each with a cache of its own."""

import json

from tests import subprocess_tools as tools

#: Forks a child for each job, some at once. A child has caches of its own and makes a small
#: evaluation call; prints what came of each: how much native code was compiled and loaded.
SERVER = """
import json, os, signal, sys, traceback
import numpy as np
import fastbn
from tests import reference
from tests.internals import Native


def evaluate(dtypes, shift):
    for dtype in dtypes:
        x = np.random.default_rng(0).normal(3, 2, (2, 3, 40)).astype(dtype)
        mean, var = np.arange(3.0, dtype=dtype), np.arange(1.0, 4.0, dtype=dtype)
        y = fastbn.batch_norm(x, mean, var)
        assert y.tobytes() == fastbn.batch_norm(x, mean, var).tobytes()
        wanted = reference.normalize(x, mean, var, np.ones(3), np.zeros(3), 1e-5, 1)
        np.testing.assert_allclose(y - shift, wanted.astype(float), rtol=1e-5, atol=1e-5)


def fork(env, before, after, dtypes, shift):
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        return pid, read
    try:
        for name, value in env.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        native, names = Native(), {}
        exec(before, names)
        evaluate(dtypes, shift)
        exec(after, names)
        answer = json.dumps([len(native.compiled), len(native.loaded)])
    except BaseException:
        answer = json.dumps(traceback.format_exc()[-4000:])
    os.write(write, answer.encode())
    os._exit(0)


def outcome(pid, read):
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return f"exit code {code}" if code else json.loads(os.read(read, 9999))


outcomes = []
for k in range(0, len(JOBS), AT_ONCE):
    for child in [fork(**job) for job in JOBS[k : k + AT_ONCE]]:
        outcomes.append(outcome(*child))
print(json.dumps(outcomes))
"""


class Place:
    """A copy of the package, and where it may keep its cache."""

    def __init__(self, path, cache, home=None):
        self.path, self.cache = path, cache
        self.home = home or path / "fastbn" / "__init__.py" / "home"  # under a file

    def with_cache(self, cache):
        return Place(self.path, cache)

    def job(self, before="", after="", dtypes=("f4",), shift=0.0):
        env = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"), str(self.home))
        env["NUMBA_CACHE_DIR"] = None if self.cache is None else str(self.cache)
        env["FASTBN_CACHE_DIR"] = None
        return {"env": env, "before": before, "after": after, "dtypes": dtypes, "shift": shift}

    def run(self, *args, **options):
        """What was compiled, and what was loaded."""
        return run_each([self], *args, **options)[0]

    def files(self):
        return sorted(path for path in self.cache.rglob("*.fastbn"))


def run_jobs(path, jobs, at_once=2):
    code = f"JOBS, AT_ONCE = {list(jobs)!r}, {at_once}\n{SERVER}"
    outcomes = json.loads(tools.run(code, path=path))
    return [tuple(found) if isinstance(found, list) else found for found in outcomes]


def run_each(places, *args, **options):
    """`Place.run` of several places of one package, two at a time."""
    places = list(places)
    return run_jobs(places[0].path, [place.job(*args, **options) for place in places])
