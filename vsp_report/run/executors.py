"""Executors: where tasks run. One interface, that of concurrent.futures, for one kernel, several, or a cluster.

Here, a thread is enough for a task: what computes is its kernel, a process of its own, and the thread only waits for
it. On a Dask cluster a task goes to a worker, whose thread does the same there; it reads and writes the same folders,
so they must be on storage that all machines see. A task may come twice, after the death of a worker: see `task`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

from vsp_report.errors import InputError, MissingExtra

RETRIES = 3
"""How often a task is given to another worker after its own died."""
CONNECT_SECONDS = 15
CLUSTER_EXTRA = "python -m pip install 'vsp-report[cluster]'"


class Here(ThreadPoolExecutor):
    """So many threads, each with a kernel of its own for as long as the executor lasts."""

    def __init__(self, jobs: int = 1) -> None:
        super().__init__(jobs, thread_name_prefix="vsp-report", initializer=_share_cores, initargs=(jobs,))
        self._jobs = jobs

    def __exit__(self, *raised: Any) -> None:
        from vsp_report.run import kernel

        if raised[0] is not None:
            self.shutdown(wait=False, cancel_futures=True)
            kernel.kill_all(stop=True)  # who waits for one is told, and so comes to an end
        # A kernel can only be left by its own thread. Behind a barrier no thread takes two of these.
        together = threading.Barrier(self._jobs)
        with contextlib.suppress(RuntimeError):  # shut down already: the threads are at their end
            for _ in range(self._jobs):
                self.submit(_leave_kernel, together)
        super().__exit__(*raised)
        kernel.kill_all()
        kernel.go_on()


_share = threading.local()


def _share_cores(jobs: int) -> None:
    _share.environment = {} if jobs == 1 else {"OMP_NUM_THREADS": str(_cores_for(jobs))}


def environment() -> dict[str, str]:
    """What a kernel of this thread is started with: of several that compute side by side, each has its cores. Who says
    how many threads there are to be is obeyed."""
    return {**getattr(_share, "environment", {}), **os.environ}


def _cores_for(jobs: int) -> int:
    return max(1, (os.cpu_count() or 1) // jobs)


def _leave_kernel(together: threading.Barrier) -> None:
    from vsp_report.run import kernel

    with contextlib.suppress(threading.BrokenBarrierError):
        together.wait(timeout=60)
    kernel.leave()


@contextlib.contextmanager
def here(jobs: int = 1) -> Iterator[Executor]:
    with Here(jobs) as executor:
        yield executor


@contextlib.contextmanager
def processes(jobs: int) -> Iterator[Executor]:
    """So many processes on this machine, for work that computes in Python itself; its cores are shared out."""
    others = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _worker, (_cores_for(jobs),))
    try:
        yield executor
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        for worker in set(multiprocessing.active_children()) - others:
            worker.terminate()
        raise
    executor.shutdown()


def _worker(threads: int) -> None:
    # Read when torch is imported, which comes later.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    # Ctrl-C reaches the whole group: a worker ends at once and says nothing. What it had not finished is not there.
    signal.signal(signal.SIGINT, lambda *signalled: os._exit(130))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Who was killed tells its workers nothing: they would wait for ever, with all their memory."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def cluster(address: str) -> Iterator[Executor]:
    """The workers of a Dask cluster, by its scheduler's address: tcp://HOST:PORT, or a scheduler file."""
    try:
        import distributed
    except ImportError as error:
        raise MissingExtra("--cluster", "needs Dask, which is not installed", f"Run: {CLUSTER_EXTRA}") from error
    words = {"scheduler_file": address} if address.endswith(".json") else {"address": address}
    try:
        client = distributed.Client(**words, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        remedy = "Give the address that the scheduler prints as it starts, such as tcp://10.0.0.1:8786."
        raise InputError("--cluster", f"no scheduler answers at {address}", remedy) from error
    with client:
        executor = client.get_executor(pure=False, retries=RETRIES)
        try:
            yield executor
        except BaseException:
            executor.shutdown(wait=False)  # which cancels what has not begun
            raise
