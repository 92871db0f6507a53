"""Runs inside files in a real browser: the oracle's numbers, nothing loaded, and frames as notebooks make them."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import headscope as hs
from headscope.attention.edits import AttentionEdit, Group, KnockOut, LogitEdit, Scale
from headscope.models.tiny import tiny
from headscope.report.view import capture
from headscope.report.view.html import frame, view_page
from headscope.report.view.widget import show_view

pytestmark = pytest.mark.slow

LONG = 1100
"""Tokens of a pattern whose pyramid has levels that are pooled from each other."""
HEADS = ((0, 1), (1, 0))
SPAN = Group("span", ("span",))
CASES: dict[str, tuple[str, tuple[Any, ...]]] = {
    "llama": ("llama", ()),
    "gemma2, soft-cap and window": ("gemma2", ()),
    "gpt_oss, sinks and window": ("gpt_oss", ()),
    "gpt2": ("gpt2", ()),
    "bert, both ways": ("bert", ()),
    "t5, biases by distance": ("t5", ()),
    "llama, weights edited": ("llama", (AttentionEdit(HEADS, (SPAN,), Scale((2.0,), rest=0.1), queries="tail"),)),
    "gemma2, logits edited": ("gemma2", (LogitEdit(HEADS, temperature=1.7, bias=0.8, regions=("span",)),)),
    "gpt2, keys hidden": ("gpt2", (KnockOut(HEADS, ("span",)),)),
}
LIMITS = {"gpt2": {"n_positions": 2048}, "t5": {}}
SOURCE = """
window.source = () => {
  const data = JSON.parse(document.getElementById("run").textContent);
  data.text = (name) => document.getElementById(`block-${name}`).textContent;
  return Headscope.embedded(data);
};
"""


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open a page that fails the test on a complaint or a request."""
    contexts, trouble = [], []

    def open_page(path: Path | str, **options: Any) -> Any:
        contexts.append(browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True, **options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        address = path.as_uri() if isinstance(path, Path) else path
        page.on("request", lambda asked: trouble.append(asked.url) if not allowed(asked.url, address) else None)
        page.goto(address)
        return page

    def allowed(asked: str, address: str) -> bool:
        return asked.split("#")[0] == address.split("#")[0] or asked.startswith(("data:", "blob:", "about:"))

    yield open_page
    for context in contexts:
        context.close()
    assert trouble == []


def ready(page: Any) -> Any:
    page.wait_for_selector(".hs-viewer[data-state=ready]", timeout=60_000)
    page.wait_for_selector(".hs-panel[data-state=loading]", state="detached", timeout=60_000)
    return page


def make_view(case: str, length: int = LONG) -> Any:
    family, edits = CASES[case]
    model = hs.load(tiny(family, **LIMITS.get(family, {"max_position_embeddings": 2048})), validate=False)
    ids = torch.randint(5, 90, (length,), generator=torch.Generator().manual_seed(1)).tolist()
    prompt = model.prompt_from_ids(ids, {"span": range(4, 9), "tail": range(length // 2, length)})
    return capture.look(model, prompt, edits=edits)


@pytest.mark.parametrize("case", CASES)
def test_numbers_in_the_page_are_the_oracles(case: str, opened: Any, tmp_path: Path) -> None:
    view = make_view(case)
    heads = [(0, 1), (0, 3), (1, 0)]
    path = tmp_path / "view.html"
    path.write_text(view_page(view, heads=heads), encoding="utf-8")
    page = ready(opened(path))
    page.evaluate(SOURCE)

    def ask(call: str) -> np.ndarray[Any, Any]:
        return np.array(page.evaluate(f"async () => Array.from(await source().{call})"), dtype=np.float64)

    def close(found: Any, exact: Any) -> None:
        found, exact = np.asarray(found, dtype=np.float64), np.asarray(exact, dtype=np.float64)
        assert found.shape == exact.shape
        assert np.abs(found - exact).max() < 1e-5

    for layer, head in heads:
        for at in (0, 7, 300, LONG - 1):
            close(ask(f"row({layer}, {head}, {at})"), view.row(layer, head, at))
            close(ask(f"column({layer}, {head}, {at})"), view.column(layer, head, at))
        for level, row, col in [(0, 0, 0), (0, 2, 1), (0, 4, 4), (1, 1, 0), (1, 2, 2), (2, 0, 0), (2, 1, 1), (3, 0, 0)]:
            for reduce in ("mean", "max"):
                asked = f"{{layer: {layer}, head: {head}, level: {level}, row: {row}, col: {col}, reduce: '{reduce}'}}"
                found = page.evaluate(
                    f"async () => {{ const t = await source().tile({asked}); return [t.rows, t.cols, [...t.data]]; }}"
                )
                close(np.reshape(found[2], found[:2]), view.tile(layer, head, level, row, col, reduce))
        for query, key in [(600, 5), (600, 600), (600, 300), (9, 600), (3, 0)]:
            found, exact = page.evaluate(f"() => source().neuron({layer}, {head}, {query}, {key})"), None
            exact = view.neuron(layer, head, query, key)
            assert found.keys() == exact.keys()
            for name in ("q", "k", "product"):
                close(found[name], exact[name])
            for name in ("scale", "raw", "bias", "lse", "weight"):
                assert found[name] == pytest.approx(exact[name], abs=2e-5), name
            for name in ("rotary", "visible", "softcap"):
                assert found[name] == exact[name], name
            assert (found["note"] is None) == (exact["note"] is None)
            assert (found["edited"] is None) == (exact["edited"] is None)
            if exact["edited"] is not None:
                assert found["edited"] == pytest.approx(exact["edited"], abs=1e-5)
            if exact["visible"]:
                assert found["logit"] == pytest.approx(exact["logit"], abs=2e-5)
    for stat in view.meta()["stats"]:
        assert np.allclose(ask(f"stat('{stat['name']}')"), view.stat(stat["name"]).reshape(-1), equal_nan=True)
    close(ask("thumbs(1)").round(3), view.thumbs(1).reshape(-1).astype(np.float16).astype(np.float64).round(3))


def test_coarser_levels_come_from_finer_ones(opened: Any, tmp_path: Path) -> None:
    view = make_view("llama", 2048)
    view_levels = view.meta()["levels"]
    assert view_levels == 4
    path = tmp_path / "view.html"
    path.write_text(view_page(view, heads=[(1, 2)]), encoding="utf-8")
    page = ready(opened(path))
    page.evaluate(SOURCE)
    # A pyramid of small tiles has more levels: the same code, further up.
    for level in range(3, 6):
        for reduce in ("mean", "max"):
            found = page.evaluate(
                f"""async () => {{
                    const made = source();
                    Object.assign(made.data.meta, {{tile: 32, levels: 7}});
                    const asked = {{layer: 1, head: 2, level: {level}, row: 0, col: 0, reduce: '{reduce}'}};
                    const t = await made.tile(asked);
                    return [t.rows, t.cols, [...t.data]];
                }}"""
            )
            side = min(2048, 32 << level)
            whole = view._store.tile(
                1, 2, rows=range(side), cols=range(side), pool=(1 << level, 1 << level), reduce=reduce
            )
            assert np.abs(np.reshape(found[2], found[:2]) - whole.numpy()).max() < 1e-5


def test_what_is_drawn_is_what_was_asked(opened: Any, tmp_path: Path) -> None:
    view = make_view("llama")
    path = tmp_path / "view.html"
    path.write_text(view_page(view), encoding="utf-8")
    page = ready(opened(f"{path.as_uri()}#head=1.2&q=700&k=20"))
    shown = page.evaluate("Headscope.viewer.debug()")
    assert (shown["state"]["layer"], shown["state"]["head"], shown["query"], shown["key"]) == (1, 2, 700, 20)
    assert shown["neuron"]["weight"] == pytest.approx(view.neuron(1, 2, 700, 20)["weight"], abs=1e-5)
    best, weight = shown["text"]["top"][0]
    row = view.row(1, 2, 700)
    assert best == row.argmax()
    assert weight == pytest.approx(row.max(), abs=1e-5)
    page.evaluate("Headscope.viewer.setState({layer: 0, head: 3, query: 12})")
    page.wait_for_timeout(300)
    assert "head=0.3" in page.evaluate("location.hash")
    assert "q=12" in page.evaluate("location.hash")


def test_a_head_that_is_not_in_the_file_says_how_to_get_it(opened: Any, tmp_path: Path) -> None:
    path = tmp_path / "view.html"
    path.write_text(view_page(make_view("llama", 200), heads=[(1, 2)]), encoding="utf-8")
    page = ready(opened(path))
    assert page.evaluate("Headscope.viewer.getState().head") == 2
    page.evaluate("Headscope.viewer.setState({layer: 0, head: 3})")
    page.wait_for_selector(".hs-panel-head[data-state=error]")
    told = page.locator(".hs-panel-head .hs-trouble").inner_text()
    assert "model.view(prompt, heads=[(0, 3)])" in told
    assert page.locator(".hs-panel-head .hs-trouble button").count() == 0
    page.evaluate("Headscope.viewer.setState({layer: 1, head: 2})")
    page.wait_for_selector(".hs-panel-head[data-state=ready]")
    assert page.locator(".hs-panel-head .hs-trouble").is_hidden()


def test_an_old_browser_and_a_cut_file_are_told(opened: Any, tmp_path: Path) -> None:
    text = view_page(make_view("llama", 200))
    path = tmp_path / "view.html"
    path.write_text(text, encoding="utf-8")
    page = ready(opened(path))
    page.evaluate(SOURCE)
    told = page.evaluate(
        """async () => {
            const kept = window.DecompressionStream;
            delete window.DecompressionStream;
            try { await source().row(0, 0, 5); }
            catch (error) { return error.message; }
            finally { window.DecompressionStream = kept; }
        }"""
    )
    assert "browser is too old" in told
    told = page.evaluate(
        """async () => {
            for (const block of document.querySelectorAll("[id^=block-]")) block.remove();
            const data = JSON.parse(document.getElementById("run").textContent);
            data.text = (name) => null;
            try { await Headscope.embedded(data).row(0, 0, 5); } catch (error) { return error.message; }
        }"""
    )
    assert "incomplete" in told


def test_the_page_stays_alive_while_it_computes(opened: Any, tmp_path: Path) -> None:
    path = tmp_path / "view.html"
    path.write_text(view_page(make_view("llama", 2048), heads=[(0, 0)]), encoding="utf-8")
    page = ready(opened(path))
    page.evaluate(SOURCE)
    longest, frames = page.evaluate(
        """async () => {
            let [last, longest, frames, on] = [performance.now(), 0, 0, true];
            const tick = () => {
                const now = performance.now();
                [longest, last] = [Math.max(longest, now - last), now];
                frames++;
                if (on) setTimeout(tick);
            };
            setTimeout(tick);
            await source().tile({layer: 0, head: 0, level: 3, row: 0, col: 0, reduce: "mean"});
            on = false;
            return [longest, frames];
        }"""
    )
    assert frames > 3
    assert longest < 250


def test_work_that_nobody_waits_for_ends(opened: Any, tmp_path: Path) -> None:
    path = tmp_path / "view.html"
    path.write_text(view_page(make_view("llama", 2048), heads=[(0, 0)]), encoding="utf-8")
    page = ready(opened(path))
    page.evaluate(SOURCE)
    name = page.evaluate(
        """async () => {
            const stop = new AbortController();
            const work = source().tile({layer: 0, head: 0, level: 3, row: 0, col: 0, reduce: "mean"}, stop.signal);
            setTimeout(() => stop.abort());
            try { await work; return "done"; } catch (error) { return error.name; }
        }"""
    )
    assert name == "AbortError"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder and where it is served: pages of a notebook have an origin, files do not."""
    folder = tmp_path_factory.mktemp("served")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


# What the pages that hold outputs forbid: nothing, as JupyterLab and nbconvert do, or as the webview of VS Code does.
POLICIES = {
    "jupyter": "",
    "vs code": (
        "default-src 'none'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' https: http: data:; font-src https: http: data:; connect-src https:; child-src https: data:;"
    ),
}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_cell_of_a_notebook_shows_it_and_saves_files(policy: str, opened: Any, served: tuple[Path, str]) -> None:
    folder, base = served
    view = make_view("llama", 200)
    shown: Any = show_view(view)
    meta = f'<meta http-equiv="Content-Security-Policy" content="{POLICIES[policy]}">' if POLICIES[policy] else ""
    cells = "".join(f'<div class="output">{part}</div>' for part in (shown._repr_html_(), shown._repr_html_()))
    (folder / "notebook.html").write_text(
        f'<!doctype html><link rel="icon" href="data:,">{meta}<body>{cells}</body>', encoding="utf-8"
    )
    page = opened(f"{base}/notebook.html")
    for frame_ in page.frames[1:]:
        frame_.wait_for_selector(".hs-viewer[data-state=ready]", timeout=60_000)
        frame_.wait_for_selector(".hs-panel[data-state=loading]", state="detached", timeout=60_000)
    assert len(page.frames) == 3
    inside = page.frames[1]
    layer, head = view_best = tuple(inside.evaluate("Object.values(Headscope.viewer.getState()).slice(0, 2)"))
    top = inside.evaluate("Headscope.viewer.debug().text.top[0]")
    row = view.row(layer, head, view.length - 1)
    assert view_best is not None
    assert top[1] == pytest.approx(row.max(), abs=1e-5)
    # Frames share nothing with the notebook, nor with each other.
    assert inside.evaluate("window.origin") == "null"
    inside.evaluate("Headscope.viewer.setState({layer: 0, head: 1})")
    assert page.frames[2].evaluate("Headscope.viewer.getState().head") == head
    inside.wait_for_selector(".hs-panel[data-state=loading]", state="detached")
    inside.locator(".hs-panel-head .hs-menu summary").click()
    with page.expect_download() as waiting:
        inside.get_by_role("button", name="CSV").first.click()
    saved = Path(waiting.value.path()).read_text(encoding="utf-8")
    assert len(saved.splitlines()) > 10


def test_a_ranking_in_a_frame_sorts_finds_and_follows_the_map(make: Any, opened: Any, served: tuple[Path, str]) -> None:
    folder, base = served
    scores = make()
    page_text = scores.show()._repr_html_()
    (folder / "heads.html").write_text(f'<!doctype html><link rel="icon" href="data:,">{page_text}', encoding="utf-8")
    page = opened(f"{base}/heads.html")
    inside = page.frames[1]
    inside.wait_for_selector("table")
    layer, head = scores.top(1)[0]
    inside.locator(f'.map rect[data-head="L{layer}H{head}"]').click()
    assert inside.locator("tbody tr:visible").count() == 1
    assert inside.locator("tbody tr:visible th").inner_text() == f"L{layer}H{head}"
    inside.get_by_role("searchbox").fill("")
    inside.get_by_role("button", name="n", exact=True).click()
    inside.get_by_role("button", name="score", exact=True).click()
    values = [
        float(v)
        for v in inside.evaluate(
            "[...document.querySelectorAll('tbody td.n[data-v]:nth-child(3)')].map((c) => c.dataset.v)"
        )
    ]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("address", ["", "#head=0.3"], ids=["a head that is held", "one that is not"])
def test_nothing_serious_is_in_the_way_of_anyone(address: str, make: Any, browser: Any, tmp_path: Path) -> None:
    axe = Path(pytest.importorskip("axe_playwright_python.base").__file__).parent
    script = next(axe.rglob("axe.min.js")).read_text(encoding="utf-8")
    path = tmp_path / "view.html"
    path.write_text(view_page(make_view("llama", 200), heads=[(1, 2)]), encoding="utf-8")
    for scheme in ("light", "dark"):
        for url in (f"{path.as_uri()}{address}", make().show().save(tmp_path / "heads.html").as_uri()):
            context = browser.new_context(viewport={"width": 1140, "height": 640}, color_scheme=scheme, bypass_csp=True)
            page = context.new_page()
            page.goto(url)
            page.wait_for_timeout(1000)
            page.evaluate(script)
            found = page.evaluate("axe.run()")["violations"]
            assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []
            context.close()


def test_themes(opened: Any, tmp_path: Path) -> None:
    view = make_view("llama", 100)
    grounds = {}
    for theme in ("auto", "light", "dark"):
        path = tmp_path / f"{theme}.html"
        path.write_text(view_page(view, theme=theme), encoding="utf-8")
        for scheme in ("light", "dark"):
            page = ready(opened(path, color_scheme=scheme))
            grounds[theme, scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert grounds["auto", "light"] == grounds["light", "dark"] == grounds["light", "light"]
    assert grounds["auto", "dark"] == grounds["dark", "light"] == grounds["dark", "dark"]
    assert grounds["auto", "light"] != grounds["auto", "dark"]
    assert "sandbox" in frame("", 200, "t")
