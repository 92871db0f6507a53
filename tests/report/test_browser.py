"""The report in a real browser: no error, no load, no sideways scroll, everything drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from headscope.probes.scores import HeadScores
from headscope.report import write_combined

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(make: Callable[..., HeadScores], tmp_path_factory: pytest.TempPathFactory) -> Path:
    scores = [make(), make("sinks", seed=1), make("sink-tokens", seed=2), make("induction", seed=3)]
    return write_combined(scores, tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(scope="module", params=[(1280, 800, "light"), (1280, 800, "dark"), (400, 800, "light")], ids=str)
def page(request: pytest.FixtureRequest, browser: Any, report: Path) -> Iterator[Any]:
    width, height, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.trouble = []
    page.on("console", lambda message: page.trouble.append(message.text))
    page.on("pageerror", lambda error: page.trouble.append(str(error)))
    page.on("request", lambda request: page.trouble.append(request.url) if request.url.startswith("http") else None)
    page.goto(report.as_uri())
    page.wait_for_selector("html[data-drawn]", timeout=120_000)
    yield page
    context.close()


def test_opens_offline_without_a_word_and_fits(page: Any) -> None:
    assert page.trouble == []
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    figures = page.locator(".plot")
    assert figures.count() > 20
    assert page.locator(".plot .main-svg").count() >= figures.count()
    # Nothing but scroll boxes and the contents may be wider than the page.
    wide = page.evaluate(
        """() => [...document.querySelectorAll("main *, header *")]
            .filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".scroll, pre, svg, nav"))
            .map((e) => e.outerHTML.slice(0, 120))"""
    )
    assert wide == []


def test_figures_fill_their_place(page: Any) -> None:
    ratios = page.evaluate(
        """() => [...document.querySelectorAll(".plot")].map(
            (e) => e.querySelector(".main-svg").getBoundingClientRect().width / e.getBoundingClientRect().width)"""
    )
    assert min(ratios) > 0.98
    assert max(ratios) < 1.02


def test_table_sorts_and_filters_from_the_keyboard(page: Any) -> None:
    table, tools = page.locator("#p1-table"), page.locator(".tools[data-for=p1-table]")
    button = table.get_by_role("button", name="score", exact=True)
    button.focus()
    page.keyboard.press("Enter")
    first = float(table.locator("tbody tr td[data-v]").nth(1).get_attribute("data-v"))
    page.keyboard.press("Enter")
    assert float(table.locator("tbody tr td[data-v]").nth(1).get_attribute("data-v")) < first
    assert button.locator("..").get_attribute("aria-sort") == "ascending"
    tools.get_by_role("searchbox").fill("12.3")
    assert table.locator("tbody tr:visible").count() == 1
    tools.get_by_role("searchbox").fill("L12")
    assert table.locator("tbody tr:visible").count() == 9
    tools.get_by_role("searchbox").fill("")
    tools.get_by_role("checkbox").check()
    assert tools.locator("output").inner_text() == "21 of 270 heads"


def test_dark_paper_swaps_the_colours_of_figures(page: Any) -> None:
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    ink = page.evaluate("document.querySelector('.plot').layout.template.layout.font.color")
    assert ink == ("#e9e7e2" if dark else "#1b1d21")


def test_choosing_a_head_finds_it_in_the_table(page: Any) -> None:
    plot = page.locator(".plot[data-table=p1-table]")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    asked = page.locator(".tools[data-for=p1-table] [type=search]").input_value()
    assert asked.startswith("L")
    assert page.locator("#p1-table tbody tr:visible").count() == 1
