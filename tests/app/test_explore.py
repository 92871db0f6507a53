"""The Explore page without a browser: what it shows for an address, what it says of a run, and its notebook cell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headscope.app.cell import cell
from headscope.app.pages import explore
from headscope.app.runs import Recipe
from headscope.errors import ModelError, RequestError

META = {
    "model": "tiny",
    "length": 1204,
    "prompt_length": 1200,
    "heads": [2, 2, 2],
    "regions": {"bos": [[0, 1]], "a": [[1, 3]], "b": [[2, 4], [6, 7]]},
}


def parts(component: Any) -> dict[str, Any]:
    """All components of a layout that have an id, by id."""
    return {str(found.id): found for found in component._traverse() if getattr(found, "id", None) is not None}


def words(component: Any) -> str:
    """All text inside a component."""
    if component is None or isinstance(component, (str, int, float)):
        return "" if component is None else str(component)
    if isinstance(component, (list, tuple)):
        return " ".join(map(words, component))
    return words(getattr(component, "children", None))


# -- addresses -----------------------------------------------------------------------------------------------------


def test_without_a_run_the_form_is_open_and_empty(make_app: Any) -> None:
    _, desk = make_app()
    found = parts(explore.layout(desk))
    assert found["explore-begin"].data == {"run": None, "state": "none"}
    assert not found["explore-prompt"].hidden
    assert found["explore-line"].hidden
    assert found["explore-draft"].data["fields"] is None


def test_a_run_that_is_kept_is_shown_and_one_that_left_is_made_again_from_its_recipe(make_app: Any) -> None:
    _, desk = make_app()
    recipe = Recipe(desk.settings.model, "the cat saw the dog", regions=(("cat", 4, 7),), chat=True, system="Hm.")
    recipe.save(desk.workspace)
    gone = parts(explore.layout(desk, run=recipe.id, head="3.1"))
    assert gone["explore-begin"].data == {"run": recipe.id, "state": "gone"}
    assert gone["explore-draft"].data["fields"] == explore.fields_of(recipe)
    assert gone["explore-draft"].data["base"] == recipe.id
    assert Recipe.read(gone["explore-draft"].data["fields"]) == recipe
    desk.look(recipe)
    assert parts(explore.layout(desk, run=recipe.id))["explore-begin"].data["state"] == "kept"


@pytest.mark.parametrize("run", ["0123456789abcdef", "../../etc/passwd", "<script>", ""])
def test_an_unknown_run_is_told_in_place_and_the_form_is_there(run: str, make_app: Any) -> None:
    _, desk = make_app()
    found = parts(explore.layout(desk, run=run))
    assert found["explore-begin"].data["run"] in (None, "")
    assert not found["explore-prompt"].hidden
    if run:
        assert "run" in words(found["explore-error"])


def test_a_page_asks_by_recipe_or_by_run(make_app: Any) -> None:
    _, desk = make_app()
    recipe = Recipe(desk.settings.model, "the cat")
    fields = explore.fields_of(recipe)
    assert explore.asked_for(desk, {"recipe": fields}) == recipe
    recipe.save(desk.workspace)
    assert explore.asked_for(desk, {"run": recipe.id}) == recipe
    for wrong in ({"recipe": None}, {"recipe": {"model": "m", "text": 3}}, {"run": "0" * 16}, {}):
        with pytest.raises(RequestError):
            explore.asked_for(desk, wrong)


# -- what is said of a run -----------------------------------------------------------------------------------------


def test_the_line_over_a_view_says_what_ran() -> None:
    recipe = Recipe("tiny", "the cat", True, "Hm.", (("cat", 4, 7), ("cat", 0, 3)), 4, "edits/zero.json")
    assert "ended" in words(explore.summary(replace(recipe, new_tokens=9), META, 118_400_000, 3.21))
    said = words(explore.summary(recipe, META, 118_400_000, 3.21))
    for fact in (
        "tiny",
        "the cat",
        "1,200 tokens + 4 written",
        "chat + system",
        "1 region",
        "3.2 s",
        "118 MB",
    ):
        assert fact in said
    assert "under edits/zero.json" in said
    assert "next" not in said
    assert "ended" not in said


def test_the_likeliest_next_tokens_are_named_if_the_view_has_them() -> None:
    meta = {
        **META,
        "next": [
            {"token": " Mary", "probability": 0.75},
            {"token": "\n", "probability": 0.1},
            {"token": "x", "probability": 0.004},
        ],
    }
    said = words(explore.summary(Recipe("tiny", "the cat"), meta, 1, None))
    assert "next" in said
    assert "␣Mary 75%" in said
    assert "⏎ 10%" in said
    assert "x 0%" not in said


def test_rankings_of_models_of_another_shape_are_no_statistics(make_app: Any) -> None:
    import pandas as pd

    from headscope.probes.scores import HeadScores

    _, desk = make_app()

    def save(name: str, layers: int) -> None:
        rows = [(layer, head, layer + head, 0.0, 1.0, 5, 0.0, 0.5, False) for layer in range(layers) for head in (0, 1)]
        columns = ["layer", "head", "score", "ci_low", "ci_high", "n", "null_mean", "p_value", "selected"]
        path = desk.workspace.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        HeadScores(pd.DataFrame(rows, columns=columns), "sinks", {}).save(path)

    save("rankings/mine.parquet", 3)
    save("rankings/other.parquet", 4)
    (desk.workspace.path("notes.parquet")).write_bytes(b"no ranking")
    [only] = explore.ranked(desk, [2, 2, 2])
    assert only["name"] == "ranking:rankings/mine.parquet"
    assert (only["low"], only["high"]) == (0.0, 3.0)
    assert only["label"].endswith("mine")


# -- the notebook cell ---------------------------------------------------------------------------------------------

LONG = "A {brace} and some 'quotes' with \"both\".\n" * 9


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe("M", "the cat saw the dog"),
        Recipe("M", "the cat saw {x} the dog", regions=(("cat", 4, 7), ("dog", 20, 23))),
        Recipe("M", "the cat saw the cat", regions=(("cat", 16, 19), ("cat", 4, 7))),
        Recipe("M", "the cat saw the dog", regions=(("all_of_it", 0, 19), ("cat", 4, 7))),
        Recipe("M", "the cat saw the dog", regions=(("class", 4, 7),)),
        Recipe("M", "the cat saw the dog", True, "Be brief.", (("cat", 4, 7),)),
        Recipe("M", LONG, regions=(("brace", 2, 9),)),
        Recipe("M", LONG, True, None, (("some", 14, 18),)),
    ],
    ids=["plain", "regions", "twice", "nested", "keyword", "chat", "long", "long-chat"],
)
def test_the_cell_makes_the_same_prompt(recipe: Recipe, tiny_folder: Path) -> None:
    import headscope as hs

    recipe = Recipe.read({**explore.fields_of(recipe), "model": str(tiny_folder)})
    model = hs.load(str(tiny_folder))
    code = cell(recipe)
    head, _, last = code.strip().rpartition("\n")
    assert last == "model.view(prompt)"
    made: dict[str, Any] = {}
    exec(compile(head, "cell", "exec"), made)
    wanted = recipe.prompt(model)
    assert made["prompt"].ids == wanted.ids
    for name in {region[0] for region in recipe.regions}:
        assert made["prompt"].regions[name] == wanted.regions[name]


def test_the_cell_of_a_chat_with_regions_that_overlap_names_their_tokens(tiny_folder: Path) -> None:
    import headscope as hs

    recipe = Recipe(str(tiny_folder), "the cat saw the dog", True, None, (("some", 0, 7), ("cat", 4, 7)))
    model = hs.load(str(tiny_folder))
    wanted = recipe.prompt(model)

    class Shown:
        def meta(self) -> dict[str, Any]:
            runs = {name: [[at, at + 1] for at in found] for name, found in wanted.regions.items()}
            return {"regions": runs}

    made: dict[str, Any] = {}
    exec(compile(cell(recipe, Shown()).strip().rpartition("\n")[0], "cell", "exec"), made)
    assert made["prompt"].regions["cat"] == wanted.regions["cat"]
    assert made["prompt"].regions["some"] == wanted.regions["some"]


def test_the_cell_writes_tokens_and_runs_under_the_edit() -> None:
    code = cell(Recipe("m", "the cat", new_tokens=5, edit="edits/zero.json"), root=Path("runs"))
    compile(code, "cell", "exec")
    assert "model.view(prompt, max_new_tokens=5, edits=hs.interventions.load('runs/edits/zero.json', model))" in code


def test_head_sets_that_fit_are_statistics(make_app: Any) -> None:
    from headscope.probes.head_sets import HeadSet

    _, desk = make_app()
    folder = desk.workspace.path("heads")
    folder.mkdir(parents=True)
    HeadSet("mine", ((2, 1), (0, 0)), shape=(3, 2)).save(folder / "mine.json")
    HeadSet("other", ((2, 1),), shape=(4, 2)).save(folder / "other.json")
    HeadSet("outside", ((2, 5),)).save(folder / "outside.json")
    [only] = explore.named(desk, [2, 2, 2])
    assert only["name"] == "set:heads/mine.json"
    assert only["heads"] == [[2, 1], [0, 0]]


def test_any_model_can_be_typed_only_if_the_server_lets_it(make_app: Any) -> None:
    import dash_mantine_components as dmc

    _, listed = make_app()
    assert isinstance(parts(explore.layout(listed))["explore-model"], dmc.Select)
    with pytest.raises(ModelError, match="does not load 'gpt2'"):
        listed.look(Recipe("gpt2", "the cat"))
    _, free = make_app(any_model=True)
    assert isinstance(parts(explore.layout(free))["explore-model"], dmc.Autocomplete)


def test_edits_of_the_workspace_can_be_chosen(make_app: Any) -> None:
    _, desk = make_app()
    assert parts(explore.layout(desk))["explore-edit"].data == []
    path = desk.workspace.path("edits/zero.json")
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    assert parts(explore.layout(desk))["explore-edit"].data == [{"value": "edits/zero.json", "label": "zero.json"}]


def test_no_two_parts_of_the_page_have_one_id(make_app: Any) -> None:
    _, desk = make_app()
    names = [str(found.id) for found in explore.layout(desk)._traverse() if getattr(found, "id", None) is not None]
    assert sorted(names) == sorted(set(names))
