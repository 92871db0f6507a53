"""What the frame promises all pages: windows that do not mix, views that outlive the server, text that stays text."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headscope.app.runs import Recipe
from headscope.app.workspace import Workspace
from tests.app.harness import start

pytestmark = pytest.mark.slow

TEXT = "The man said the code is bivq cojx. What is the code? It is bivq"


def viewer(page: Any) -> Any:
    return page.locator("[data-panel=head]")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_a_view_outlives_the_server(page: Any, tiny_folder: Path, tmp_path: Path) -> None:
    recipe, port = Recipe(str(tiny_folder), TEXT), str(free_port())
    recipe.save(Workspace(tmp_path))
    for _ in range(2):
        with start(tmp_path, "--port", port, model=str(tiny_folder)) as server:
            page.goto(f"{server.url}explore?run={recipe.id}&head=3.2&q=9")
            viewer(page).wait_for()
            page.locator("[data-panel=text]").get_by_text("bivq").first.wait_for()
            assert "head=3.2" in page.url
            page.goto("about:blank")  # it would ask a server that has ended


def test_two_windows_that_run_the_same_prompt_at_once_both_see_it(new_page: Callable[..., Any], tiny: Any) -> None:
    pages = [new_page() for _ in range(2)]
    text = TEXT + " house" * 300
    for page in pages:
        page.goto(f"{tiny.url}explore")
        page.get_by_label("Prompt", exact=True).fill(text)
    with tiny.desk.model(tiny.model):  # both wait for the model, and begin together
        for page in pages:
            page.get_by_role("button", name="Run", exact=True).click()
            page.get_by_text("Waiting for the model").wait_for()
    for page in pages:
        viewer(page).wait_for()
        assert Recipe(tiny.model, text).id in page.url


def test_a_window_that_cancels_does_not_cancel_another(new_page: Callable[..., Any], tiny: Any) -> None:
    pages = [new_page() for _ in range(2)]
    text = TEXT + " water" * 300
    for page in pages:
        page.goto(f"{tiny.url}explore")
        page.get_by_label("Prompt", exact=True).fill(text)
    with tiny.desk.model(tiny.model):
        for page in pages:
            page.get_by_role("button", name="Run", exact=True).click()
            page.get_by_text("Waiting for the model").wait_for()
        pages[0].get_by_role("button", name="Cancel").first.click()
        pages[0].get_by_text("Waiting for the model").wait_for(state="hidden")
    viewer(pages[1]).wait_for()
    assert viewer(pages[0]).count() == 0
    assert tiny.desk.jobs.at_work == 0


def test_markup_in_tokens_regions_and_file_names_stays_text(page: Any, tiny: Any) -> None:
    nasty = '<img src=x onerror="document.title=1">'
    text = f"The man {nasty} said </script><script>document.title=2</script> the code."
    recipe = Recipe(tiny.model, text, regions=(("<b>region</b>", 8, 20),))
    tiny.desk.look(replace(recipe, new_tokens=2))
    tiny.desk.look(recipe)
    (tiny.desk.workspace.root / "edits").mkdir(exist_ok=True)
    (tiny.desk.workspace.root / "edits" / f"{nasty.replace('/', '')}.json").write_text("{}")
    for path in (f"explore?run={recipe.id}", "", "rank"):
        page.goto(tiny.url + path)
        page.locator(".page").wait_for()
        if "run" in path:
            page.locator("[data-panel=text]").get_by_text("onerror").first.wait_for()
            page.locator(".hs-region-name", has_text="<b>region</b>").wait_for()
        page.wait_for_timeout(500)
        assert page.title() not in ("1", "2")
        assert page.locator("main img").count() == 0


def test_a_page_that_is_not_there_says_so(page: Any, tiny: Any) -> None:
    page.goto(f"{tiny.url}no/such/page")
    page.get_by_text("404").first.wait_for()
    page.get_by_role("navigation").get_by_role("link", name="Home").click()
    page.get_by_role("button", name="Take the tour").wait_for()


def test_the_keyboard_skips_the_navigation_and_loses_nothing(page: Any, tiny: Any) -> None:
    recipe = Recipe(tiny.model, TEXT)
    tiny.desk.look(recipe)
    page.goto(f"{tiny.url}explore?run={recipe.id}&head=3.2&q=9")
    viewer(page).wait_for()
    page.evaluate("() => { document.querySelector('.hs-viewer').kept = true; }")
    page.wait_for_timeout(500)
    address = page.url
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("() => document.activeElement.id") == "content"
    page.wait_for_timeout(500)
    assert page.url == address
    assert page.evaluate("() => document.querySelector('.hs-viewer').kept")
