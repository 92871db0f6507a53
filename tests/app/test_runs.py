"""Recipes name runs, and runs are kept as far as memory allows."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import headscope as hs
from headscope.app.runs import RECIPES, RECIPES_KEPT, Gone, Recipe, RunCache, forget, recent, recipe_files
from headscope.app.workspace import Workspace
from headscope.errors import PromptError, RequestError

FULL = Recipe(
    "m", "Ünï 🙂 text", True, "Be brief.", (("needle", 0, 3), ("needle", 4, 5), ("x", 4, 9)), 7, "edits/a.json"
)


class Held:
    """All that the cache knows of a view."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Any:
    return hs.load(tiny_folder)


# -- recipes ----------------------------------------------------------------------------------------------------------


def test_equal_recipes_have_one_name_and_all_others_another() -> None:
    assert Recipe("m", "a").id == Recipe("m", "a").id
    others = [
        replace(FULL, **change)
        for change in (
            {"model": "n"},
            {"text": "Ünï 🙂 text "},
            {"chat": False},
            {"system": None},
            {"system": ""},
            {"regions": FULL.regions[:2]},
            {"regions": FULL.regions[::-1]},
            {"new_tokens": 8},
            {"edit": None},
        )
    ]
    assert len({found.id for found in (FULL, *others)}) == len(others) + 1
    assert all(len(found.id) == 16 and found.id.isalnum() for found in others)


def test_a_recipe_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    FULL.save(workspace)
    assert Recipe.load(workspace, FULL.id) == FULL
    assert Recipe.load(workspace, FULL.id).id == FULL.id
    assert workspace.files(".json") == []  # nobody else's list is cluttered by them


def test_the_length_that_is_known_stays_when_a_recipe_is_saved_without(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    FULL.save(workspace)
    assert [one.length for one in recent(workspace, 5)] == [None]
    FULL.save(workspace, 31)
    FULL.save(workspace)  # as a page does that runs no view of it
    assert [one.length for one in recent(workspace, 5)] == [31]
    FULL.save(workspace, 32)
    assert [one.length for one in recent(workspace, 5)] == [32]


@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=200),
    regions=st.lists(st.tuples(st.text(max_size=5), st.integers(0, 9), st.integers(0, 9)), max_size=3),
    chat=st.booleans(),
)
def test_recipes_survive_json(text: str, regions: list[Any], chat: bool) -> None:
    recipe = Recipe("m", text, chat, None, tuple(regions))
    document = json.loads(json.dumps(recipe.__dict__))
    assert Recipe.read(document) == recipe
    assert Recipe.read(document).id == recipe.id


@pytest.mark.parametrize(
    "run", ["0" * 16, "nothing", "", "../../etc/passwd", "a" * 5000, "٣" * 16, "\x00", "ABCDEF0123456789"]
)
def test_names_that_are_no_run_are_refused(tmp_path: Path, run: str) -> None:
    with pytest.raises(RequestError):
        Recipe.load(Workspace(tmp_path), run)


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        "text",
        {},
        {"model": "m"},
        {"model": "m", "text": 3},
        {"model": None, "text": "a"},
        {"model": "m", "text": "a", "surplus": 1},
        {"model": "m", "text": "a", "regions": [["needle", 1]]},
        {"model": "m", "text": "a", "regions": [["needle", "x", 2]]},
        {"model": "m", "text": "a", "regions": 5},
        {"model": "m", "text": "a", "new_tokens": -1},
        {"model": "m", "text": "a", "new_tokens": "many"},
        {"model": "m", "text": "a", "new_tokens": 1e9},
        {"model": "m", "text": "a", "chat": "yes"},
        {"model": "m", "text": "a", "edit": ["x"]},
        {"model": "m", "text": "a", "system": 1},
    ],
    ids=str,
)
def test_values_of_the_wrong_kind_are_refused(document: Any) -> None:
    with pytest.raises(RequestError, match=r"recipe|new tokens"):
        Recipe.read(document)


def test_a_damaged_recipe_is_told_as_missing(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    FULL.save(workspace)
    (tmp_path / RECIPES / f"{FULL.id}.json").write_text('{"model": ')
    with pytest.raises(RequestError, match="Run its prompt again"):
        Recipe.load(workspace, FULL.id)


def test_old_recipes_are_forgotten(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    folder = tmp_path / RECIPES
    folder.mkdir(parents=True)
    for age in range(RECIPES_KEPT + 3):
        path = folder / f"{age:016x}.json"
        path.write_text("{}")
        os.utime(path, (10_000 - age, 10_000 - age))
    FULL.save(workspace)
    files = recipe_files(workspace)
    assert len(files) == RECIPES_KEPT
    assert [path.stem for path in files[:2]] == [FULL.id, f"{0:016x}"]
    forget(workspace, FULL.id)
    forget(workspace, FULL.id)
    assert FULL.id not in [path.stem for path in recipe_files(workspace)]
    with pytest.raises(RequestError):
        forget(workspace, "../../secret")


# -- prompts ----------------------------------------------------------------------------------------------------------

TEXT = "  The man said the code is bivq cojx.\nWhat is the code?  "


def spans(*parts: str) -> tuple[tuple[str, int, int], ...]:
    return tuple((f"part{i}", TEXT.index(part), TEXT.index(part) + len(part)) for i, part in enumerate(parts))


@pytest.mark.parametrize("chat", [False, True])
def test_regions_land_on_the_tokens_of_their_text(model: Any, chat: bool) -> None:
    parts = ("bivq cojx", "What is", "The man", "the code?")
    prompt = Recipe("m", TEXT, chat, "Be brief." if chat else None, spans(*parts)).prompt(model)
    for i, part in enumerate(parts):
        assert prompt.region_text(f"part{i}").strip() == part
    assert ("<|system|>" in prompt.text) == chat


def test_a_region_of_several_places_is_one(model: Any) -> None:
    first, last = TEXT.index("code"), TEXT.rindex("code")
    regions = (("code", first, first + 4), ("code", last, last + 4))
    for chat in (False, True):
        prompt = Recipe("m", TEXT, chat, None, regions).prompt(model)
        assert "".join(prompt.tokens[i] for i in prompt.positions("code")).split() == ["code", "code"]


def test_regions_over_trimmed_space_keep_the_rest(model: Any) -> None:
    recipe = Recipe("m", TEXT, True, None, (("all", 0, len(TEXT)), ("begin", 0, 5), ("end", len(TEXT) - 7, len(TEXT))))
    with pytest.raises(PromptError):  # a name that means something else
        recipe.prompt(model)
    recipe = replace(recipe, regions=(("whole", 0, len(TEXT)), *recipe.regions[1:]))
    prompt = recipe.prompt(model)
    assert prompt.region_text("whole").strip() == TEXT.strip()
    assert prompt.region_text("begin").strip() == "The"
    assert prompt.region_text("end").strip() == "code?"


def test_text_that_also_stands_in_the_system_message_is_found_in_its_own_place(model: Any) -> None:
    recipe = Recipe("m", "the code", True, "Tell the code: the code", (("it", 4, 8),))
    prompt = recipe.prompt(model)
    assert prompt.positions("it")[0] > prompt.text.index("<|user|>") / 8
    assert prompt.text[: prompt.offsets[prompt.positions("it")[0]][0]].endswith(("<|user|>\nthe", "<|user|>\nthe "))


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_empty_prompts_are_refused(model: Any, text: str) -> None:
    with pytest.raises(PromptError, match="empty"):
        Recipe("m", text).prompt(model)


def test_a_system_message_needs_the_chat_template(model: Any) -> None:
    with pytest.raises(PromptError, match="chat template"):
        Recipe("m", "a", system="b").prompt(model)


@pytest.mark.parametrize(
    "region", [("x", 3, 3), ("x", 5, 2), ("x", 1000, 1001), ("x", -4, 2), ("", 0, 3), ("bos", 0, 3), ("x" * 99, 0, 3)]
)
@pytest.mark.parametrize("chat", [False, True])
def test_regions_that_hold_nothing_or_have_no_name_are_refused(model: Any, region: Any, chat: bool) -> None:
    with pytest.raises(PromptError):
        Recipe("m", TEXT, chat, None, (region,)).prompt(model)


def test_more_regions_than_memory_is_meant_for_are_refused(model: Any) -> None:
    many = tuple((f"r{i}", 2, 5) for i in range(40))
    with pytest.raises(PromptError, match="40 regions"):
        Recipe("m", TEXT, regions=many).prompt(model)
    assert len(Recipe("m", TEXT, regions=many[:32]).prompt(model).regions) == 33


# -- what is kept -----------------------------------------------------------------------------------------------------


def test_runs_used_least_recently_leave_first() -> None:
    cache = RunCache(100)
    for name in "abc":
        cache.put(name, Held(30))
    cache.get("a")
    cache.put("d", Held(30))
    assert [name in cache for name in "abcd"] == [True, False, True, True]
    assert cache.nbytes == 90
    with pytest.raises(Gone, match="Run it again"):
        cache.get("b")


def test_the_newest_stays_though_it_is_too_large() -> None:
    cache = RunCache(100)
    cache.put("a", Held(30))
    cache.put("b", Held(300))
    assert ("a" in cache, "b" in cache) == (False, True)


def test_room_is_made_before_it_is_needed() -> None:
    cache = RunCache(100)
    cache.put("a", Held(50))
    cache.put("b", Held(40))
    with cache.room(60):
        assert ("a" in cache, "b" in cache) == (False, True)
        with cache.room(40):
            assert cache.nbytes == 0


def test_room_that_is_promised_is_waited_for() -> None:
    cache = RunCache(100)
    order: list[str] = []

    def other() -> None:
        with cache.room(50):
            order.append("second")

    with cache.room(60):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.3)
        order.append("first")
    thread.join(5)
    assert order == ["first", "second"]


def test_a_run_made_anew_has_a_new_tag_and_one_under_another_edit_is_not_it() -> None:
    cache = RunCache(100)
    cache.put("a", Held(1), edit="one", weights="w")
    tag = cache.tag("a")
    assert cache.tag("a") == tag
    assert cache.weights("a") == "w"
    assert cache.find("a", "one") is cache.get("a")
    assert cache.find("a", "two") is None
    assert cache.find("b") is None
    cache.put("a", Held(1), edit="two")
    assert cache.tag("a") != tag
