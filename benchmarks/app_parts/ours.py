"""The application: from the address of a run to its picture, and how fast it answers then."""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from playwright.sync_api import Page

from benchmarks.app_parts.browser import ROOM, SIZE, largest_renderer, summary
from tests.app.harness import start
from tests.chromium import chromium

READY = "[data-panel=head][data-state=ready]"
PATIENCE = 600_000
"""Milliseconds that the longest prompt may take."""

# Every one returns milliseconds, measured in the page.
HEAD = """async (number) => {
  const { active } = Headscope.parts, panel = document.querySelector("[data-panel=head]");
  const heads = active.meta.heads;
  const start = performance.now();
  active.store.set({ layer: number % heads.length, head: (7 * number) % heads[number % heads.length] });
  do await new Promise(requestAnimationFrame); while (panel.dataset.state !== "ready" || active.head.debug().pending);
  return performance.now() - start;
}"""
TILE = """async ([url]) => {
  const start = performance.now();
  const answer = await fetch(url, { cache: "no-store" });
  new Float32Array(await answer.arrayBuffer());
  if (!answer.ok) throw new Error(url);
  return performance.now() - start;
}"""
HOVER = """async ([x, y]) => {
  const stage = document.elementFromPoint(x, y);
  const start = performance.now();
  stage.dispatchEvent(new PointerEvent("pointermove", { clientX: x, clientY: y, bubbles: true, pointerType: "mouse" }));
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  const took = performance.now() - start;
  if (!Headscope.parts.active.head.debug().under) throw new Error("nothing is pointed at");
  return took;
}"""


def measure(runs: dict[int, str], workspace: Path) -> list[dict[str, Any]]:
    """Measure every run (tokens → name of its recipe in the workspace), each with a server of its own."""
    out = []
    for length, run in runs.items():
        with start(workspace) as server, chromium(ROOM) as browser:
            url, process = server.url.rstrip("/"), psutil.Process(server.process.pid)
            context = browser.new_context(viewport=SIZE)
            page = context.new_page()
            idle = process.memory_info().rss
            first = _until_ready(page, f"{url}/explore?run={run}")
            after = process.memory_info().rss
            again = _until_ready(page, f"{url}/explore?run={run}")
            paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
            found = {
                "tool": "headscope",
                "tokens": length,
                "first_view_s": first,
                "kept_view_s": again,
                "first_paint_ms": paint,
                "head_ms": summary([page.evaluate(HEAD, 3 + 11 * i) for i in range(24)]),
                "hover_ms": _hover(page),
                "tiles_ms": _tiles(page, f"{url}/api/run/{run}"),
                "page_bytes": page.evaluate(
                    "performance.getEntriesByType('resource').reduce((sum, e) => sum + e.decodedBodySize, 0)"
                ),
                "server_idle_bytes": idle,
                "server_run_bytes": after,
                "server_bytes": process.memory_info().rss,
                "renderer_bytes": largest_renderer(),
            }
            out.append(found)
            sys.stderr.write(json.dumps(found) + "\n")
    return out


def _until_ready(page: Page, url: str) -> float:
    start = time.perf_counter()
    page.goto(url)
    page.wait_for_selector(READY, timeout=PATIENCE)
    return time.perf_counter() - start


def _hover(page: Page) -> dict[str, float | int]:
    box = page.locator("[data-panel=head] .hs-stage").bounding_box()
    assert box is not None
    chance = random.Random(0)
    points = [
        [box["x"] + box["width"] * chance.uniform(0.2, 0.5), box["y"] + box["height"] * chance.uniform(0.5, 0.9)]
        for _ in range(60)
    ]
    return summary([page.evaluate(HOVER, point) for point in points])


def _tiles(page: Page, base: str) -> dict[int, dict[str, float | int]]:
    """Fetch tiles that nobody looked at before, some of each level, below the diagonal or on it."""
    meta = page.evaluate("Headscope.parts.active.meta")
    chance = random.Random(0)
    out = {}
    for level in range(meta["levels"]):
        count = -(-meta["length"] // (meta["tile"] << level))
        times = []
        for _ in range(16):
            layer = chance.randrange(meta["layers"])
            row = chance.randrange(count)
            place = (layer, chance.randrange(meta["heads"][layer]), level, row, chance.randrange(row + 1))
            url = f"{base}/tile/{'/'.join(map(str, place))}?reduce={chance.choice(['max', 'mean'])}"
            times.append(page.evaluate(TILE, [url]))
        out[level] = summary(times)
    return out
