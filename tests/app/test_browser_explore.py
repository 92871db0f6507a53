"""Explore in a real browser: from a prompt to one neuron, and everything that must not be lost on the way."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import expect

from tests.app.harness import wait_for

pytestmark = pytest.mark.slow

RUN = 120_000
"""Milliseconds that a short run may take on a machine with busy neighbours."""
TEXT = "When Mary and John went to the store, John gave a bottle of milk to"


def open_page(page: Any, server: Any, query: str = "") -> None:
    page.goto(f"{server.url}explore{query}")
    page.wait_for_selector("#explore-text", state="attached")
    # The form is filled once the store of the recipe holds a model.
    page.wait_for_function("() => window.headscopePrompt.get('explore')?.begun")


def write(page: Any, text: str) -> None:
    page.fill("#explore-text", text)
    expect(page.locator("#explore-status")).to_contain_text("tokens", timeout=RUN)


def ready(page: Any) -> None:
    expect(page.locator("#explore-view .hs-viewer")).to_have_attribute("data-state", "ready", timeout=RUN)


def run(page: Any) -> str:
    before = address(page).get("run")
    page.locator("#explore-text").press("Control+Enter")
    page.wait_for_function(
        "(before) => { const now = new URLSearchParams(location.search).get('run'); return now && now !== before; }",
        arg=before,
        timeout=RUN,
    )
    ready(page)
    return str(address(page)["run"])


def address(page: Any) -> dict[str, str]:
    return {name: found[0] for name, found in parse_qs(urlsplit(page.url).query).items()}


def recipe(page: Any) -> dict[str, Any]:
    found: dict[str, Any] = page.evaluate("() => window.headscopePrompt.get('explore').recipe()")
    return found


def select(page: Any, piece: str) -> None:
    page.evaluate(
        """(piece) => { const area = document.getElementById('explore-text'); const at = area.value.indexOf(piece);
        area.focus(); area.setSelectionRange(at, at + piece.length); }""",
        piece,
    )


def mark(page: Any, piece: str, name: str) -> None:
    page.fill("#explore-mark-name", name)
    select(page, piece)
    page.click("#explore-mark")


def spans(page: Any) -> list[tuple[str, str]]:
    found = recipe(page)
    return [(name, found["text"][start:end]) for name, start, end in found["regions"]]


def shown(page: Any) -> dict[str, Any]:
    """What the viewer shows, from the address."""
    page.wait_for_timeout(500)  # the address follows a moment later
    return address(page)


def best_head(page: Any, stat: str) -> tuple[int, int]:
    """The head with the largest value of a statistic, as the server tells it."""
    run = address(page)["run"]
    values = page.evaluate(
        "async (url) => Array.from(new Float32Array(await (await fetch(url)).arrayBuffer()))",
        f"/api/run/{run}/stat/{stat}",
    )
    return divmod(max(range(len(values)), key=values.__getitem__), 9)


# -- the form ------------------------------------------------------------------------------------------------------


def test_regions_are_marked_with_the_mouse_and_follow_the_text(page: Any, server: Any) -> None:
    open_page(page, server)
    write(page, TEXT)
    # By dragging: the selection is the browser's own.
    box = page.locator("#explore-text").bounding_box()
    page.fill("#explore-mark-name", "opening")
    page.mouse.move(box["x"] + 15, box["y"] + 22)
    page.mouse.down()
    page.mouse.move(box["x"] + 120, box["y"] + 22, steps=5)
    page.mouse.up()
    page.click("#explore-mark")
    [(name, piece)] = spans(page)
    assert name == "opening"
    assert piece
    assert TEXT.startswith(piece)
    mark(page, "bottle of milk", "the thing")
    assert spans(page)[1] == ("the_thing", "bottle of milk")
    chip = page.locator(".chip[data-region=the_thing]")
    expect(chip).to_contain_text("3 tokens", timeout=RUN)

    page.evaluate("() => { const a = document.getElementById('explore-text'); a.focus(); a.setSelectionRange(0, 0); }")
    page.keyboard.type("Once: ")
    assert spans(page)[1] == ("the_thing", "bottle of milk")
    select(page, "of")
    page.keyboard.type("full of")
    assert spans(page)[1] == ("the_thing", "bottle full of milk")
    page.keyboard.press("Control+z")
    assert spans(page)[1][1].startswith("bottle")

    chip.get_by_role("button", name="Rename the_thing").click()
    page.keyboard.type("drink")
    page.keyboard.press("Enter")
    assert spans(page)[1][0] == "drink"
    page.get_by_role("button", name="Remove drink").click()
    assert [name for name, _ in spans(page)] == ["opening"]


def test_what_is_typed_and_taken_back_is_counted_again(page: Any, server: Any) -> None:
    open_page(page, server)
    write(page, TEXT)
    expect(page.locator("#explore-status")).to_contain_text("16 of 8,192 tokens", timeout=RUN)
    page.locator("#explore-text").press("End")
    page.keyboard.press("x")
    page.keyboard.press("Backspace")
    expect(page.locator("#explore-status")).to_contain_text("16 of 8,192 tokens", timeout=RUN)


def test_text_is_found_and_marked_everywhere_and_the_keys_mark_too(page: Any, server: Any) -> None:
    open_page(page, server)
    write(page, TEXT)
    page.fill("#explore-mark-name", "giver")
    page.fill("#explore-find", "john")
    expect(page.locator(".prompt-found")).to_have_text("2 places")
    page.click("#explore-find-all")
    assert spans(page) == [("giver", "John"), ("giver", "John")]
    page.fill("#explore-mark-name", "all")
    select(page, "Mary")
    page.keyboard.press("Alt+m")
    expect(page.locator(".prompt-live")).to_contain_text("has a meaning of its own")
    page.fill("#explore-mark-name", "receiver")
    select(page, "Mary")
    page.keyboard.press("Alt+m")
    assert spans(page)[2] == ("receiver", "Mary")


def test_a_reload_loses_nothing_and_two_tabs_do_not_mix(new_page: Callable[..., Any], server: Any) -> None:
    one = new_page()
    open_page(one, server)
    write(one, TEXT)
    mark(one, "Mary", "receiver")
    one.get_by_text("Chat template").click()
    one.fill("#explore-system", "Be brief.")
    one.fill("#explore-new", "3")
    one.locator("#explore-new").blur()
    one.wait_for_timeout(600)
    before = recipe(one)
    assert before["system"] == "Be brief."
    assert before["new_tokens"] == 3
    two = one.context.new_page()
    open_page(two, server)
    assert recipe(two)["text"] == ""
    write(two, "Another tab.")
    one.reload()
    one.wait_for_function("() => window.headscopePrompt.get('explore')?.begun")
    one.wait_for_timeout(600)
    assert recipe(one) == before
    expect(one.locator("#explore-system")).to_have_value("Be brief.")
    expect(one.locator("#explore-status")).to_contain_text("tokens", timeout=RUN)


def test_prompts_are_saved_opened_and_loaded_from_files(page: Any, server: Any, tmp_path: Any) -> None:
    open_page(page, server)
    write(page, TEXT)
    mark(page, "Mary", "receiver")
    page.click("#explore-saver")
    page.fill("#explore-save-name", "milk")
    page.click("#explore-save")
    expect(page.locator("#explore-save-said")).to_contain_text("prompts/milk.json")
    saved = json.loads((server.workspace / "prompts/milk.json").read_text())
    assert saved["text"] == TEXT
    page.click("#explore-save")
    expect(page.locator("#explore-save-said")).to_contain_text("Save again to replace it")
    page.click("#explore-save")
    expect(page.locator("#explore-save-said")).to_contain_text("Saved as")
    page.keyboard.press("Escape")

    notes = tmp_path / "notes.txt"
    notes.write_text("Some notes.\r\nTwo lines.", encoding="utf-8")
    page.set_input_files("#explore-file", notes)
    expect(page.locator("#explore-text")).to_have_value("Some notes.\nTwo lines.")
    assert spans(page) == []
    notes.write_bytes(b"caf\xe9 au lait")
    page.set_input_files("#explore-file", notes)
    expect(page.locator("#explore-said")).to_contain_text("not UTF-8")
    pdf = tmp_path / "paper.pdf"
    pdf.write_bytes(b"%PDF")
    page.set_input_files("#explore-file", pdf)
    expect(page.locator(".prompt-live")).to_contain_text("choose .txt, .md or .json")

    page.click("#explore-files")
    page.get_by_role("button", name="milk.json").click()
    expect(page.locator("#explore-text")).to_have_value(TEXT)
    assert spans(page) == [("receiver", "Mary")]


# -- the view ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height", "scheme"), [(1280, 800, "light"), (1920, 1080, "dark")])
def test_from_the_model_to_one_neuron_and_back_by_the_address(
    new_page: Callable[..., Any], server: Any, shoot: Any, width: int, height: int, scheme: str
) -> None:
    page = new_page(width, height, scheme)
    open_page(page, server)
    page.get_by_role("button", name="Needle in a haystack, 512 tokens").click()
    expect(page.locator("#explore-status")).to_contain_text("of 8,192 tokens", timeout=RUN)
    shoot(page, f"explore-form-{width}-{scheme}")
    identity = run(page)
    expect(page.locator("#explore-what")).to_contain_text("tokens + 16 written")
    assert page.locator("#explore-prompt").is_hidden()
    # It begins with the head that looks most at what was marked first.
    page.wait_for_function("() => new URLSearchParams(location.search).get('stat') === 'mass:needle'", timeout=RUN)
    layer, head = map(int, shown(page)["head"].split("."))
    assert (layer, head) == best_head(page, "mass:needle")
    # Heads by keys, tokens and pairs through the viewer.
    page.locator("#explore-view .hs-viewer").press("ArrowUp")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft" if head else "ArrowRight")
    assert shown(page)["head"] == f"{max(layer - 2, 0)}.{head - 1 if head else 1}"
    page.keyboard.press("[")
    at = shown(page)
    assert int(at["q"]) == int(re.search(r"([\d,]+) tokens \+ (\d+)", page.inner_text("#explore-what"))[1]) + 14  # type: ignore[index]
    expect(page.locator("#explore-view")).to_contain_text("weight")
    shoot(page, f"explore-view-{width}-{scheme}")
    page.reload()
    ready(page)
    assert shown(page) == at
    assert at["run"] == identity


def test_the_wheel_of_history_turns_between_runs(page: Any, server: Any) -> None:
    open_page(page, server)
    write(page, TEXT)
    first = run(page)
    page.wait_for_timeout(500)
    page.keyboard.press("ArrowUp")
    head = shown(page)["head"]
    page.click("#explore-change")
    write(page, "Another prompt, and a short one.")
    second = run(page)
    assert first != second
    assert address(page)["head"] == head, "the head is kept, for comparison"
    page.go_back()
    expect(page.locator("#explore-what")).to_contain_text("When Mary")
    ready(page)
    assert address(page)["run"] == first
    assert recipe(page)["text"] == TEXT
    page.go_forward()
    expect(page.locator("#explore-what")).to_contain_text("Another prompt")
    page.go_back()
    page.go_back()
    expect(page.locator("#explore-prompt")).to_be_visible()
    assert "run" not in address(page)
    assert page.locator("#explore-view .hs-viewer").count() == 0


def test_a_run_that_left_the_memory_is_made_again_and_an_unknown_one_says_so(page: Any, server: Any) -> None:
    from headscope.app.runs import Recipe
    from headscope.app.workspace import Workspace

    written = Recipe("smollm2-135m", "The run of an earlier server.", regions=(("server", 22, 28),))
    written.save(Workspace(server.workspace))
    open_page(page, server, f"?run={written.id}&head=3.2")
    ready(page)
    assert shown(page)["head"] == "3.2"
    assert recipe(page)["text"] == written.text
    assert spans(page) == [("server", "server")]
    open_page(page, server, "?run=0123456789abcdef")
    expect(page.locator("#explore-error")).to_contain_text("There is no run '0123456789abcdef'")
    expect(page.locator("#explore-prompt")).to_be_visible()


def test_errors_stand_beside_the_form_and_say_what_to_do(page: Any, server: Any) -> None:
    open_page(page, server)
    page.click("#explore-go")
    expect(page.locator("#explore-error")).to_contain_text("The prompt is empty")
    page.fill("#explore-text", "word " * 9000)
    expect(page.locator("#explore-status")).to_contain_text("too many for this model", timeout=RUN)
    page.click("#explore-go")
    expect(page.locator("#explore-error")).to_contain_text("8192", timeout=RUN)
    write(page, TEXT)
    run(page)
    expect(page.locator("#explore-error")).to_be_empty()


def test_a_long_run_is_cancelled_and_the_old_view_stays(page: Any, server: Any) -> None:
    open_page(page, server)
    write(page, TEXT)
    first = run(page)
    page.click("#explore-change")
    page.click("#explore-examples")
    page.locator(".menu-item", has_text="the whole context").click()
    expect(page.locator("#explore-status")).to_contain_text("8,122", timeout=RUN)
    page.click("#explore-go")
    expect(page.locator("#explore-look-said")).to_contain_text("of 30", timeout=RUN)
    page.click("#explore-look-cancel")
    expect(page.locator("#explore-look-working")).to_be_hidden()
    expect(page.locator("#explore-go")).to_be_enabled()
    assert address(page)["run"] == first
    assert page.locator("#explore-view .hs-viewer[data-state=ready]").count() == 1
    page.click("#explore-change")
    expect(page.locator("#explore-what")).to_contain_text("When Mary")


def test_the_model_writes_on(page: Any, server: Any) -> None:
    open_page(page, server)
    write(page, TEXT)
    run(page)
    page.click("#explore-more")
    expect(page.locator("#explore-what")).to_contain_text("16 tokens + 16 written", timeout=RUN)
    ready(page)
    expect(page.locator("#explore-view .hs-region-name").filter(has_text="generated")).to_be_visible()
    assert recipe(page)["new_tokens"] == 16


def test_links_and_cells_are_copied(new_page: Callable[..., Any], server: Any) -> None:
    page = new_page(permissions=["clipboard-read", "clipboard-write"])
    open_page(page, server)
    write(page, TEXT)
    mark(page, "Mary", "receiver")
    identity = run(page)
    page.click("#explore-share")
    expect(page.locator("#explore-done")).to_have_text("Link copied")
    link = page.evaluate("() => navigator.clipboard.readText()")
    assert parse_qs(urlsplit(link).query)["run"] == [identity]
    page.click("#explore-cell")
    expect(page.locator("#explore-done")).to_have_text("Cell copied")
    code = page.evaluate("() => navigator.clipboard.readText()")
    compile(code, "cell", "exec")
    assert "model.view(prompt)" in code
    assert "receiver='Mary'" in code
    assert page.get_attribute("#explore-steer", "href") == f"/steer?run={identity}"


def test_typing_is_typing_while_a_view_is_there(page: Any, server: Any) -> None:
    open_page(page, server)
    write(page, TEXT)
    run(page)
    before = shown(page)
    page.click("#explore-change")
    expect(page.locator("#explore-text")).to_be_focused()
    page.keyboard.press("End")
    page.keyboard.type(" m t / ? [")
    assert recipe(page)["text"].endswith(" m t / ? [")
    assert shown(page) == before
    assert page.locator("dialog[open]").count() == 0


def test_a_saved_ranking_is_a_statistic(page: Any, server: Any) -> None:
    import pandas as pd

    from headscope.probes.scores import HeadScores

    columns = ["layer", "head", "score", "ci_low", "ci_high", "n", "null_mean", "p_value", "selected"]
    rows = [(layer, head, layer / 30, 0.0, 1.0, 5, 0.0, 0.5, False) for layer in range(30) for head in range(9)]
    (server.workspace / "rankings").mkdir(exist_ok=True)
    HeadScores(pd.DataFrame(rows, columns=columns), "depth", {}).save(server.workspace / "rankings/depth.parquet")
    open_page(page, server)
    write(page, TEXT)
    run(page)
    page.locator("#explore-view select").first.select_option("ranking:rankings/depth.parquet")
    assert shown(page)["stat"] == "ranking:rankings/depth.parquet"
    page.reload()
    ready(page)
    assert shown(page)["stat"] == "ranking:rankings/depth.parquet"


def test_a_head_set_is_a_statistic_too(page: Any, server: Any) -> None:
    from headscope.probes.head_sets import HeadSet

    folder = server.workspace / "heads"
    folder.mkdir(exist_ok=True)
    HeadSet("three", ((3, 1), (5, 2), (29, 8)), shape=(30, 9)).save(folder / "three.json")
    open_page(page, server)
    write(page, TEXT)
    run(page)
    page.locator("#explore-view select").first.select_option("set:heads/three.json")
    assert shown(page)["stat"] == "set:heads/three.json"
    for head in ("3.1", "5.2", "29.8"):
        expect(page.locator("#explore-view")).to_contain_text(head)


def test_coming_back_to_the_page_resumes_the_last_run(page: Any, tiny: Any) -> None:
    open_page(page, tiny)
    write(page, "the cat saw the dog and the cat ran")
    first = run(page)
    page.get_by_role("link", name="Home").click()
    page.wait_for_selector("#explore-text", state="detached")
    page.get_by_role("link", name="Explore", exact=True).click()
    ready(page)
    assert address(page)["run"] == first
    assert recipe(page)["text"].startswith("the cat")
    # Once more, on the page itself: a fresh prompt is wanted.
    page.get_by_role("link", name="Explore", exact=True).click()
    expect(page.locator("#explore-prompt")).to_be_visible()
    assert "run" not in address(page)
    assert page.locator("#explore-view .hs-viewer").count() == 0


def test_a_run_that_leaves_while_it_is_looked_at_comes_back(page: Any, tiny: Any) -> None:
    page.watch.expect(r"status 410")
    page.watch.expect(r"console: Failed to load resource")
    open_page(page, tiny)
    write(page, "the dog saw the cat and the dog ran")
    first = run(page)
    with tiny.desk.runs._lock:
        tiny.desk.runs._kept.clear()
    before = shown(page)["head"]
    page.locator("#explore-view .hs-viewer").press("ArrowUp")
    if before.startswith("0."):
        page.keyboard.press("ArrowDown")
    wait_for(lambda: page.wait_for_timeout(50) or first in tiny.desk.runs, 60)
    page.wait_for_timeout(1000)
    ready(page)
    assert shown(page)["head"] != before


def test_a_run_under_an_edit_says_so(page: Any, tiny: Any) -> None:
    from headscope.interventions import store
    from headscope.interventions.ablation import Ablation

    with tiny.desk.model(tiny.model) as model:
        store.save(tiny.desk.workspace.path("edits/no-head.json"), Ablation(heads=((0, 0),)), model=model)
    open_page(page, tiny)
    write(page, "the cat saw the dog")
    plain = run(page)
    page.click("#explore-change")
    page.click("#explore-edit")
    page.get_by_role("option", name="no-head.json").click()
    page.wait_for_timeout(500)
    assert recipe(page)["edit"] == "edits/no-head.json"
    edited = run(page)
    assert edited != plain
    expect(page.locator(".run-edit")).to_have_text("under edits/no-head.json")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nobody_is_kept_out(new_page: Callable[..., Any], server: Any, axe: Any, scheme: str) -> None:
    page = new_page(scheme=scheme)
    open_page(page, server)
    write(page, TEXT)
    mark(page, "Mary", "receiver")
    page.get_by_text("Chat template").click()
    page.wait_for_timeout(500)
    axe(page)
    page.click("#explore-examples")
    axe(page)
    page.keyboard.press("Escape")
    run(page)
    axe(page, leave_out=("#explore-view",))  # the viewer has a test of its own
