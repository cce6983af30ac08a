"""Options of ``pytest benchmarks``, and the machine's description in its results."""

import os

import pytest

import benchmarks.results

GRIDS = ("quick", "report", "full")


def pytest_addoption(parser):
    parser.addoption(
        "--grid",
        choices=GRIDS,
        default="quick",
        help="quick: fastbn alone on a few shapes, next to copies; report: everybody, on "
        "what the report shows (a quarter of an hour); full: all there is (hours)",
    )
    parser.addoption("--threads", type=int, help="let everybody use this number of processors")


def pytest_configure(config):
    threads = config.getoption("--threads")
    if threads is not None:  # before anybody has started its threads
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


@pytest.fixture(scope="session")
def machine():
    return benchmarks.results.machine()


def pytest_collection_modifyitems(config, items):
    beyond = GRIDS[GRIDS.index(config.getoption("--grid")) + 1 :]
    left = [item for item in items if any(grid in item.keywords for grid in beyond)]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in set(left)]
