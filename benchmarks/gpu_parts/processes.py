"""Processes that do the jobs: what one does in its own, and how it is asked from outside."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .cases import Job
from .checks import check, long
from .times import about, ceilings, timed, warm
from .variants import Refused

COMMAND = str(Path(__file__).resolve().parents[1] / "gpu.py")
DO: dict[str, Callable[[Job], Job]] = {
    "check": check, "warm": warm, "time": timed, "long": long, "ceilings": ceilings, "about": about,
}  # fmt: skip


def perform(job: Job) -> Job:
    """Do a job and return its results, or what went wrong."""
    try:
        return DO[job["do"]](job)
    except Refused as error:
        return {"refused": str(error)}
    except torch.OutOfMemoryError:
        return {"skipped": "does not fit in memory"}
    except Exception as error:  # noqa: BLE001 - whatever a kernel raises is a result here
        text = traceback.format_exc()
        return {"error": f"{type(error).__name__}: {error}"[:1500], "trace": text[-3000:], "broken": "CUDA" in text}


def serve() -> None:
    """Do the jobs that come in, a line each, and answer each with a line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not come between the answers
    for line in sys.stdin:
        answer = perform(json.loads(line))
        answers.write(json.dumps(plainly(answer)) + "\n")
        answers.flush()
        if answer.get("broken"):
            os._exit(1)  # after an error on the GPU this process is good for nothing
        gc.collect()
        if "skipped" in answer:
            torch.cuda.empty_cache()


def plainly(x: Any) -> Any:
    """JSON knows no infinity: it becomes null."""
    if isinstance(x, dict):
        return {key: plainly(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [plainly(value) for value in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


class Worker:
    """A process that does jobs; started when it is needed, and again after it failed or took too long."""

    def __init__(self, **environment: str) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1", **environment}

    def ask(self, job: Job, seconds: float) -> Job:
        start = time.monotonic()
        if self.process is None:
            self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
            self.process = subprocess.Popen(
                [sys.executable, COMMAND, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said,
                text=True, env=self.environment,
            )  # fmt: skip
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(max(seconds, 1), process.kill)
        timer.start()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
        took = time.monotonic() - start
        timer.cancel()
        if line:
            answer: Job = json.loads(line)
        elif took >= seconds:
            answer = {"late": True}
        else:
            self.said.seek(0)
            answer = {"error": f"the process ended with {process.wait()}", "trace": self.said.read()[-2000:]}
        if not line or answer.pop("broken", False):
            self.close()
        return {**job, **answer, "seconds": round(took, 2)}

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.said.close()
        self.process = None
