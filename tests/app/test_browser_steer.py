"""Steer in a real browser: a method on a prompt, its strength, its edit, and everything that must not be lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import expect

from headscope.app.components.method_fields import VALUED, about, fields_of
from headscope.interventions.registry import METHODS

pytestmark = pytest.mark.slow

RUN = 180_000
"""Milliseconds that a run may take on a machine with busy neighbours."""
TEXT = "The name is: bivq. The word is: cojx. The answer:"


def open_page(page: Any, server: Any, query: str = "") -> None:
    page.goto(f"{server.url}steer{query}")
    page.wait_for_selector("#steer-text", state="attached")
    page.wait_for_function("() => window.headscopePrompt.get('steer')?.begun")


def mark(page: Any, piece: str, name: str) -> None:
    page.fill("#steer-mark-name", name)
    page.evaluate(
        """(piece) => { const area = document.getElementById('steer-text'); const at = area.value.indexOf(piece);
        area.focus(); area.setSelectionRange(at, at + piece.length); }""",
        piece,
    )
    page.click("#steer-mark")


def choose(page: Any, label: str) -> None:
    page.click("#steer-method")
    page.get_by_role("option", name=label, exact=True).click()
    # The form is swapped by the server.
    expect(page.locator("#steer-about")).to_contain_text(
        about(method_of(label)).title if label != "A saved edit" else ""
    )


def method_of(label: str) -> str:
    return next((name for name in METHODS if about(name).label == label), "pasta")


def query(page: Any) -> dict[str, str]:
    return {name: found[0] for name, found in parse_qs(urlsplit(page.url).query).items()}


def result(page: Any, key: str, button: str) -> str:
    """Press a button and return the name of the new result, from the address."""
    before = query(page).get(key)
    page.click(button)
    page.wait_for_function(
        "([key, old]) => { const now = new URLSearchParams(location.search).get(key); return now && now !== old; }",
        arg=[key, before],
        timeout=RUN,
    )
    return query(page)[key]


def run(page: Any) -> str:
    name = result(page, "texts", "#steer-go")
    expect(page.locator(f".steer-what[data-result='{name}']")).to_be_visible()
    return name


def prepared(page: Any, server: Any, address: str = "?method=spotlight") -> None:
    open_page(page, server, address)
    page.fill("#steer-text", TEXT)
    page.fill("#steer-new", "4")
    mark(page, "bivq", "name")
    mark(page, "cojx", "word")


def field(page: Any, name: str) -> Any:
    return page.locator(f'[id*=\'"field":"{name}"\']').first


def texts(page: Any) -> list[str]:
    return [found.inner_text() for found in page.locator(".tokens").all()]


# -- running -------------------------------------------------------------------------------------------------------


def test_a_run_shows_both_texts_and_a_reload_loses_nothing(page: Any, tiny: Any, shoot: Callable[..., Any]) -> None:
    prepared(page, tiny)
    # The region that is marked first is what the method is about, until something else is chosen.
    expect(page.locator(".method-field .mantine-Pill-label")).to_have_text("name")
    field(page, "psi").fill("0.6")
    name = run(page)
    expect(page.locator(".steer-sentence")).to_contain_text("KL of the first token")
    before, address = texts(page), page.url
    assert query(page)["set.psi"] == "0.6"
    assert query(page)["set.region"] == "name"
    expect(page.locator("#steer-stale")).to_be_hidden()
    page.reload()
    expect(page.locator(".tokens").first).to_be_visible()
    assert texts(page) == before
    expect(field(page, "psi")).to_have_value("0.6")
    expect(page.locator("#steer-text")).to_have_value(TEXT)
    page.wait_for_timeout(600)
    assert page.url == address
    expect(page.locator("#steer-stale")).to_be_hidden()

    field(page, "psi").fill("0.3")
    expect(page.locator("#steer-stale")).to_be_visible()
    page.wait_for_timeout(800)
    page.reload()
    expect(field(page, "psi")).to_have_value("0.3")
    expect(page.locator("#steer-stale")).to_be_visible()
    assert query(page)["texts"] == name
    # Somebody else with the address sees the same.
    other = page.context.browser.new_context().new_page()
    other.goto(address)
    expect(other.locator(".tokens").first).to_be_visible()
    assert texts(other) == before
    expect(other.locator("#steer-text")).to_have_value(TEXT)
    other.context.close()


def test_who_goes_away_comes_back_to_what_was_there(page: Any, tiny: Any) -> None:
    prepared(page, tiny)
    run(page)
    before = texts(page)
    page.wait_for_timeout(500)
    page.get_by_role("link", name="Rank").click()
    page.wait_for_selector(".rank-page")
    page.get_by_role("link", name="Steer").click()
    expect(page.locator(".tokens").first).to_be_visible()
    assert texts(page) == before
    expect(page.locator("#steer-text")).to_have_value(TEXT)


def test_two_tabs_do_not_mix(page: Any, tiny: Any) -> None:
    prepared(page, tiny)
    field(page, "psi").fill("0.6")
    other = page.context.new_page()
    prepared(other, tiny, "?method=knockout")
    page.bring_to_front()
    first = run(page)
    other.bring_to_front()
    second = run(other)
    assert first != second
    seen = texts(page), texts(other)
    for one in (page, other):
        one.wait_for_timeout(500)
        one.reload()
        expect(one.locator(".tokens").first).to_be_visible()
    assert (texts(page), texts(other)) == seen
    assert (query(page)["method"], query(other)["method"]) == ("spotlight", "knockout")
    assert (query(page)["texts"], query(other)["texts"]) == (first, second)
    expect(field(page, "psi")).to_have_value("0.6")


def test_what_is_wrong_is_said_at_its_field_until_it_is_changed(page: Any, tiny: Any) -> None:
    open_page(page, tiny, "?method=pasta")
    page.click("#steer-go")
    expect(page.locator("#steer-texts-error")).to_contain_text("The prompt is empty")
    page.fill("#steer-text", TEXT)
    page.click("#steer-go")
    error = page.locator(".method-field .mantine-InputWrapper-error")
    expect(error).to_contain_text("Mark selection")
    mark(page, "bivq", "name")
    # The region is taken by itself, and the message goes.
    expect(error).to_have_count(0)
    field(page, "alpha").fill("0")
    page.click("#steer-go")
    expect(error).to_contain_text("above 0")
    field(page, "alpha").fill("0.2")
    expect(error).to_have_count(0)
    page.fill("#steer-new", "3")
    page.locator("#steer-heads-kind").get_by_text("Listed").click()
    page.fill("#steer-heads-text", "nine")
    page.click("#steer-go")
    expect(page.locator(".method-wrong")).to_contain_text("'nine' is no head")
    page.fill("#steer-heads-text", "99.1")
    expect(page.locator(".method-wrong")).to_be_empty()
    page.click("#steer-go")
    expect(page.locator("#steer-texts-error")).to_contain_text("99", timeout=RUN)
    page.fill("#steer-heads-text", "3.1, 4.*")
    run(page)
    assert query(page)["heads"] == "3.1, 4.*"


def test_every_method_opens_its_form_and_keeps_its_values(page: Any, tiny: Any) -> None:
    prepared(page, tiny, "?method=pasta")
    field(page, "alpha").fill("0.07")
    page.wait_for_timeout(500)
    for name in METHODS:
        choose(page, about(name).label)
        heads = page.locator("#steer-heads-box")
        if name in VALUED:
            for one in fields_of(name):
                if not one.rare:
                    expect(field(page, one.name)).to_be_visible()
            closed = expect(heads).to_have_attribute if name == "pine" else expect(heads).not_to_have_attribute
            closed("disabled", "")
        else:
            expect(page.locator("#steer-form-box")).to_contain_text("Edit file of the workspace")
            expect(heads).to_have_attribute("disabled", "")
    choose(page, "PASTA")
    expect(field(page, "alpha")).to_have_value("0.07")
    page.wait_for_timeout(500)
    assert query(page)["method"] == "pasta"
    assert query(page)["set.alpha"] == "0.07"


def test_a_region_that_is_renamed_stays_chosen(page: Any, tiny: Any) -> None:
    prepared(page, tiny)
    page.get_by_role("button", name="Rename name").click()
    page.keyboard.type("fact")
    page.keyboard.press("Enter")
    expect(page.locator(".method-field .mantine-Pill-label")).to_have_text("fact")


def test_tokens_tell_their_numbers_to_the_pointer_and_to_the_keys(page: Any, tiny: Any) -> None:
    prepared(page, tiny)
    run(page)
    page.hover("#steer-steered-1")
    read = page.locator("#steer-read")
    expect(read).to_contain_text("token 2")
    expect(read).to_contain_text("nats")
    shown = page.locator("#steer-steered-1").get_attribute("data-steered")
    assert shown is not None
    expect(read).to_contain_text(f"{float(shown):.2f}".replace("-", "−"))
    page.focus("#steer-base-0")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#steer-base-1")).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(page.locator("#steer-steered-1")).to_be_focused()
    expect(page.locator(".steps tr.is-read")).to_have_count(1)
    page.keyboard.press("Home")
    expect(read).to_contain_text("token 1")


# -- keeping -------------------------------------------------------------------------------------------------------


def test_an_edit_is_saved_opened_again_and_explored_under(page: Any, tiny: Any) -> None:
    prepared(page, tiny)
    run(page)
    before = texts(page)
    page.get_by_text("Save edit").click()
    page.fill("#steer-keep-name", "from the browser")
    page.click("#steer-keep")
    expect(page.locator("#steer-keep-said")).to_contain_text("edits/from the browser.json")
    saved = json.loads((tiny.desk.workspace.root / "edits/from the browser.json").read_text())
    assert saved["interventions"][0]["type"] == "spotlight"

    choose(page, "A saved edit")
    page.get_by_role("textbox", name="Edit file of the workspace").click()
    page.get_by_role("option", name="from the browser").click()
    run(page)
    assert texts(page) == before
    assert query(page)["edit"] == "edits/from the browser.json"
    page.click("#steer-explore")
    page.wait_for_url("**/explore?run=*")
    expect(page.locator("#explore-view .hs-viewer")).to_have_attribute("data-state", "ready", timeout=RUN)
    expect(page.locator("#explore-what")).to_contain_text("under edits/saved")
    # And back, under it.
    explored = query(page)["run"]
    page.click("#explore-steer")
    expect(page.locator("#steer-method")).to_have_value("A saved edit")
    page.wait_for_timeout(500)
    assert query(page)["run"] == explored
    assert query(page)["edit"].startswith("edits/saved")
    expect(page.locator("#steer-text")).to_have_value(TEXT)
    # By the link of the home page, which says nothing but the file.
    prepared(page, tiny, "?edit=edits/from%20the%20browser.json")
    expect(page.locator("#steer-method")).to_have_value("A saved edit")
    page.wait_for_timeout(500)
    assert query(page)["edit"] == "edits/from the browser.json"
    run(page)
    assert texts(page) == before


def test_python_command_and_link_are_copied(new_page: Callable[..., Any], tiny: Any) -> None:
    page = new_page(permissions=["clipboard-read", "clipboard-write"])
    prepared(page, tiny)
    run(page)
    page.locator(".steer-head").get_by_text("Copy", exact=True).click()
    for label, piece in (
        ("Python", "hs.interventions.SpotLight("),
        ("Notebook cell", "compare_continuations"),
        ("Command line", "headscope steer spotlight"),
        ("Link to this page", "/steer?run="),
    ):
        page.locator(".steer-copies").get_by_text(label, exact=True).click()
        expect(page.locator(".steer-copies").get_by_text("Copied")).to_be_visible()
        assert piece in page.evaluate("navigator.clipboard.readText()")
        expect(page.locator(".steer-copies").get_by_text("Copied")).to_have_count(0)


# -- strength ------------------------------------------------------------------------------------------------------


def test_a_strength_is_swept_and_comes_back(page: Any, tiny: Any) -> None:
    prepared(page, tiny)
    page.get_by_role("tab", name="Strength on this prompt").click()
    expect(page.locator("#steer-sweep-field")).to_have_value("psi")
    page.get_by_text("Range").click()
    page.fill("#steer-range-low", "0.1")
    page.fill("#steer-range-high", "0.5")
    page.fill("#steer-range-count", "3")
    page.click("#steer-range-scale")
    page.get_by_role("option", name="even differences").click()
    page.click("#steer-range-fill")
    expect(page.locator("#steer-sweep-values")).to_have_value("0.1, 0.3, 0.5")
    page.fill("#steer-target", " cojx")
    result(page, "swept", "#steer-sweep-go")
    rows = page.locator(".swept tbody tr")
    expect(rows).to_have_count(5)
    expect(rows.nth(1)).to_contain_text("0 (neutral)")
    expect(page.locator("#steer-sweep-figure .main-svg").first).to_be_visible()
    page.reload()
    expect(rows).to_have_count(5)
    expect(page.locator("#steer-sweep-values")).to_have_value("0.1,0.3,0.5")
    expect(page.locator("#steer-target")).to_have_value(" cojx")
    expect(page.locator("#steer-sweep-figure .main-svg").first).to_be_visible()
    page.fill("#steer-sweep-values", "0.1, many")
    page.click("#steer-sweep-go")
    expect(page.locator("#steer-sweep-error")).to_contain_text("'many' is no number")
    choose(page, "KnockOut")
    expect(page.locator("#steer-sweep-field")).to_have_value("")
    page.click("#steer-sweep-go")
    expect(page.locator("#steer-sweep-error")).to_contain_text("no number to vary")


def test_a_method_is_measured_on_a_task_stopped_and_gone_on_with(page: Any, server: Any) -> None:
    open_page(page, server, "?method=zerotuning&tab=task&task=topic&n=6&sweep=gamma&values=0.5,2&drift=no")
    page.click("#steer-task-go")
    said = page.locator("#steer-task-work-said")
    expect(said).to_contain_text("At each value", timeout=RUN)
    # The pointer is still on the button: one that rests must look like it, and be read.
    look = "(one) => { const style = getComputedStyle(one); return [style.backgroundColor, style.color]; }"
    at_rest = page.eval_on_selector("#steer-task-go", look)
    page.mouse.move(0, 0)
    page.wait_for_timeout(300)
    assert page.eval_on_selector("#steer-task-go", look) == at_rest
    page.click("#steer-task-work-cancel")
    expect(page.locator("#steer-task-go")).to_be_enabled(timeout=RUN)
    assert "judged" not in query(page)
    result(page, "judged", "#steer-task-go")
    table = page.locator(".judged")
    expect(table.locator("tbody tr")).to_have_count(4)
    for name in ("accuracy", "valid", "among valid", "constrained", "base constr.", "gain"):
        expect(table).to_contain_text(name)
    expect(table).to_contain_text("gamma=0.5")
    expect(table).to_contain_text("neutral")
    page.reload()
    expect(table.locator("tbody tr")).to_have_count(4)
    with page.context.expect_page() as opened:
        page.get_by_role("link", name="Open").click()
    expect(opened.value.locator("body")).to_contain_text("topic")


# -- with real weights ---------------------------------------------------------------------------------------------


def test_a_long_example_is_cancelled_and_run_again(page: Any, server: Any, shoot: Callable[..., Any]) -> None:
    open_page(page, server, "?example=instruction")
    page.click("#steer-go")
    expect(page.locator("#steer-run-said")).to_contain_text("Writing without the edit", timeout=RUN)
    page.click("#steer-run-cancel")
    expect(page.locator("#steer-go")).to_be_enabled(timeout=RUN)
    expect(page.locator("#steer-run-working")).to_be_hidden()
    assert "texts" not in query(page)
    run(page)
    expect(page.locator(".tokens")).to_have_count(2)
    gains = [found.inner_text() for found in page.locator(".side-gain strong").all()]
    assert gains[1].startswith("+")
    # The main result is seen without scrolling, at 1280 × 800.
    box = page.locator(".sides").bounding_box()
    assert box["y"] + box["height"] < 800
    shoot(page, "steer")


# -- everybody -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_keeps_people_out(
    scheme: str, new_page: Callable[..., Any], tiny: Any, axe: Callable[..., None], shoot: Callable[..., Any]
) -> None:
    page = new_page(scheme=scheme)
    open_page(page, tiny, "?method=ablation")
    axe(page)
    prepared(page, tiny)
    run(page)
    axe(page)
    page.get_by_role("tab", name="Strength on this prompt").click()
    page.fill("#steer-sweep-values", "0.2, 0.4")
    result(page, "swept", "#steer-sweep-go")
    axe(page, leave_out=(".js-plotly-plot",))
    shoot(page, f"steer-sweep-{scheme}")
    page.get_by_role("tab", name="On a task").click()
    axe(page)


@pytest.mark.parametrize(("width", "height"), [(1024, 768), (390, 844), (1920, 1080)])
def test_nothing_sticks_out_on_other_screens(
    width: int, height: int, new_page: Callable[..., Any], tiny: Any, shoot: Callable[..., Any]
) -> None:
    page = new_page(width, height)
    prepared(page, tiny)
    run(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # Where all is one column the result has come into sight.
    expect(page.locator(".tokens").first).to_be_in_viewport()
    shoot(page, f"steer-{width}")
