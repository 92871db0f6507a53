"""Long work: Dash's background callbacks, on threads of this process.

Dash's own manager starts a process for each job. A model would have to be loaded again in every one, a run could not
stay in memory for the page that asked for it, and PyTorch's threads do not survive a fork. Here a job is a thread:
it shares the models, tells its progress through the same disk cache, and ends when it is cancelled, at the next
layer, token or sample.
"""

from __future__ import annotations

import itertools
import secrets
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from dash import DiskcacheManager
from diskcache import Cache

from headscope.errors import RequestError


class Cancelled(Exception):
    """The user cancelled the job that this thread works at, or closed its page."""


ABANDONED = 600.0
"""Seconds after which a job that no page asks about ends, and its result is forgotten. Browsers let pages in the
background ask once a minute."""

AT_ONCE = 24
"""Jobs at work; each has a thread, and memory of its own when its turn comes."""


@dataclass
class _Job:
    """``crowd`` is how many jobs were at work when this one came too many, otherwise None."""

    key: str
    crowd: int | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    asked: float = field(default_factory=time.monotonic)
    ended: float | None = None

    @property
    def abandoned(self) -> bool:
        return time.monotonic() - self.asked > ABANDONED


_JOB: ContextVar[_Job | None] = ContextVar("headscope_job", default=None)


def check() -> None:
    """Raise ``Cancelled`` if the job of this thread was cancelled or left alone; outside a job do nothing.

    Raises
    ------
    Cancelled
        If nobody waits for the job any more.
    RequestError
        If the server had too many jobs when this one came.
    """
    job = _JOB.get()
    if job is None:
        return
    if job.crowd is not None:
        raise RequestError(f"This server has {job.crowd} jobs at work already. Try again when some have ended.")
    if job.stop.is_set() or job.abandoned:
        raise Cancelled


class ThreadManager(DiskcacheManager):  # type: ignore[misc]
    """Runs background callbacks on threads.

    What they tell lies in a folder of its own for as long as the manager lives.
    """

    def __init__(self) -> None:
        folder = tempfile.mkdtemp(prefix="headscope-jobs-")
        super().__init__(Cache(folder, size_limit=256 << 20))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._jobs: dict[int, _Job] = {}
        self._numbers = itertools.count(1)
        self._at_work = 0
        self._lock = threading.Lock()

    def seal(self) -> None:
        """Take no more callbacks: Dash tells every manager of the process about the callbacks of every application."""
        self.managers.remove(self)

    def build_cache_key(self, *given: Any) -> str:
        """Return a name for a job's result. Equal work of two pages is two jobs: each page fetches its own."""
        return secrets.token_hex(16)

    def call_job_fn(self, key: str, job_fn: Callable[..., None], args: Any, context: Any) -> int:
        """Start a job and return its number."""
        self._forget()
        with self._lock:
            number, crowd = next(self._numbers), self._at_work
            job = self._jobs[number] = _Job(key, crowd if crowd >= AT_ONCE else None)
            self._at_work += 1

        def work() -> None:
            _JOB.set(job)
            try:
                job_fn(key, self._make_progress_key(key), args, context)
            finally:
                job.ended = time.monotonic()
                if job.stop.is_set():
                    self._clear(key)  # cancelled too late to notice
                with self._lock:
                    self._at_work -= 1

        threading.Thread(target=work, name=f"job-{number}", daemon=True).start()
        return number

    def _forget(self) -> None:
        """Forget results that nobody came for."""
        with self._lock:
            left = {n: job for n, job in self._jobs.items() if job.ended is not None and job.abandoned}
            for number in left:
                del self._jobs[number]
        for job in left.values():
            self._clear(job.key)

    def _clear(self, key: str) -> None:
        for name in (key, self._make_progress_key(key), self._make_set_props_key(key)):
            self.handle.delete(name)

    def job_running(self, job: Any) -> bool:
        """Tell whether a job is at work, or its result waits to be fetched. A page that waits asks all the time."""
        with self._lock:
            found = self._jobs.get(int(job or 0))
        if found is None or found.stop.is_set():
            return False
        found.asked = time.monotonic()
        return True

    def terminate_job(self, job: Any) -> None:
        """Ask a job to end; called for finished ones too, when their result was fetched."""
        with self._lock:
            found = self._jobs.pop(int(job or 0), None)
        if found is None:
            return
        found.stop.set()
        if found.ended is not None:  # it may have been cancelled between its end and the next question of its page
            self.handle.delete(found.key)

    def terminate_unhealthy_job(self, job: Any) -> bool:
        """Return False: a thread is either at work or over."""
        return False

    @property
    def at_work(self) -> int:
        """How many jobs are at work, wait for their turn, or have not noticed yet that they were cancelled."""
        with self._lock:
            return self._at_work
