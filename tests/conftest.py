import numba
import numpy as np
import pytest

import fastbn


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_configure(config):
    # who has set a number gets it: else threads would not be tested on a busy machine
    fastbn.set_num_threads(fastbn.get_num_threads())
    if numba.config.DISABLE_JIT:  # NumPy warns where compiled code just goes on
        config.addinivalue_line("filterwarnings", "ignore::RuntimeWarning")


def pytest_collection_modifyitems(config, items):
    reasons = {}
    if not config.getoption("--slow"):
        reasons["slow"] = "slow: run with --slow"
    if numba.config.DISABLE_JIT:
        reasons["compiled"] = "too slow without the JIT, or about threads"
    for item in items:
        for marker, reason in reasons.items():
            if marker in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def rng(request):
    """Random numbers that depend on the test's name alone."""
    return np.random.default_rng(list(request.node.name.encode()))


@pytest.fixture
def tables():
    pytest.importorskip("tabulate", reason="tables are made with tabulate")
