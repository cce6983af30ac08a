"""``fastbn info``."""

import argparse
import json
import textwrap
from typing import Any


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "info",
        help="versions, processor, threads, cache folders, GPU",
        description=(
            "Show what fastbn works with here: versions, processor, threads, where compiled "
            "kernels are read and written, and the GPU if there is numba-cuda."
        ),
        epilog="example: fastbn info --json | python -m json.tool",
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print it."""
    from fastbn.environment import describe

    found = describe()
    print(json.dumps(found, indent=2) if arguments.json else as_text(found))


def as_text(found: dict[str, Any]) -> str:
    """What `fastbn.environment.describe` has found, for people."""
    cpu, threads = found["cpu"], found["threads"]
    cache = cpu["last-level cache"]
    size = f", last-level cache {cache / 2**20:.0f} MiB" if cache else ""
    told = "" if cpu["from"] == "this machine" else f" (by {cpu['from']})"
    layer = threads["layer"] or "none that works"
    lines = [
        _line("versions", ", ".join(f"{name} {of}" for name, of in found["versions"].items())),
        _line("cpu", f"{cpu['name']}{told}, {cpu['processors']} processors{size}"),
        _line("", " ".join(cpu["features"]) or "no vector instructions beyond the usual"),
        _line("threads", f"{threads['number']} (from {threads['from']}); layer {layer}"),
        "caches    folders of compiled kernels, in the order in which they are read",
        *(line for cache in found["caches"] for line in _cache(cache)),
        *_gpu(found["gpu"]),
    ]
    return "\n".join(lines)


def _line(name: str, text: str, width: int = 10) -> str:
    return textwrap.fill(
        text, 98, initial_indent=f"{name:{width}}", subsequent_indent=" " * width,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _cache(cache: dict[str, Any]) -> list[str]:
    if not cache["exists"]:
        state = ["does not exist" + (", would be made" if cache["writable"] else "")]
    elif not cache["read"]:
        state = ["cannot be read"]
    else:
        state = ["read", "can be written" if cache["writable"] else "read-only"]
    if cache["written"]:
        state.append("new kernels go here")
    if cache["kernels"] or cache["others"]:
        state.append(f"{cache['kernels']} kernels for this processor")
    if cache["others"]:
        state.append(f"{cache['others']} for others or outdated")
    return [f"  {cache['from']:17} {cache['path']}", _line("", ", ".join(state), 20)]


def _gpu(gpu: dict[str, Any]) -> list[str]:
    if gpu["numba-cuda"] is None:
        return [_line("gpu", "no numba-cuda: pip install 'fastbn[cuda]' for NVIDIA GPUs")]
    found = [
        f"{device['name']}, compute capability {device['compute capability']}, "
        f"{device['free'] / 2**30:.1f} of {device['memory'] / 2**30:.1f} GiB free"
        for device in gpu.get("devices", ())
    ]
    if "error" in gpu:
        found.append(f"none to be used: {gpu['error']}")
    return [_line("gpu", f"numba-cuda {gpu['numba-cuda']}: {'; '.join(found) or 'no device'}")]
