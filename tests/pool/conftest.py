import pytest

from tests.internals import pool
from tests.pool.tools import MIB


@pytest.fixture(autouse=True)
def empty_pool(monkeypatch):
    """A pool of 64 MiB that nobody has used, for outputs from 1 MiB on, and nothing afterwards."""
    monkeypatch.setattr(pool, "SMALLEST", MIB)
    monkeypatch.setattr(pool, "_limit", 64 * MIB)
    monkeypatch.setattr(pool, "_blocks", {})
    monkeypatch.delenv("FASTBN_REUSE_LIMIT", raising=False)  # for scripts


@pytest.fixture
def small(monkeypatch):
    """Reuse from 4096 bytes on, for tests that make many outputs."""
    monkeypatch.setattr(pool, "SMALLEST", 4096)
