"""``fastbn stats``: mean and standard deviation of a dataset in files."""

import argparse
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastbn.cli.options import at_least_one, picture_file, print_json, print_table

if TYPE_CHECKING:
    from fastbn import DatasetStats


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "stats",
        help="mean and standard deviation of every channel of arrays and images in files",
        description=(
            "Count, mean and standard deviation of every channel of .npy, .npz (FILE.npz:NAME for "
            "one of its arrays), PNG, JPEG, TIFF, WebP and BMP files and folders of them, as if "
            "all were one array. They are read once, in little memory, by several processes; the "
            "answer does not depend on how many, to the last bit. In a folder that has images, "
            "arrays are left out, with a note; statistics that were saved always are. Images need "
            "the extra images, --plot the extra cli."
        ),
        epilog="example: fastbn stats train/ -o stats.npz --plot histograms.png",
    )
    parser.add_argument("paths", metavar="PATH", nargs="+", help="a file or a folder")
    parser.add_argument(
        "-o", "--output", metavar="STATS", type=Path,
        help="write count, mean and m2 to this .npz or .json, for fastbn normalize --stats. A run "
        "that was stopped goes on from STATS.partial",
    )  # fmt: skip
    parser.add_argument(
        "--axis", type=int, metavar="N", help="channel axis of arrays (default: 1; -1: the last)"
    )
    parser.add_argument(
        "--mode", choices=("L", "RGB", "RGBA"), help="convert images to it (default: as they are)"
    )
    parser.add_argument("--skipna", action="store_true", help="leave NaN out")
    parser.add_argument(
        "--skip-unreadable", action="store_true", help="leave damaged files out, and list them"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--workers", type=at_least_one, metavar="N",
        help="processes (default: as many as processors, or 1 where there is little to do)",
    )  # fmt: skip
    where.add_argument(
        "--dask", metavar="ADDRESS",
        help="do it on the workers of this Dask scheduler, such as tcp://10.0.0.1:8786. They need "
        "the extra dask, the same fastbn, and the same files under the same names",
    )  # fmt: skip
    parser.add_argument(
        "--resume", type=Path, metavar="FILE",
        help="the journal of finished work, to go on from (default: STATS.partial)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--plot", type=picture_file, metavar="OUT.png",
        help="draw a histogram of every channel (.png, .svg or .pdf)",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    import fastbn

    journal = arguments.resume
    if journal is None and arguments.output is not None:
        journal = arguments.output.with_name(f"{arguments.output.name}.partial")
    try:
        with _workers(arguments) as executor:
            found = fastbn.dataset_stats(
                arguments.paths, axis=arguments.axis, mode=arguments.mode,
                skipna=arguments.skipna, workers=arguments.workers, executor=executor,
                resume=journal, histogram=arguments.plot is not None, save=arguments.output,
                on_unreadable="skip" if arguments.skip_unreadable else "raise",
            )  # fmt: skip
    except KeyboardInterrupt:
        if journal is not None and journal.exists():
            print(f"the same command goes on from {journal}", file=sys.stderr)
        raise
    _list_unreadable(found.unreadable)
    if arguments.plot is not None:
        from fastbn.cli import histograms

        histograms.draw(found, arguments.plot)
    if arguments.json:
        print_json(_json(found, arguments))
    else:
        _print(found, arguments.output)


@contextmanager
def _workers(arguments: argparse.Namespace) -> Iterator[Any]:
    """Those of a cluster, which may be in another folder; None: processes of this machine."""
    if arguments.dask is None:
        yield None
        return
    from fastbn.distributed import on_dask

    arguments.paths = [os.path.abspath(path) for path in arguments.paths]
    before = logging.root.manager.disable
    logging.disable()  # Dask logs the tracebacks of what this command says in a sentence
    try:
        with on_dask.executor(arguments.dask, paths=arguments.paths) as executor:
            yield executor
    finally:
        logging.disable(before)


def _list_unreadable(unreadable: dict[str, str]) -> None:
    if unreadable:
        print(f"left out, because unreadable: {len(unreadable)}", file=sys.stderr)
        for path, why in unreadable.items():
            print(f"  {path}: {why}", file=sys.stderr)


def _json(found: "DatasetStats", arguments: argparse.Namespace) -> dict[str, Any]:
    stats = found.stats
    scaled = None
    if found.greatest is not None:
        scaled = {
            "mean": (stats.mean / found.greatest).tolist(),
            "std": (stats.std() / found.greatest).tolist(),
        }
    return {
        "files": found.files, "dtype": found.dtype, "count": stats.count.tolist(),
        "mean": stats.mean.tolist(), "std": stats.std().tolist(), "scaled_to_1": scaled,
        "nan": found.nan_count.tolist(), "unreadable": found.unreadable,
        "output": None if arguments.output is None else str(arguments.output),
    }  # fmt: skip


def _print(found: "DatasetStats", output: Path | None) -> None:
    stats, greatest = found.stats, found.greatest
    columns = [
        ("channel", _names(stats.mean.size, found.dtype)),
        ("count", [f"{n:.0f}" for n in stats.count]),
        ("mean", [f"{mean:.6g}" for mean in stats.mean]),
        ("std", [f"{std:.6g}" for std in stats.std()]),
    ]
    if greatest is not None:
        columns += [
            (f"mean / {greatest}", [f"{mean / greatest:.6f}" for mean in stats.mean]),
            (f"std / {greatest}", [f"{std / greatest:.6f}" for std in stats.std()]),
        ]
    if found.nan_count.any():
        columns.append(("NaN", [str(n) for n in found.nan_count]))
    titles, cells = zip(*columns, strict=True)
    print_table(titles, list(zip(*cells, strict=True)), right=" ".ljust(len(titles), "r"))
    print(f"\n{found.files} file{'s' * (found.files != 1)}, {found.dtype}.", end="")
    print(f" Statistics are in {output}." if output is not None else "")
    if np.isnan(stats.mean).any() and found.nan_count.any():
        print("There is NaN, which makes NaN of its channel's statistics; --skipna leaves it out.")
    elif not np.isfinite(stats.mean).all():
        print("There are infinite values, which leave no mean of their channel.")
    if greatest is not None and stats.mean.size <= 16:
        mean, std = (_pasted(v / greatest) for v in (stats.mean, stats.std()))
        print(f"For values scaled to 0..1: mean={mean}, std={std}")


def _names(channels: int, dtype: str) -> list[str]:
    """Numbers; with colours beside them where they are most likely that."""
    if channels == 3 and dtype.startswith("uint"):
        return ["0 (red)", "1 (green)", "2 (blue)"]
    return [str(k) for k in range(channels)]


def _pasted(values: Any) -> str:
    return "[" + ", ".join(f"{value:.6f}" for value in values) + "]"
