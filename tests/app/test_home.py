"""What the home page lists, and what the tour finds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dash import html

from headscope.app import at_hand, tour
from headscope.app.desk import Desk
from headscope.app.pages import home
from headscope.app.runs import Recent, Recipe, recent
from headscope.app.settings import Settings
from headscope.app.workspace import Workspace
from headscope.errors import RequestError

BASE = {"base_url": "http://127.0.0.1"}


def texts(part: Any) -> list[str]:
    """All texts of a component, in order."""
    if part is None or isinstance(part, (str, int, float)):
        return [] if part is None else [str(part)]
    if isinstance(part, (list, tuple)):
        return [text for one in part for text in texts(one)]
    return texts(getattr(part, "children", None))


def links(part: Any) -> list[str]:
    if isinstance(part, (list, tuple)):
        return [link for one in part for link in links(one)]
    own = [part.href] if getattr(part, "href", None) else []
    return own + (links(part.children) if getattr(part, "children", None) is not None else [])


@pytest.fixture
def desk(tiny_folder: Path, tmp_path: Path) -> Any:
    made = Desk(Settings(model=str(tiny_folder), workspace=tmp_path / "workspace"))
    yield made
    made.jobs.seal()


# -- runs -------------------------------------------------------------------------------------------------------------


def test_an_empty_workspace_says_what_to_do(desk: Desk) -> None:
    page = home.layout(desk)
    said = " ".join(texts(page))
    assert "Nothing was run in this workspace yet." in said
    assert "/explore" in links(page)
    for none in ("run a probe on Rank", "pick heads in a ranking", "save one on Steer"):
        assert none in said


def test_runs_are_listed_last_first_with_what_they_were(desk: Desk) -> None:
    first = Recipe(desk.settings.model, "The man said\nthe code is  bivq.")
    second = replace(first, text="On that day " + "the house was there. " * 20, regions=(("day", 3, 7), ("day", 8, 11)))
    second = replace(second, chat=True)
    for one in (first, second):
        desk.look(one)
    found = recent(desk.workspace, 10)
    assert [one.recipe for one in found] == [second, first]
    assert found[1].length == desk.runs.get(first.id).length
    table = home.runs_table(found, desk.runs.__contains__)
    assert [link for link in links(table) if "explore" in link] == [f"/explore?run={one.id}" for one in (second, first)]
    rows = table.children[1].children
    assert texts(rows[0])[1:3] == ["chat", "day"]
    assert texts(rows[1])[:3] == ["The man said the code is bivq.", "organism", str(found[1].length)]
    assert "in memory" in texts(rows[1])


def test_runs_that_left_memory_are_listed_without_the_mark(desk: Desk) -> None:
    one = Recent(Recipe("m", "text"), None, 0.0)
    assert "in memory" not in texts(home.runs_table([one], lambda run: False))
    assert "–" in texts(home.runs_table([one], lambda run: False))


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("short", "short"),
        ("two\n\n lines\t here", "two lines here"),
        ("word " * 60, "word " * 17 + "word …"),
        ("x" * 300, "x" * 90 + " …"),
    ],
)
def test_first_words_are_cut_at_a_word(text: str, first: str) -> None:
    assert home.first_words(text) == first
    assert len(home.first_words(text)) <= home.WORDS + 2


def test_markup_in_a_prompt_stays_text(desk: Desk) -> None:
    nasty = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    table = home.runs_table([Recent(Recipe("m", nasty), 3, 0.0)], lambda run: False)
    assert nasty in texts(table)
    assert not any(isinstance(one, html.Script) for one in table._traverse())


def test_damaged_recipes_are_passed_over(desk: Desk) -> None:
    good = Recipe("m", "good")
    good.save(desk.workspace, 5)
    folder = desk.workspace.path(".app/recipes")
    for name, text in (("0" * 16, "{"), ("1" * 16, "[]"), ("2" * 16, "{}"), ("not-a-run", "{}")):
        (folder / f"{name}.json").write_text(text)
    assert [(one.recipe, one.length) for one in recent(desk.workspace, 10)] == [(good, 5)]
    assert len(recent(desk.workspace, 0)) == 0


def test_recipes_of_before_lengths_were_kept_are_read(tmp_path: Path) -> None:
    workspace, recipe = Workspace(tmp_path), Recipe("m", "text")
    recipe.save(workspace, 7)
    path = workspace.path(f".app/recipes/{recipe.id}.json")
    document = json.loads(path.read_text())
    del document["length"]
    path.write_text(json.dumps(document))
    assert recent(workspace, 1)[0].length is None
    assert Recipe.load(workspace, recipe.id) == recipe


# -- models -----------------------------------------------------------------------------------------------------------


def test_a_folder_is_described_from_its_configuration_then_from_memory(desk: Desk) -> None:
    before = at_hand.models(desk)[0]
    assert (before.layers, before.heads, before.context, before.state) == (6, 6, 2048, at_hand.HERE)
    with desk.model(desk.settings.model):
        pass
    after = at_hand.models(desk)[0]
    assert after == replace(before, state=at_hand.LOADED)


@pytest.mark.parametrize(
    ("config", "facts"),
    [
        ({"n_layer": 12, "n_head": 12, "n_positions": 1024}, {"layers": 12, "heads": 12, "context": 1024}),
        ({"text_config": {"num_hidden_layers": 4, "num_attention_heads": 2}}, {"layers": 4, "heads": 2}),
        ({"num_hidden_layers": "many"}, {}),
        ([], {}),
        ("{", {}),
    ],
)
def test_configurations_of_all_kinds_are_read(tmp_path: Path, config: Any, facts: dict[str, int]) -> None:
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    assert at_hand._facts(tmp_path) == facts
    assert at_hand._facts(tmp_path / "none") == {}


def test_models_that_are_not_fetched_are_listed_with_the_command_and_cannot_be_loaded(desk: Desk) -> None:
    found = {one.name: one for one in at_hand.models(desk)}
    absent = found["gemma3-270m"]
    assert not absent.allowed
    assert absent.fetch == "headscope models fetch gemma3-270m --accept-licence"
    assert absent.licence == "Gemma Terms"
    page = texts(home.layout(desk))
    assert "headscope models fetch whisper-tiny-en" in page


def test_a_model_of_the_hub_is_named_as_such(tiny_folder: Path, tmp_path: Path) -> None:
    desk = Desk(Settings(model=str(tiny_folder), allowed=("some/model",), workspace=tmp_path))
    desk.jobs.seal()
    found = at_hand.models(desk)[1]
    assert (found.name, found.state, found.layers, found.allowed) == ("some/model", at_hand.UNKNOWN, None, True)
    assert "by name" in texts(home.model_row(found))


# -- the tour ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toured(tiny: Any) -> tuple[Any, str]:
    recipe = tour.recipe(tiny.model)
    return tiny.desk.look(recipe), recipe.id


def test_the_prompt_marks_its_needle() -> None:
    (name, start, end), *_ = tour.recipe("m").regions
    assert (name, tour.TEXT[start:end]) == ("needle", tour.NEEDLE)


def test_repeats_point_behind_an_earlier_copy() -> None:
    tokens = list("abcxabdab")
    assert tour.repeats(tokens) == [(5, 2), (8, 2)]
    assert tour.repeats(list("aaa")) == []
    assert tour.repeats([]) == []


def test_the_head_that_copies_is_one_that_was_planted(toured: tuple[Any, str], tiny: Any) -> None:
    planted = json.loads((Path(tiny.model) / "organism.json").read_text())["planted"]
    view = toured[0]
    copy = tour.induction(tour._Patterns(view), view.meta()["tokens"])
    assert list(copy.head) in planted["induction"]
    assert copy.weight == pytest.approx(float(view.row(*copy.head, copy.query)[copy.key]), abs=1e-6)
    sink, share = tour.best(view.stat("sink"))
    assert list(sink) in planted["sink"]
    assert share == pytest.approx(float(np.nanmax(view.stat("sink"))))


def test_cards_lead_to_real_pages_and_say_what_was_found(tiny: Any, toured: tuple[Any, str]) -> None:
    from headscope.app.page import find_pages

    found = tiny.client.get(f"/api/tour/{toured[1]}", **BASE).json["steps"]
    assert len(found) > 5
    paths = {page.path for page in find_pages()}
    for card in found:
        assert card["href"].partition("?")[0] in paths
        assert card["title"]
        assert 60 < len(card["text"]) < 420
        assert "nan" not in card["text"]
    assert f"run={toured[1]}" in found[0]["href"]


def test_the_tour_names_a_ranking_where_there_is_one(tiny: Any, toured: tuple[Any, str]) -> None:
    from tests.app.test_api import ranking

    run = toured[1]
    path = tiny.desk.workspace.path("rankings/of the tour.parquet")
    ranking(path, fingerprint=tiny.desk.runs.weights(run))
    hrefs = [card["href"] for card in tour.cards(tiny.desk, run)]
    assert any(href.startswith("/rank?file=rankings/") for href in hrefs)
    path.unlink()


def test_the_tour_goes_over_its_own_prompt_only(tiny: Any) -> None:
    other = Recipe(tiny.model, "The man said the code.")
    tiny.desk.look(other)
    with pytest.raises(RequestError, match="home page"):
        tour.cards(tiny.desk, other.id)
    assert tiny.client.get(f"/api/tour/{'0' * 16}", **BASE).status_code == 410
