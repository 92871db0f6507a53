"""Twenty users at once: no error, bounded memory, nothing left at work. Longer: ``python -m tests.app.load``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.app.harness import start
from tests.app.load import KINDS, press

pytestmark = pytest.mark.slow

OVERHEAD = 1_000_000_000
"""Bytes beside the runs that are kept: what a run needs while it is made, answers under way, and freed memory that the
allocator keeps."""


def test_twenty_users_see_no_error_and_memory_is_bounded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with start(tmp_path, "--cache-gb", "0.3") as server:
        report = press(server.url, server.process.pid, users=20, seconds=15, words=700)
    with capsys.disabled():
        sys.stdout.write("\n" + report.table() + "\n")
    assert report.errors == []
    assert report.jobs_left == 0
    assert max(report.memory) < report.before + report.limit + OVERHEAD
    assert sum(map(len, report.seconds.values())) > 100
    assert len([kind for kind in KINDS if report.seconds[kind]]) > 7
