"""Take the pictures of docs/app.md: every page of the application, on real runs of SmolLM2-135M.

python scripts/screenshots.py              # all of them, into docs/img; ten minutes
python scripts/screenshots.py explore      # those whose names begin so
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from playwright.sync_api import Page

from headscope.app import tour
from headscope.app.runs import Recipe
from headscope.app.workspace import Workspace
from tests.app.harness import start
from tests.chromium import CHROMIUM, NO_CHROMIUM, chromium

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "img"
PATIENCE = 900_000
READY = "[data-panel={}][data-state=ready]"
RANK = ("retrieval", "sinks", "induction", "--n", "24", "--lengths", "256,512", "--length", "256", "--no-verify")

RANKED = ("home", "rank", "compare")
"""Pictures that take rankings."""

INSTRUCTION = "Answer in French."
LETTER = f"What is the colour of the sky on a clear day, and why? {INSTRUCTION}"


def main() -> None:
    """Prepare a workspace, start the real command on it, and walk."""
    wanted = sys.argv[1:] or [""]
    if CHROMIUM is None:
        raise SystemExit(NO_CHROMIUM)
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        workspace = Path(name) / "runs"
        runs = prepare(workspace, rank=any(title.startswith(w) for w in wanted for title in RANKED))
        with start(workspace) as server, chromium() as browser:
            for title, (scheme, size, walk) in PICTURES.items():
                if not any(title.startswith(w) for w in wanted):
                    continue
                context = browser.new_context(color_scheme=scheme, viewport={"width": size[0], "height": size[1]})
                page = context.new_page()
                page.set_default_timeout(PATIENCE)
                walk(page, server.url.rstrip("/"), runs)
                page.wait_for_timeout(1500)
                page.screenshot(path=IMAGES / f"app-{title}.png")
                sys.stderr.write(f"app-{title}.png\n")
                context.close()


def prepare(workspace: Path, *, rank: bool) -> dict[str, str]:
    """Fill a workspace with recipes and rankings; return the names of the runs."""
    import headscope as hs
    from headscope.data import needles

    model = hs.load("smollm2-135m", validate=False)
    place = Workspace(workspace)
    whole = needles(model, n=1, lengths=(8000,), seed=3)[0].prompt(model)
    recipes = {
        "tour": tour.recipe("smollm2-135m"),
        "whole": Recipe("smollm2-135m", whole.text),
        "letter": Recipe("smollm2-135m", LETTER, chat=True, regions=(("instruction", *span(LETTER, INSTRUCTION)),)),
    }
    for recipe in recipes.values():
        recipe.save(place)
    if rank:
        command = [sys.executable, "-m", "headscope", "rank", *RANK, "--out", str(workspace / "smollm2")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return {title: recipe.id for title, recipe in recipes.items()}


def span(text: str, part: str) -> tuple[int, int]:
    """Return where a part of a text begins and ends."""
    return text.index(part), text.index(part) + len(part)


def home(page: Page, url: str, runs: dict[str, str]) -> None:
    """Open the first page."""
    page.goto(url)
    page.wait_for_selector("#home-runs")


def prompt(page: Page, url: str, runs: dict[str, str]) -> None:
    """Open the form of a prompt that was run."""
    page.goto(f"{url}/explore?run={runs['tour']}")
    page.wait_for_selector(READY.format("head"))
    page.click("#explore-change")


def explored(run: str, query: str) -> Callable[[Page, str, dict[str, str]], None]:
    """Return a walk to a view of a run."""

    def walk(page: Page, url: str, runs: dict[str, str]) -> None:
        page.goto(f"{url}/explore?run={runs[run]}&{query}")
        for panel in ("model", "head", "text", "neuron"):
            page.wait_for_selector(READY.format(panel))

    return walk


def rank(page: Page, url: str, runs: dict[str, str]) -> None:
    """Open the retrieval heads and pick three."""
    page.goto(f"{url}/rank?heads=18.6,23.2,17.3")
    page.click(".ranking-item:has-text('retrieval')")
    page.wait_for_selector(".ag-row")


def compare(page: Page, url: str, runs: dict[str, str]) -> None:
    """Put the three rankings beside each other."""
    page.goto(f"{url}/rank")
    page.wait_for_selector(".ranking-item")
    files = page.eval_on_selector_all(".ranking-item", "(all) => all.map((one) => one.title)")
    page.goto(f"{url}/rank?file={files[0]}&with={','.join(files[1:])}&tab=compare")
    page.wait_for_selector("#rank-compared .js-plotly-plot")


def steer(page: Page, url: str, runs: dict[str, str]) -> None:
    """Run the first example."""
    page.goto(f"{url}/steer?example=instruction")
    page.click("#steer-go")
    page.wait_for_selector(".tokens")


def sweep(page: Page, url: str, runs: dict[str, str]) -> None:
    """Sweep the strength of an example on its prompt."""
    page.goto(f"{url}/steer?example=sink&tab=sweep")
    page.click("#steer-sweep-go")
    page.wait_for_selector("#steer-swept-found .js-plotly-plot, .js-plotly-plot")


PICTURES: dict[str, tuple[Any, tuple[int, int], Callable[[Page, str, dict[str, str]], None]]] = {
    "prompt": ("light", (1280, 800), prompt),
    "explore": ("light", (1280, 800), explored("tour", "head=18.6")),
    "explore-dark": ("dark", (1920, 1080), explored("whole", "head=18.6")),
    "rank": ("light", (1280, 800), rank),
    "compare": ("light", (1280, 800), compare),
    "steer": ("light", (1280, 800), steer),
    "sweep": ("dark", (1280, 800), sweep),
    "home": ("light", (1280, 800), home),
}

if __name__ == "__main__":
    main()
