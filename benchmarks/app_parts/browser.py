"""A Chromium that is watched: how long until something shows, and how much memory its processes take."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
from playwright.sync_api import Browser, sync_playwright

SIZE = {"width": 1280, "height": 800}
NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Yield a browser without anything stored."""
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        raise SystemExit("No Chromium found: sudo apt-get install chromium")
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=path,
            args=["--no-sandbox", "--enable-precise-memory-info", "--js-flags=--max-old-space-size=4096"],
        )
        try:
            yield browser
        finally:
            browser.close()


def largest_renderer() -> int:
    """Return the resident memory of the largest renderer process, in bytes."""
    sizes = [0]
    for process in psutil.process_iter(["cmdline"]):
        if "--type=renderer" in " ".join(process.info["cmdline"] or ()):
            try:
                sizes.append(process.memory_info().rss)
            except psutil.NoSuchProcess:
                continue
    return max(sizes)


def median(values: list[float]) -> float:
    """Return the middle value."""
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def summary(values: list[float]) -> dict[str, float | int]:
    """Return the median, the 95th percentile and the largest of some milliseconds."""
    ordered = sorted(values)
    at = min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))
    return {"n": len(ordered), "median": median(ordered), "p95": ordered[at], "max": ordered[-1]}


def told(error: Any) -> str:
    """Return the first line of what went wrong, or its kind if it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
