"""Rank in a real browser: rankings opened, picked from, compared, made, saved and sent; by mouse and by keyboard."""

from __future__ import annotations

import csv
import io
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from headscope.probes.head_sets import HeadSet
from headscope.probes.scores import HeadScores
from tests.app.harness import wait_for
from tests.app.rankings import dose, put, ranking

pytestmark = pytest.mark.slow

SECONDS = 30.0
PLACE = """const size = plot._fullLayout, box = plot.getBoundingClientRect();
    const across = (x) => box.left + size.xaxis._offset + size.xaxis.l2p(x);
    const at = (x, y) => [across(x), box.top + size.yaxis._offset + size.yaxis.l2p(y)];
"""
"""Where a point of a plot is on the screen, in the browser's words."""


@pytest.fixture
def shelf(tiny: Any, request: pytest.FixtureRequest) -> str:
    """Put rankings into a folder of the test's own in the workspace of the tiny application; return its name."""
    folder = re.sub(r"\W+", "-", request.node.name)[:40].strip("-")
    root = tiny.desk.workspace.root
    put(root, f"{folder}/induction.parquet", ranking(dose=dose(), model=folder))
    put(root, f"{folder}/sinks.json", ranking("sinks", seed=5, best=((3, 2), (0, 1)), model=folder))
    return folder


def visit(page: Any, tiny: Any, file: str, **query: str) -> None:
    """Open a ranking and wait for its table."""
    rest = "".join(f"&{name}={quote(value)}" for name, value in query.items())
    page.goto(f"{tiny.url}rank?file={quote(file)}{rest}")
    page.wait_for_selector("#rank-table .ag-center-cols-container .ag-row", state="attached")


def address(page: Any) -> str:
    """Return the address as the browser has it now; the library learns of changes later."""
    found: str = page.evaluate("location.href")
    return found


def heads(page: Any) -> list[str]:
    """Return the picked heads as the address has them."""
    found = re.search(r"[?&]heads=([\d.,]+)", address(page))
    return found.group(1).split(",") if found else []


def names(page: Any) -> list[str]:
    """Return the heads of the rows that the table shows, from the top."""
    found: list[str] = page.evaluate(
        """() => [...document.querySelectorAll('#rank-table .ag-center-cols-container .ag-row')]
            .sort((a, b) => a.getAttribute('row-index') - b.getAttribute('row-index'))
            .map((row) => row.querySelector('.head-name').textContent)"""
    )
    return found


def cell_of_map(page: Any, layer: int, head: int) -> tuple[float, float]:
    """Return where a cell of the map is on the screen."""
    page.wait_for_selector("#rank-map .nsewdrag")
    found: list[float] = page.evaluate(
        f"""([layer, head]) => {{ const plot = document.querySelector('#rank-map .js-plotly-plot');
            {PLACE} return at(layer, head); }}""",
        [layer, head],
    )
    return found[0], found[1]


def test_map_table_address_and_reload_tell_the_same(page: Any, tiny: Any, shelf: str) -> None:
    visit(page, tiny, f"{shelf}/induction.parquet")
    assert names(page)[:2] == ["L3H2", "L4H1"]
    assert "2 of 24 heads" in page.inner_text("#rank-head")
    page.mouse.click(*cell_of_map(page, 4, 1))
    wait_for(lambda: heads(page) == ["4.1"], SECONDS)
    assert page.get_attribute("#rank-table .ag-center-cols-container [row-id='4.1']", "aria-selected") == "true"
    page.click("#rank-table .ag-center-cols-container [row-id='3.2'] .head-name")
    wait_for(lambda: heads(page) == ["4.1", "3.2"], SECONDS)
    drawn = page.evaluate("document.querySelector('#rank-map .js-plotly-plot').data.at(-1)")
    assert (drawn["name"], drawn["x"], drawn["y"]) == ("picked", [4, 3], [1, 2])
    page.reload()
    page.wait_for_selector("#rank-table .ag-row-selected", state="attached")
    assert page.inner_text("#rank-count") == "2 picked"
    assert heads(page) == ["4.1", "3.2"]
    # The same cell again lets the head go.
    page.mouse.click(*cell_of_map(page, 4, 1))
    wait_for(lambda: heads(page) == ["3.2"], SECONDS)


def test_another_ranking_of_the_model_keeps_what_is_picked_and_one_of_another_does_not(
    page: Any, tiny: Any, shelf: str
) -> None:
    put(
        tiny.desk.workspace.root,
        f"{shelf}/small.json",
        ranking("echo", layers=2, heads=2, best=((1, 1),), model="small"),
    )
    visit(page, tiny, f"{shelf}/induction.parquet", heads="3.2,5.3")
    page.click(f"#rank-list button[title='{shelf}/sinks.json']")
    wait_for(lambda: "Sink heads" in page.inner_text("#rank-head"), SECONDS)
    assert heads(page) == ["3.2", "5.3"]
    page.click(f"#rank-list button[title='{shelf}/small.json']")
    wait_for(lambda: "Echo heads" in page.inner_text("#rank-head"), SECONDS)
    wait_for(lambda: heads(page) == [], SECONDS)


def test_search_filter_sort_and_columns(page: Any, tiny: Any, shelf: str) -> None:
    visit(page, tiny, f"{shelf}/induction.parquet")
    page.fill("#rank-search", "l3")
    wait_for(lambda: len(names(page)) == 4, SECONDS)
    assert all(name.startswith("L3H") for name in names(page))
    page.fill("#rank-search", "4,1")
    wait_for(lambda: names(page) == ["L4H1"], SECONDS)
    page.fill("#rank-search", "")
    wait_for(lambda: len(names(page)) > 4, SECONDS)
    page.click("#rank-only")
    wait_for(lambda: names(page) == ["L3H2", "L4H1"], SECONDS)
    page.click("#rank-only")
    page.click("#rank-table .ag-header-cell[col-id='layer']")
    wait_for(lambda: names(page)[0] == "L0H0" or names(page)[0].startswith("L0"), SECONDS)
    page.get_by_text("Columns", exact=True).click()
    page.get_by_label("kind", exact=True).click()
    wait_for(lambda: page.locator("#rank-table .ag-header-cell[col-id='kind']").count() == 0, SECONDS)
    page.keyboard.press("Escape")
    wait_for(lambda: "columns=" in address(page), SECONDS)
    page.reload()
    page.wait_for_selector("#rank-table .ag-header-cell[col-id='q_value']", state="attached")
    assert page.locator("#rank-table .ag-header-cell[col-id='kind']").count() == 0


def test_by_keyboard_alone(page: Any, tiny: Any, shelf: str) -> None:
    visit(page, tiny, f"{shelf}/induction.parquet")
    page.focus("#rank-search")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('#rank-table') !== null"):
            break
    assert page.evaluate("document.activeElement.closest('#rank-table') !== null"), "Tab does not reach the table"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    wait_for(lambda: len(heads(page)) == 1, SECONDS)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    wait_for(lambda: len(heads(page)) == 2, SECONDS)
    page.focus("#rank-list button")
    page.focus("[role='tab'][aria-selected='true']")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#rank-with", state="visible")
    wait_for(lambda: "tab=compare" in address(page), SECONDS)


def test_picked_heads_become_a_set_that_is_combined_deleted_and_brought_back(page: Any, tiny: Any, shelf: str) -> None:
    root = tiny.desk.workspace.root
    visit(page, tiny, f"{shelf}/induction.parquet")
    page.click("#rank-passing")
    wait_for(lambda: len(heads(page)) == 2, SECONDS)
    page.fill("#rank-save-name", f"{shelf} one")
    page.click("#rank-save")
    page.get_by_text("Saved as heads/").wait_for()
    one = root / "heads" / f"{shelf} one.json"
    assert HeadSet.load(one).heads == ((3, 2), (4, 1))
    page.fill("#rank-k", "3")
    page.keyboard.press("Tab")
    page.click("#rank-top")
    wait_for(lambda: len(heads(page)) == 3, SECONDS)
    page.fill("#rank-save-name", f"{shelf} one")
    page.click("#rank-save")
    page.get_by_text("There is a head set called").wait_for()
    page.fill("#rank-save-name", f"{shelf} two")
    page.click("#rank-save")
    page.get_by_text(f"{shelf} two.json: see").wait_for()
    page.get_by_role("tab", name="Head sets").click()
    page.get_by_role("heading", name=f"{shelf} two").wait_for()
    page.click("#rank-set-other")
    page.get_by_role("option", name=f"{shelf} one").click()
    page.get_by_text("Only the first").click()
    page.get_by_text("share 2 heads; two random sets of these sizes share 0.25").wait_for()
    page.fill("#rank-set-combined", f"{shelf} rest")
    page.click("#rank-set-combine")
    page.get_by_role("heading", name=f"{shelf} rest").wait_for()
    rest = root / "heads" / f"{shelf} rest.json"
    assert len(HeadSet.load(rest)) == 1
    page.click("#rank-set-delete")
    page.get_by_text("Deleted heads/").wait_for()
    assert not rest.exists()
    page.click("#rank-set-undo")
    page.get_by_text("Brought back.").wait_for()
    assert rest.exists()
    page.fill("#rank-set-name", f"{shelf} renamed")
    page.click("#rank-set-rename")
    page.get_by_role("heading", name=f"{shelf} renamed").wait_for()
    page.locator("#rank-sets .ranking-name").get_by_text(f"{shelf} one", exact=True).click()
    page.get_by_role("heading", name=f"{shelf} one").wait_for()
    page.click("#rank-set-load")
    page.wait_for_selector("#rank-table", state="visible")
    wait_for(lambda: heads(page) == ["3.2", "4.1"], SECONDS)


def test_two_rankings_are_compared_and_a_dot_is_a_head(page: Any, tiny: Any, shelf: str) -> None:
    visit(page, tiny, f"{shelf}/induction.parquet", tab="compare", **{"with": f"{shelf}/sinks.json"})
    page.get_by_text("Spearman’s ρ of the scores").wait_for()
    page.wait_for_selector("#rank-compared .scatterlayer .point")
    at = page.evaluate(
        f"""() => {{ const plot = document.querySelector('#rank-compared .js-plotly-plot');
            plot.scrollIntoView({{block: 'center'}}); {PLACE}
            const trace = plot.data.find((one) => (one.text || []).includes('L3H2')), i = trace.text.indexOf('L3H2');
            const dot = plot.calcdata[plot.data.indexOf(trace)][i]; return at(dot.x, dot.y); }}"""
    )
    page.mouse.click(*at)
    wait_for(lambda: heads(page) == ["3.2"], SECONDS)
    page.reload()
    page.get_by_text("Spearman’s ρ of the scores").wait_for()
    assert heads(page) == ["3.2"]


def test_details_and_the_report_open_without_a_complaint(page: Any, tiny: Any, shelf: str) -> None:
    visit(page, tiny, f"{shelf}/induction.parquet", tab="details")
    page.get_by_role("heading", name="What removing them does").wait_for()
    # A place inside the page is gone to, and the page stays as it is.
    page.evaluate("document.querySelector('#rank-save-name').dataset.mark = 'same'")
    page.get_by_role("link", name="Provenance").click()
    page.wait_for_function("document.querySelector('#d-provenance').getBoundingClientRect().top < innerHeight")
    page.wait_for_load_state("networkidle")
    assert page.evaluate("document.querySelector('#rank-save-name').dataset.mark") == "same"
    page.click("#rank-report")
    link = page.locator("#rank-report-links a").first
    link.wait_for()
    trouble: list[str] = []
    with page.expect_popup() as opened:
        link.click()
    report = opened.value
    report.on("console", lambda said: trouble.append(said.text) if said.type == "error" else None)
    report.wait_for_selector("html[data-drawn='yes']", state="attached")
    assert "Induction heads" in report.title()
    assert report.locator(".js-plotly-plot").count() >= 3
    assert not trouble
    report.close()


def test_figures_leave_the_page_in_four_ways(page: Any, tiny: Any, shelf: str, tmp_path: Path, new_page: Any) -> None:
    visit(page, tiny, f"{shelf}/induction.parquet")
    page.wait_for_selector("#rank-map .heatmaplayer")
    saved = {}
    for kind in ("csv", "svg", "png", "html"):
        with page.expect_download() as download:
            page.click(f"#rank-map-frame [data-export='{kind}']")
        saved[kind] = tmp_path / download.value.suggested_filename
        download.value.save_as(saved[kind])
    rows = list(csv.DictReader(io.StringIO(saved["csv"].read_text())))
    scores = HeadScores.load(tiny.desk.workspace.root / shelf / "induction.parquet")
    assert len(rows) == 24
    for row in rows:
        assert float(row["value"]) == pytest.approx(scores.head(int(row["x"]), int(row["y"]))["score"], rel=1e-12)
    assert saved["svg"].read_text().startswith("<svg")
    assert saved["png"].read_bytes().startswith(b"\x89PNG")
    offline = new_page()
    offline.watch.expect("other origin: file:")  # the file itself, and nothing else
    offline.goto(saved["html"].as_uri())
    offline.wait_for_selector(".heatmaplayer")


def test_dark_paper_needs_no_server(page: Any, tiny: Any, shelf: str) -> None:
    visit(page, tiny, f"{shelf}/induction.parquet")
    page.wait_for_selector("#rank-map .heatmaplayer")
    colour = "() => document.querySelector('#rank-map .js-plotly-plot').layout.template.layout.font.color"
    light = page.evaluate(colour)
    page.wait_for_load_state("networkidle")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.click("#colour-scheme")
    page.wait_for_function(f"before => ({colour})() !== before", arg=light)
    from headscope.report.palette import DARK, LIGHT

    assert (light, page.evaluate(colour)) == (LIGHT["ink"], DARK["ink"])
    assert not [url for url in asked if "_dash-update" in url]


def test_a_file_is_sent_and_another_is_refused_in_place(page: Any, tiny: Any, shelf: str, tmp_path: Path) -> None:
    good = ranking("previous", seed=9, model=shelf).save(tmp_path / f"{shelf}-sent.parquet")
    bad = tmp_path / "bad.json"
    bad.write_text('{"format": "else"}')
    visit(page, tiny, f"{shelf}/induction.parquet")
    page.set_input_files("#rank-upload input[type='file']", bad)
    page.locator("#rank-upload-said [role='alert']").wait_for()
    assert "bad.json cannot be read as head scores" in page.inner_text("#rank-upload-said")
    page.set_input_files("#rank-upload input[type='file']", good)
    wait_for(lambda: "Previous-token heads" in page.inner_text("#rank-head"), SECONDS)
    assert page.inner_text("#rank-upload-said") == ""


def test_a_file_that_is_gone_says_so_in_place(page: Any, tiny: Any, shelf: str) -> None:
    page.goto(f"{tiny.url}rank?file={shelf}/nothing.parquet")
    page.locator("#rank-error [role='alert']").wait_for()
    assert "There is no file" in page.inner_text("#rank-error")
    page.click(f"#rank-list button[title='{shelf}/sinks.json']")
    wait_for(lambda: "Sink heads" in page.inner_text("#rank-head"), SECONDS)
    assert page.inner_text("#rank-error") == ""


def test_two_tabs_do_not_mix(new_page: Callable[..., Any], tiny: Any, shelf: str) -> None:
    one, two = new_page(), new_page()
    visit(one, tiny, f"{shelf}/induction.parquet")
    visit(two, tiny, f"{shelf}/sinks.json")
    one.click("#rank-passing")
    two.click("#rank-passing")
    wait_for(lambda: heads(one) == ["3.2", "4.1"], SECONDS)
    wait_for(lambda: heads(two) == ["3.2", "0.1"], SECONDS)
    assert "Induction" in one.inner_text("#rank-head")
    assert "Sink" in two.inner_text("#rank-head")


def test_a_model_of_1200_heads_is_drawn_row_by_row(page: Any, tiny: Any, shelf: str, shoot: Any) -> None:
    put(
        tiny.desk.workspace.root,
        f"{shelf}/xl.parquet",
        ranking(layers=48, heads=25, best=((47, 24), (0, 0)), model="xl"),
    )
    start = time.monotonic()
    visit(page, tiny, f"{shelf}/xl.parquet")
    assert time.monotonic() - start < 15
    assert 5 < page.locator("#rank-table .ag-center-cols-container .ag-row").count() < 100
    page.mouse.click(*cell_of_map(page, 30, 12))
    # A head far down the table is brought into view.
    page.wait_for_selector("#rank-table .ag-center-cols-container [row-id='30.12']", state="attached")
    shoot(page, "rank-1200-heads")


def test_a_ranking_is_made_cancelled_and_gone_on_with(page: Any, tiny: Any, shelf: str) -> None:
    visit(page, tiny, f"{shelf}/induction.parquet", tab="new")
    page.fill("#rank-run-n", "300")
    page.fill("#rank-run-length", "256")
    page.fill("#rank-run-name", shelf)
    page.get_by_label("Remove the best heads and measure").evaluate("box => box.click()")
    page.get_by_text("Runs 300 blocks of repeated tokens once.").wait_for()
    page.click("#rank-run-go")
    page.get_by_text(re.compile(r"Ranking: repeated tokens.* of 300")).first.wait_for()
    page.click("#rank-run-cancel")
    page.locator("#rank-works").get_by_text("Go on").wait_for()
    shards = list((tiny.desk.workspace.root / "rankings" / shelf / "shards").rglob("*.shard"))
    assert 0 < len(shards) < 300
    page.locator("#rank-works").get_by_text("Go on").click()
    page.wait_for_selector("#rank-table", state="visible", timeout=120_000)
    wait_for(lambda: f"rankings/{shelf}/induction.parquet" in address(page), SECONDS)
    assert "on 300 samples" in page.inner_text("#rank-head")


def test_cells_and_commands_are_copied(new_page: Callable[..., Any], tiny: Any, shelf: str) -> None:
    page = new_page(permissions=["clipboard-read", "clipboard-write"])
    visit(page, tiny, f"{shelf}/induction.parquet")
    for tab, label, piece in (
        ("Heads", "Copy as notebook cell", "hs."),
        ("New ranking", "Copy command line", "headscope rank"),
    ):
        page.get_by_role("tab", name=tab, exact=True).click()
        page.get_by_role("button", name=label).click()
        page.get_by_text("Copied", exact=True).wait_for()
        assert piece in page.evaluate("navigator.clipboard.readText()")
        page.get_by_text("Copied", exact=True).wait_for(state="detached")


def test_a_form_that_makes_no_sense_says_so_and_starts_nothing(page: Any, tiny: Any, shelf: str) -> None:
    visit(page, tiny, f"{shelf}/induction.parquet", tab="new")
    page.fill("#rank-run-k", "five")
    page.keyboard.press("Tab")
    page.get_by_text("Heads to remove: 'five' is not a list").first.wait_for()
    page.click("#rank-run-go")
    page.locator("#rank-run-error [role='alert']").wait_for()
    assert "five" in page.inner_text("#rank-run-error")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nobody_is_kept_out(
    new_page: Callable[..., Any], tiny: Any, shelf: str, axe: Any, shoot: Any, scheme: str
) -> None:
    HeadSet.of("a11y", ranking(model=shelf)).save(tiny.desk.workspace.root / "heads" / f"{shelf}.json")
    page = new_page(1280, 800, scheme)
    for tab in ("heads", "compare", "sets", "details", "new"):
        rest = {"with": f"{shelf}/sinks.json", "heads": "3.2", "set": f"heads/{shelf}.json"}
        visit(page, tiny, f"{shelf}/induction.parquet", tab=tab, **rest)
        page.wait_for_load_state("networkidle")
        page.wait_for_timeout(400)
        axe(page)
        shoot(page, f"rank-{tab}-{scheme}")


@pytest.mark.parametrize(("width", "height"), [(1024, 768), (1920, 1080), (600, 900)])
def test_nothing_is_wider_than_the_screen(
    new_page: Callable[..., Any], tiny: Any, shelf: str, width: int, height: int
) -> None:
    page = new_page(width, height)
    for tab in ("heads", "compare", "details", "new"):
        visit(page, tiny, f"{shelf}/induction.parquet", tab=tab, **{"with": f"{shelf}/sinks.json"})
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_ranking_of_a_real_model_from_the_form_to_a_head_set(page: Any, server: Any, shoot: Any) -> None:
    page.goto(f"{server.url}rank?tab=new")
    page.wait_for_selector("#rank-run-go")
    page.fill("#rank-run-n", "6")
    page.fill("#rank-run-length", "64")
    page.fill("#rank-run-k", "1, 5")
    page.fill("#rank-run-controls", "3")
    page.fill("#rank-run-trials", "2")
    page.fill("#rank-run-name", "smol induction")
    page.get_by_label("Previous-token heads").check()
    page.get_by_text("For each probe, 2 trials").wait_for()
    page.click("#rank-run-go")
    page.get_by_text("Removing previous heads").wait_for(timeout=240_000)
    page.wait_for_selector("#rank-table .ag-center-cols-container .ag-row", timeout=240_000)
    # The induction heads of SmolLM2-135M that every ranking of it finds.
    assert {"L18H6", "L17H3"} <= set(names(page)[:4])
    page.click("#rank-passing")
    page.fill("#rank-save-name", "induction of smol")
    page.click("#rank-save")
    page.get_by_text("Saved as heads/induction of smol.json").wait_for()
    shoot(page, "rank-smollm2")
    page.get_by_role("tab", name="Details").click()
    page.get_by_role("heading", name="What removing them does").wait_for()
    found = HeadSet.load(server.workspace / "heads" / "induction of smol.json")
    assert (18, 6) in found.heads
    assert found.model == "smollm2-135m"
