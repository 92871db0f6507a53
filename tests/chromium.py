"""Chromium, where there is one, and how everything here opens it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NO_CHROMIUM = "needs Chromium: run `make browser` as root, or `sudo apt-get install chromium`"

_QUIET = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")


@contextmanager
def chromium(*options: str) -> Iterator[Browser]:
    """Yield a browser without a window and without anything stored."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as session:
        opened = session.chromium.launch(
            executable_path=CHROMIUM, args=[*_QUIET, "--disable-component-update", *options]
        )
        try:
            yield opened
        finally:
            opened.close()
