"""Long work: Dash's background callbacks, on threads of this process.

Dash's own manager starts a process for each job. A model would have to be loaded again in every one, a run could not
stay in memory for the page that asked for it, and PyTorch's threads do not survive a fork. Here a job is a thread:
it shares the models, tells its progress through the same disk cache, and ends when it is cancelled, at the next
layer, token or sample.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from dash import DiskcacheManager
from diskcache import Cache


class Cancelled(Exception):
    """The user cancelled the job that this thread works at."""


ABANDONED = 600.0
"""Seconds after which the result of a closed page is forgotten."""

_STOP: ContextVar[threading.Event | None] = ContextVar("headscope_stop", default=None)


def check() -> None:
    """Raise ``Cancelled`` if the job of this thread was cancelled; outside a job do nothing."""
    stop = _STOP.get()
    if stop is not None and stop.is_set():
        raise Cancelled


@dataclass
class _Job:
    stop: threading.Event = field(default_factory=threading.Event)
    ended: float | None = None


class ThreadManager(DiskcacheManager):  # type: ignore[misc]
    """Runs background callbacks on threads."""

    def __init__(self, folder: str) -> None:
        super().__init__(Cache(folder, size_limit=256 << 20))
        self._jobs: dict[int, _Job] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def call_job_fn(self, key: str, job_fn: Callable[..., None], args: Any, context: Any) -> int:
        """Start a job and return its number."""
        job, number = _Job(), next(self._numbers)
        progress = self._make_progress_key(key)
        self.handle.delete(key)  # what an earlier job of the same name left, cancelled too late to notice
        self.handle.delete(progress)

        def work() -> None:
            _STOP.set(job.stop)
            try:
                job_fn(key, progress, args, context)
            finally:
                job.ended = time.monotonic()
                if job.stop.is_set():
                    self.handle.delete(key)
                    self.handle.delete(progress)

        with self._lock:
            old = [n for n, j in self._jobs.items() if j.ended is not None and time.monotonic() - j.ended > ABANDONED]
            for n in old:
                del self._jobs[n]
            self._jobs[number] = job
        threading.Thread(target=work, name=f"job-{number}", daemon=True).start()
        return number

    def job_running(self, job: Any) -> bool:
        """Tell whether a job is at work, or its result waits to be fetched."""
        with self._lock:
            found = self._jobs.get(int(job or 0))
        return found is not None and not found.stop.is_set()

    def terminate_job(self, job: Any) -> None:
        """Ask a job to end; called for finished ones too, when their result was fetched."""
        with self._lock:
            found = self._jobs.pop(int(job or 0), None)
        if found is not None:
            found.stop.set()

    def terminate_unhealthy_job(self, job: Any) -> bool:
        """Return False: a thread is either at work or over."""
        return False

    @property
    def at_work(self) -> int:
        """How many jobs are at work."""
        with self._lock:
            return sum(job.ended is None for job in self._jobs.values())
