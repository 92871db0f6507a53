"""Home in a browser: the tour over real pages, recent runs, the frame in light and dark and from the keyboard."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from headscope.app.runs import Recipe

pytestmark = pytest.mark.slow

SIZES = [(1280, 800, "light"), (1920, 1080, "dark"), (1024, 768, "light"), (390, 844, "dark")]


def open_home(page: Any, url: str) -> None:
    page.goto(url)
    page.get_by_role("button", name="Take the tour").wait_for()


def begin_tour(page: Any, url: str) -> None:
    open_home(page, url)
    page.get_by_role("button", name="Take the tour").click()
    page.locator(".tour-count").get_by_text("1 of").wait_for(timeout=120_000)


def wide(page: Any) -> list[str]:
    """What sticks out of the window."""
    return page.evaluate(
        """() => document.documentElement.scrollWidth <= innerWidth ? [] : [...document.querySelectorAll("body *")]
            .filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest("nav"))
            .map((e) => e.outerHTML.slice(0, 120))"""
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_it_fits_and_keeps_nobody_out(
    new_page: Callable[..., Any], server: Any, axe: Any, shoot: Any, size: tuple[int, int, str]
) -> None:
    page = new_page(*size)
    open_home(page, server.url)
    page.locator(".home-state.is-in-memory").first.wait_for()
    shoot(page, f"home-{size[0]}-{size[2]}")
    assert wide(page) == []
    axe(page)
    page.locator(".home-absent summary").click()
    page.evaluate("scrollTo(0, 0)")  # what lies half under the header, as the click left it, is no fault of the list
    axe(page)
    assert wide(page) == []


def test_the_first_paint_is_soon(page: Any, server: Any) -> None:
    open_home(page, server.url)
    paints = page.evaluate("performance.getEntriesByType('paint').map((e) => [e.name, e.startTime])")
    assert dict(paints)["first-contentful-paint"] < 2000


def test_the_tour_walks_over_real_pages_and_back(page: Any, server: Any, axe: Any, shoot: Any) -> None:
    begin_tour(page, server.url)
    titles, addresses = [], []
    total = int(page.locator(".tour-count").inner_text().split()[-1])
    assert total > 6
    for step in range(1, total + 1):
        page.locator(".tour-count").get_by_text(f"{step} of {total}").wait_for()
        page.wait_for_url(re.compile(rf"[?&]tour={step}\b"))
        page.locator(".page").wait_for()
        if step <= 6:  # those on a run: the panel that is spoken of is there, drawn and outlined
            page.locator(".tour-mark[data-state=ready], .tour-mark").first.wait_for()
            page.wait_for_timeout(400)
        titles.append(page.locator(".tour-title").inner_text())
        addresses.append(page.url)
        shoot(page, f"tour-{step}")
        if titles[-1] == "Change it":
            page.click("#steer-go")
            page.locator(".tokens").nth(1).wait_for(timeout=120_000)
            with_needle, without = (found.inner_text() for found in page.locator(".tokens").all())
            assert "7421" in with_needle
            assert "7421" not in without
        if step < total:
            page.locator(".tour-next").click()
    assert len(set(titles)) == total
    copying = addresses[titles.index("A head that copies")]
    assert "head=18.6" in copying  # SmolLM2's induction head, found on the run
    axe(page, leave_out=("main",))
    page.locator(".tour-back").click()
    page.locator(".tour-count").get_by_text(f"{total - 1} of {total}").wait_for()
    page.locator(".tour-end").click()
    page.wait_for_function("!location.search.includes('tour')")
    assert page.locator(".tour").count() == 0
    assert page.locator(".tour-mark").count() == 0


def test_a_reload_and_a_link_come_back_to_the_step(page: Any, new_page: Any, server: Any) -> None:
    begin_tour(page, server.url)
    page.locator(".tour-next").click()
    page.locator(".tour-next").click()
    page.locator(".tour-count").get_by_text("3 of").wait_for()
    title = page.locator(".tour-title").inner_text()
    page.locator("[data-panel=head]").wait_for()
    page.wait_for_timeout(600)  # the page has written its state into the address
    address = page.url
    assert "tour=3" in address
    page.reload()
    page.locator(".tour-count").get_by_text("3 of").wait_for()
    assert page.locator(".tour-title").inner_text() == title
    other = new_page()
    other.goto(address)
    other.locator(".tour-count").get_by_text("3 of").wait_for()
    assert other.locator(".tour-title").inner_text() == title


def test_the_tour_is_walked_from_the_keyboard(page: Any, server: Any) -> None:
    open_home(page, server.url)
    page.get_by_role("button", name="Take the tour").focus()
    page.keyboard.press("Enter")
    page.locator(".tour-count").get_by_text("1 of").wait_for(timeout=120_000)
    assert page.evaluate("document.activeElement.className") == "tour"
    for _ in range(8):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Next":
            break
    page.keyboard.press("Enter")
    page.locator(".tour-count").get_by_text("2 of").wait_for()
    head = page.url
    page.keyboard.press("ArrowDown")  # with the card in focus, the viewer does not move
    page.wait_for_timeout(400)
    assert page.url == head
    page.keyboard.press("Escape")
    page.locator(".tour").wait_for(state="detached")
    assert page.evaluate("document.activeElement.id") == "content"


def test_a_tour_that_is_left_by_hand_goes_on(page: Any, server: Any) -> None:
    begin_tour(page, server.url)
    page.get_by_role("link", name="Rank").click()
    page.wait_for_url("**/rank**")
    page.wait_for_function("location.search.includes('tour=1')")
    page.get_by_role("button", name="Show this step").click()
    page.wait_for_url("**/explore?**tour=1")
    page.locator("[data-panel=model]").wait_for()


def test_recent_runs_open_and_are_removed_and_brought_back(page: Any, tiny: Any) -> None:
    nasty = '<img src="http://127.0.0.1:9/x.png" onerror="document.title=1"> The man & the <b>house</b>'
    recipes = [Recipe(tiny.model, "The man came out of the house."), Recipe(tiny.model, nasty)]
    for recipe in recipes:
        tiny.desk.look(recipe)
    open_home(page, tiny.url)
    row = page.locator("tr", has_text="127.0.0.1:9")
    assert nasty in row.inner_text()
    assert row.locator("time").inner_text() == "just now"
    row.get_by_role("button", name="Remove").click()
    row.wait_for(state="detached")
    page.get_by_role("button", name="Undo").click()
    row.wait_for()
    row.get_by_role("link").first.click()
    page.wait_for_url(f"**/explore?run={recipes[1].id}**")
    page.locator("[data-panel=text]").get_by_text("onerror").first.wait_for()
    assert page.title() != "1"
    page.go_back()
    page.locator("tr", has_text="came out of the house").wait_for()


def test_the_navigation_says_where_one_is(page: Any, tiny: Any) -> None:
    open_home(page, tiny.url)
    for name in ("Explore", "Rank", "Home"):
        page.get_by_role("navigation").get_by_role("link", name=name).click()
        page.locator(f'.nav-link[aria-current="page"]:text-is("{name}")').wait_for()
    page.reload()
    page.locator(".page").wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"


def test_light_and_dark_are_kept(page: Any, tiny: Any, axe: Any) -> None:
    open_home(page, tiny.url)
    scheme = "document.documentElement.getAttribute('data-mantine-color-scheme')"
    assert page.evaluate(scheme) == "light"
    page.get_by_role("button", name="Light or dark").click()
    page.wait_for_function(f"{scheme} === 'dark'")
    axe(page)
    page.reload()
    page.locator(".page").wait_for()
    assert page.evaluate(scheme) == "dark"
