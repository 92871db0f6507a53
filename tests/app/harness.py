"""The application as its users meet it: a server that is really started, a browser that hears every complaint."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

SCREENSHOTS = Path("build/screenshots")
START = 180.0
"""Seconds in which a server with a real model has to answer, on a machine with busy neighbours."""


@dataclass
class Started:
    """A server in a process of its own."""

    process: subprocess.Popen[str]
    workspace: Path
    lines: list[str] = field(default_factory=list)
    url: str = ""

    @property
    def log(self) -> str:
        """All that the server has printed so far."""
        return "".join(self.lines)


@contextmanager
def start(workspace: Path, *options: str, model: str = "smollm2-135m", cache: Path | None = None) -> Iterator[Started]:
    """Start the real command on a free port; at the end ask it to end, and fail if it printed a traceback."""
    command = [sys.executable, "-m", "headscope", "app", "--port", "0", "--workspace", str(workspace)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}
    environment.pop("HEADSCOPE_TOKEN", None)
    if cache is not None:
        environment["HEADSCOPE_CACHE"] = str(cache)
    process = subprocess.Popen(
        [*command, "--model", model, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    started = Started(process, workspace)
    here = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            started.lines.append(line)
            if not started.url and (found := re.search(r"http://\S+", line)):
                started.url = found.group()
                here.set()
        here.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        assert here.wait(START), f"the server did not start in {START:.0f} s:\n{started.log}"
        assert started.url, f"the server ended at once:\n{started.log}"
        yield started
    finally:
        process.terminate()  # and not SIGINT: what a shell starts in the background is deaf to it
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(5)
    assert process.returncode == 0, f"the server did not end cleanly ({process.returncode}):\n{started.log}"
    assert "Traceback" not in started.log, started.log


class Watch:
    """All that goes wrong in a page: errors, failed requests, requests to anybody else, breaches of the policy.

    A test that provokes something says so with ``expect(pattern)``: it must happen, and only it may.
    """

    def __init__(self, page: Any) -> None:
        self.trouble: list[str] = []
        self._expected: list[str] = []
        self._origins: set[str] = set()
        page.add_init_script(
            "addEventListener('securitypolicyviolation', (e) => console.error("
            "'policy: ' + e.violatedDirective + ' ' + e.blockedURI + ' ' + e.sourceFile + ':' + e.lineNumber))"
        )
        page.on("console", lambda said: self._note(f"console: {said.text}") if said.type == "error" else None)
        page.on("pageerror", lambda error: self._note(f"script: {error}"))
        page.on("requestfailed", self._failed)
        page.on("response", lambda got: self._note(f"status {got.status}: {got.url}") if got.status >= 400 else None)
        page.on("request", self._asked)

    def expect(self, pattern: str) -> None:
        """Let trouble that matches a regular expression pass; it has to happen."""
        self._expected.append(pattern)

    def _note(self, text: str) -> None:
        self.trouble.append(text)

    def _failed(self, request: Any) -> None:
        # A page that is left, or a viewer that moved on, drops what it asked for.
        if "ERR_ABORTED" not in str(request.failure):
            self._note(f"failed: {request.url} ({request.failure})")

    def _asked(self, request: Any) -> None:
        parts = urlsplit(request.url)
        if parts.scheme in ("data", "blob", "about"):
            return
        if request.is_navigation_request() and parts.hostname in ("127.0.0.1", "localhost"):
            self._origins.add(parts.netloc)
        elif parts.netloc not in self._origins:
            self._note(f"other origin: {request.url}")

    def check(self) -> None:
        """Fail if anything happened that was not expected, or the other way round."""
        left = [text for text in self.trouble if not any(re.search(pattern, text) for pattern in self._expected)]
        missing = [p for p in self._expected if not any(re.search(p, text) for text in self.trouble)]
        assert not left, "trouble in the page:\n" + "\n".join(left)
        assert not missing, f"expected, but did not happen: {missing}"


def wait_for(condition: Any, seconds: float = 10.0) -> None:
    """Wait until a function returns something true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {condition}"
        time.sleep(0.02)
