"""``pytest benchmarks``: its options, how long it takes, and its table."""

import os
import shlex
import warnings
from pathlib import Path

import numpy as np
import pytest

import benchmarks.results
import fastbn
from benchmarks.estimate import expected_seconds, in_words
from benchmarks.problem import OPERATIONS
from benchmarks.providers import PROVIDERS

FOLDER = Path(__file__).parent
GRIDS = ("quick", "report", "full")
#: The groups of the table, in the order in which they are printed.
GROUPS = (*OPERATIONS, "layer evaluation", "start", "cold")


def pytest_addoption(parser):
    parser.addoption(
        "--grid",
        choices=GRIDS,
        default="quick",
        help="quick: fastbn alone on a few shapes, next to copies; report: everybody, on "
        "what the report shows; full: all there is. Each says how long it takes before it starts",
    )
    parser.addoption("--threads", type=int, help="let everybody use this number of processors")


def pytest_configure(config):
    threads = config.getoption("--threads")
    if threads is not None:  # before anybody has started its threads
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    # who has set a number gets it: as many threads as a copy, on a busy machine as well
    fastbn.set_num_threads(fastbn.get_num_threads())
    # a run on another machine, or none, to compare with: said, and the run goes on
    warnings.filterwarnings("default", category=pytest.PytestWarning, module="pytest_benchmark")
    given = [*shlex.split(os.environ.get("PYTEST_ADDOPTS", "")), *config.invocation_params.args]
    chosen = {str(argument).split("=")[0] for argument in given}
    for option, value in _table(config.getoption("benchmark_compare", None)).items():
        if option not in chosen:
            setattr(config.option, option[2:].replace("-", "_"), value)


@pytest.fixture(scope="session")
def machine():
    return benchmarks.results.machine()


def pytest_collection_modifyitems(config, items):
    beyond = GRIDS[GRIDS.index(config.getoption("--grid")) + 1 :]
    left = [item for item in items if any(grid in item.keywords for grid in beyond)]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in set(left)]


# --- how long it takes ------------------------------------------------------------------------


def pytest_report_collectionfinish(items):
    sizes, processes = [], 0
    for item in items:
        if FOLDER not in item.path.parents:
            continue  # a test that runs in the same session
        params = item.callspec.params
        if "name" in params and PROVIDERS[params["name"]].missing():
            continue  # it will be skipped
        if item.path.name == "test_start.py":
            processes += 1
        else:
            sizes.append(_size(params))
    return [
        in_words(len(sizes) + processes, expected_seconds(sizes, processes)),
        "copies: how many times as long as a copy of the same bytes with the same threads",
    ]


def _size(params):
    """Bytes of the array of a cell; that of `test_layer` is tiny."""
    return params["case"].size * np.dtype(params["dtype"]).itemsize if "case" in params else 0


# --- the table --------------------------------------------------------------------------------


def _table(comparing):
    """Options that fit it into 120 columns, and order its rows alike in every run.

    Names of runs that are compared have their number beside them and leave less room.
    """
    columns = ["min", "median"] if comparing else ["min", "median", "iqr"]
    return {
        "--benchmark-columns": columns,
        "--benchmark-name": "short",
        "--benchmark-sort": "fullname",
    }


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_scale_unit(config, unit, best):
    """Microseconds for calls, seconds for processes; else the first row of a group decides."""
    if unit == "seconds" and config.getoption("benchmark_time_unit") in (None, "auto"):
        return ("u", 1e6) if best["min"] < 0.01 else ("", 1.0)
    return None  # as pytest-benchmark does it


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_generate_machine_info():
    """What runs that are compared should share: not the clock, which varies, nor a name."""
    found = benchmarks.results.machine()
    del found["versions"]["fastbn"]
    return found


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(output_json):
    """Keep the ratio to a copy with the figures, which a later run gets to compare with."""
    for row in output_json["benchmarks"]:
        row["stats"]["ratio_to_copy"] = row["extra_info"].get("ratio_to_copy")


@pytest.hookimpl(optionalhook=True, wrapper=True)
def pytest_benchmark_group_stats():
    """Order the groups, and name the ratios to a copy: the columns are pytest-benchmark's alone."""
    groups = yield
    width = max(len(row["name"]) for _, rows in groups for row in rows)
    for _, rows in groups:
        for row in rows:
            figures = row if row["path"] else row["extra_info"]  # of an earlier run, or of this
            if ratio := figures.get("ratio_to_copy"):
                row["name"] = f"{row['name']:{width}} {ratio:6.2f} copies"
    order = {name: k for k, name in enumerate(GROUPS)}
    return sorted(groups, key=lambda group: order.get(group[0], len(order)))
