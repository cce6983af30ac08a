"""Everything private that tests of cache folders touch: like `internals`."""

import json
import logging

from fastbn.kernels import cache_reasons, disk_cache, processors, targets

features_of = processors.features_of
Target = targets.Target


def ours():
    """What code of this process depends on, as a dict."""
    return targets.ours()._asdict()


def x86():
    return "x86_64" in targets.ours().system


def has(feature):
    """Whether the processor has a feature, and Numba makes use of it."""
    return f"+{feature}" in targets.processor().features.split(",")


def add_target(folder, kernel=True, **changed):
    """Leave a file about a target in a folder, as if it had code for it; all else is ours."""
    target = targets.ours()._replace(**changed)
    folder.mkdir(exist_ok=True, parents=True)
    if kernel:
        (folder / f"part_f.{target.digest}{'0' * 12}.fastbn").write_bytes(b"kernel")
    path = folder / f"target.{target.digest}.json"
    path.write_text(json.dumps(target._asdict()))
    return path


def runs(mine, other):
    """Whether code for another target is taken by a process whose own target is ``mine``."""
    return targets.ours()._replace(**mine).runs(targets.ours()._replace(**other))


def lacks(mine, other):
    """What code for another target may use and ``mine`` has not."""
    return targets.ours()._replace(**mine).lacks(targets.ours()._replace(**other))


def save_kernel(monkeypatch, digest, content=b"kernel"):
    """Keep a kernel of the name part_f, and a file about a target beside it."""
    monkeypatch.setattr(targets, "ours", lambda: Target(*["x"] * 6, features=digest))
    folder = disk_cache.save("part_f", digest, content)
    targets.record(folder)


def load_kernel(digest):
    """What is kept, if anything is, and whether something counts as kept."""
    return disk_cache.load("part_f", digest), disk_cache.holds("part_f", digest)


def fill_alone(monkeypatch, folder):
    """Do what a process does that fills a folder for an image."""
    monkeypatch.setattr(disk_cache, "_alone", folder)


def taken_from(monkeypatch, folder):
    """Names of the processors whose code would be loaded from a folder, in order."""
    monkeypatch.setattr(disk_cache, "_folders", lambda: [folder])
    every = {target.digest: target.processor for target in targets.known(folder)}
    found = [every.get(digest[:12], "ours") for digest in targets.digests(())]
    return found[1:]


def why(folder, digest="0" * 24):
    """Why a kernel of the name part_f is not loaded from a folder."""
    return cache_reasons.why(folder, "part_f", [digest])


def told(monkeypatch, caplog, times=1):
    """What is logged when a kernel is compiled: (level, message) of each record."""
    monkeypatch.setattr(cache_reasons, "_told", False)
    caplog.clear()
    with caplog.at_level(logging.INFO, "fastbn"):
        for _ in range(times):
            cache_reasons.tell("part_f")
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def package_is_in(monkeypatch, folder):
    """As if the kernels' sources were in another folder: where their own cache is."""
    monkeypatch.setattr(disk_cache, "__file__", str(folder / "disk_cache.py"))
