"""Servers and browsers for tests of the application.

``server``: the real command on SmolLM2-135M (slow). ``tiny``: an application in this process on a model of six layers.
``page``: a Chromium page that fails its test at the end if it complained of anything; ``new_page`` makes more of them.
``shoot(page, name)`` keeps a screenshot, ``axe(page)`` looks for what keeps people out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.app.harness import SCREENSHOTS, Started, Watch, start

CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """``headscope app`` on SmolLM2-135M, in a process and a workspace of its own."""
    from headscope.models.carried import fetch

    fetch("smollm2-135m")
    with start(tmp_path_factory.mktemp("workspace"), "--cache-gb", "3") as started:
        yield started


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 6 layers × 6 heads, 2048 positions, whose heads are known, with tokenizer and chat template."""
    from headscope.data.organisms import organism

    grown = organism("llama", 0)
    grown.tokenizer.chat_template = CHATML
    return grown.save(tmp_path_factory.mktemp("models") / "organism")


@dataclass
class Tiny:
    """An application of this process, and what is inside it."""

    app: Any
    desk: Any
    model: str
    url: str

    @property
    def client(self) -> Any:
        """A client that needs no network."""
        return self.app.server.test_client()


@pytest.fixture
def make_app(tiny_folder: Path, tmp_path: Path) -> Callable[..., tuple[Any, Any]]:
    """Make an application (Dash, desk) on the tiny model, with settings of the test's own; it does not listen."""
    from headscope.app.server import create
    from headscope.app.settings import Settings

    def make(**settings: Any) -> tuple[Any, Any]:
        return create(Settings(**{"model": str(tiny_folder), "workspace": tmp_path / "workspace", **settings}))

    return make


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    """An application on the tiny model that listens on a free port, in a thread of this process."""
    from headscope.app.server import Server, create
    from headscope.app.settings import Settings

    settings = Settings(
        model=str(tiny_folder), workspace=tmp_path_factory.mktemp("workspace"), port=0, cache_bytes=1 << 28
    )
    app, desk = create(settings)
    listening = Server(app, settings)
    thread = threading.Thread(target=listening.run, daemon=True)
    thread.start()
    yield Tiny(app, desk, str(tiny_folder), listening.url)
    listening.close()
    thread.join(10)


@pytest.fixture(scope="session")
def tiny_server(tiny: Tiny) -> Tiny:
    """The tiny application, by the name that goes with ``server``."""
    return tiny


@pytest.fixture
def new_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open a page (width, height, scheme); its ``watch`` is checked when the test ends."""
    opened: list[Any] = []

    def make(width: int = 1280, height: int = 800, scheme: str = "light", **options: Any) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce", **options
        )
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.watch = Watch(page)
        opened.append(page)
        return page

    yield make
    for page in opened:
        page.context.close()
    for page in opened:
        page.watch.check()


@pytest.fixture
def page(new_page: Callable[..., Any]) -> Any:
    """A page of 1280 × 800, light."""
    return new_page()


@pytest.fixture(scope="session")
def shoot() -> Callable[..., Path]:
    """Keep a screenshot under build/screenshots."""

    def keep(page: Any, name: str, **options: Any) -> Path:
        path = SCREENSHOTS / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=path, **options)
        return path

    return keep


@pytest.fixture(scope="session")
def axe() -> Callable[..., None]:
    """Fail if axe-core finds a serious or critical violation in a page."""

    def look(page: Any, *, leave_out: tuple[str, ...] = ()) -> None:
        from axe_playwright_python.base import AXE_SCRIPT

        # Through the debugger: the policy of our pages lets no other script in.
        page.evaluate(f"() => {{ if (!window.axe) {{ {AXE_SCRIPT} }} }}")
        found = page.evaluate(
            """async (leave) => (await axe.run({exclude: leave.map((one) => [one])}, {
                resultTypes: ["violations"],
                runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
            })).violations.map((v) => ({id: v.id, impact: v.impact, help: v.help,
                nodes: v.nodes.slice(0, 5).map((n) => n.html.slice(0, 160) + " — " + n.failureSummary)}))""",
            list(leave_out),
        )
        serious = [one for one in found if one["impact"] in ("serious", "critical")]
        said = "\n".join(
            f"{one['id']} ({one['impact']}): {one['help']}\n  " + "\n  ".join(one["nodes"]) for one in serious
        )
        assert not serious, said

    return look
