"""A cluster of Dask's as an executor of `concurrent.futures`, for statistics of files."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import (
    CancelledError,
    Executor,
    Future,
    InvalidStateError,
    ThreadPoolExecutor,
)
from contextlib import closing, contextmanager, suppress
from typing import Any

from fastbn.distributed.on_dask.arrays import library, on_one_thread

__all__ = ["executor"]

#: Seconds between two looks whether the scheduler is still there.
_LOOK = 0.5


@contextmanager
def executor(
    cluster: Any, *, timeout: float = 10.0, paths: Iterable[str | os.PathLike[str]] = ()
) -> Iterator[Executor]:
    """A cluster as an executor: ``fastbn.dataset_stats(folder, executor=...)``.

    If a worker is lost, Dask gives its blocks to others, and the result has the same bits. What is
    left to do when the block ends early, by Ctrl-C for one, is cancelled.

    Parameters
    ----------
    cluster : str or distributed.Client
        The address of a scheduler, such as ``tcp://10.0.0.1:8786``, or a client, which stays open.
    timeout : float
        Seconds to wait for the scheduler, and for a first worker.
    paths : iterable of paths
        What each worker is to see, under these very names.

    Raises
    ------
    ConnectionError
        If no scheduler answers, if it has no worker, or if it is lost on the way.
    FileNotFoundError
        If a worker does not see one of the paths.
    ValueError
        If a worker has no fastbn, or another version of it.
    ChildProcessError
        If several workers have died over one block, for want of memory most likely.

    Examples
    --------
    >>> from distributed import Client
    >>> from fastbn.distributed import on_dask
    >>> with Client("tcp://10.0.0.1:8786") as client:  # doctest: +SKIP
    ...     with on_dask.executor(client) as workers:
    ...         found = fastbn.dataset_stats("/data/train", executor=workers)
    """
    distributed = library("distributed")
    own = isinstance(cluster, str)
    client = _connected(distributed, cluster, timeout) if own else cluster
    try:
        _check_workers(client, timeout, [os.fspath(path) for path in paths])
        with closing(_Workers(client)) as workers:
            yield workers
    except CancelledError as error:
        raise _lost(client) from error
    except distributed.KilledWorker as error:
        raise ChildProcessError(
            f"several workers have died over one block, most likely for want of memory: {error}"
        ) from error
    finally:
        if own:
            client.close(timeout)


class _Workers(Executor):
    """Tasks of a client, on one thread each.

    Of a client that loses its scheduler some futures never end, so a thread looks whether it has.
    """

    def __init__(self, client: Any) -> None:
        self._max_workers = max(1, sum(client.nthreads().values()))
        self._client, self._tasks = client, client.get_executor(pure=False)
        self._connection = client.scheduler_comm
        self._waiting: list[Future[Any]] = []
        self._lock, self._over = threading.Lock(), threading.Event()
        threading.Thread(target=self._watch, name="fastbn watching Dask", daemon=True).start()

    def submit(self, call: Any, /, *given: Any, **named: Any) -> Future[Any]:
        future = self._tasks.submit(on_one_thread, call, *given, **named)
        with self._lock:
            self._waiting = [each for each in self._waiting if not each.done()] + [future]
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._tasks.shutdown(wait)

    def close(self) -> None:
        """No longer look whether the scheduler is there."""
        self._over.set()

    def _watch(self) -> None:
        client = self._client
        while not self._over.wait(_LOOK):
            if client.status == "running" and client.scheduler_comm is self._connection:
                continue
            with self._lock:
                for future in self._waiting:
                    with suppress(InvalidStateError):  # it has ended meanwhile
                        future.set_exception(_lost(client))


def _lost(client: Any) -> ConnectionError:
    where = getattr(client.scheduler, "address", "of Dask")
    return ConnectionError(f"the scheduler {where} was lost, or has cancelled the work")


def _connected(distributed: Any, address: str, timeout: float) -> Any:
    """A client of the scheduler there; ConnectionError if there is none.

    It is asked first whether it is one: a client that was not let in waits for it when it ends.
    """
    with ThreadPoolExecutor(1) as thread:  # this one may be running a loop of its own
        asked = _kind_at(distributed, address, timeout)
        try:
            kind = thread.submit(asyncio.run, asked).result()
        except Exception as error:  # whatever answers there, it need not be Dask
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConnectionError(
                f"no Dask scheduler answers at {address!r} within {timeout:g} seconds "
                f"({reason[:300]}); `dask scheduler` starts one, and says its address, such as "
                "tcp://10.0.0.1:8786"
            ) from error
    if kind != "Scheduler":
        raise ConnectionError(f"{address!r} is the address of a {kind}; give the scheduler's")
    return distributed.Client(address, timeout=timeout, set_as_default=False)


async def _kind_at(distributed: Any, address: str, timeout: float) -> str:
    async with distributed.rpc(address, timeout=timeout) as there:
        return (await asyncio.wait_for(there.identity(), timeout))["type"]


def _check_workers(client: Any, timeout: float, paths: list[str]) -> None:
    """Whether there are workers that have this fastbn and see these files."""
    import fastbn

    where = client.scheduler.address
    try:
        client.wait_for_workers(1, timeout)
    except TimeoutError as error:
        raise ConnectionError(
            f"the scheduler {where} has no workers; `dask worker {where}` starts some"
        ) from error
    for worker, version in client.run(_version, on_error="return").items():
        if isinstance(version, OSError):  # it has just been lost
            continue
        if version != fastbn.__version__:
            has = "cannot import it" if isinstance(version, Exception) else f"has {version}"
            raise ValueError(
                f"all workers need fastbn {fastbn.__version__}, and {worker} {has}: install it "
                "there, with what it reads images with"
            )
    for worker, missing in client.run(_missing, paths, on_error="return").items():
        if isinstance(missing, str):
            raise FileNotFoundError(
                f"the worker {worker} sees no {missing!r}; all workers need the same files under "
                "the same names, on a file system that they share for instance"
            )


def _version() -> str:
    import fastbn

    return fastbn.__version__


def _missing(paths: list[str]) -> str | None:
    """The first path that is not there; of "file.npz:name" the file counts."""
    for path in paths:
        if not any(map(os.path.exists, (path, path.rpartition(":")[0]))):
            return path
    return None
