"""BertViz's model view and head view on the same model and text.

BertViz needs eager attention, and its page holds every weight as text. The page fetches three libraries from a content
network; here they come from a folder, so that the network is not measured.
"""

from __future__ import annotations

import multiprocessing
import re
import resource
import time
from pathlib import Path
from typing import Any

from playwright import sync_api

from benchmarks.app_parts.browser import ROOM, largest_renderer, told
from tests.chromium import chromium

LIBRARIES = {"require": "require.min.js", "d3": "d3.min.js", "jquery": "jquery.min.js"}
PATIENCE = 180
"""Seconds after which a page that does not show is given up."""

DRAWN = {
    "head": "() => document.querySelectorAll('svg line').length > 0",
    "model": "() => document.querySelectorAll('svg line, svg path').length > 0",
}


def measure(view: str, length: int, ids: list[int], libraries: Path, folder: Path, memory: int) -> dict[str, Any]:
    """Make a page in a process of its own, then load it."""
    page = folder / f"bertviz-{view}-{length}.html"
    context = multiprocessing.get_context("spawn")
    inbox, outbox = context.Pipe(duplex=False)
    process = context.Process(target=_make, args=(view, ids, page, memory, outbox))
    process.start()
    outbox.close()
    try:
        found: dict[str, Any] = inbox.recv()
    except EOFError:
        found = {"failed": "its process was killed"}
    process.join()
    found |= {"tool": f"BertViz {view} view", "tokens": length}
    return found if "failed" in found else found | _load(view, page, libraries)


def _make(view: str, ids: list[int], page: Path, memory: int, outbox: Any) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory, resource.RLIM_INFINITY))
    try:
        import bertviz
        import torch
        import transformers

        from headscope.models.carried import ensure

        torch.set_num_threads(2)
        source = ensure("smollm2-135m")
        model = transformers.AutoModelForCausalLM.from_pretrained(source, attn_implementation="eager").eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        start = time.perf_counter()
        with torch.no_grad():
            attention = model(torch.tensor([ids]), output_attentions=True).attentions
        tokens = tokenizer.convert_ids_to_tokens(ids)
        make = bertviz.model_view if view == "model" else bertviz.head_view
        text = make(attention, tokens, html_action="return").data
        page.write_text(f"<!doctype html><meta charset=utf-8><body>{text}</body>", encoding="utf-8")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        outbox.send({"make_s": time.perf_counter() - start, "page_bytes": page.stat().st_size, "server_bytes": peak})
    except Exception as error:  # noqa: BLE001 - whatever stops it is what is reported
        outbox.send({"failed": told(error)})


def _load(view: str, path: Path, libraries: Path) -> dict[str, Any]:
    with chromium(ROOM) as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        crashed: list[str] = []
        page.on("crash", lambda: crashed.append("the browser's page crashed"))
        page.on("pageerror", lambda error: crashed.append(told(error)))

        def library(route: Any) -> None:
            name = next((file for word, file in LIBRARIES.items() if word in route.request.url), None)
            route.fulfill(path=libraries / name, content_type="text/javascript") if name else route.abort()

        page.route(re.compile(r"^https://"), library)
        start = time.perf_counter()
        try:
            page.goto(path.resolve().as_uri(), timeout=PATIENCE * 1000)
            page.wait_for_function(DRAWN[view], timeout=PATIENCE * 1000)
        except sync_api.TimeoutError:
            return {"failed": crashed[0] if crashed else f"not drawn after {PATIENCE} s"}
        except sync_api.Error as error:
            return {"failed": crashed[0] if crashed else told(error)}
        return {
            "load_s": time.perf_counter() - start,
            "renderer_bytes": largest_renderer(),
            "elements": page.evaluate("document.querySelectorAll('*').length"),
            "errors": crashed,
        }
