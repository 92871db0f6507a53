"""The form of a method: read off its class, checked in words of the page, and the same as the command line."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from headscope.app import steering
from headscope.app.components import method, method_asked
from headscope.app.components.method_asked import GENERAL, Asked
from headscope.app.components.method_fields import (
    LEARNT,
    LEFT_OUT,
    MAIN,
    TITLES,
    VALUED,
    about,
    fields_of,
    parameters,
    takes_heads,
    text_of,
)
from headscope.app.runs import Recipe
from headscope.commands.methods import TRAINED, kinds_of, read, required
from headscope.commands.steer import steer
from headscope.errors import RequestError
from headscope.interventions.registry import METHODS, find_method
from headscope.interventions.strength import strength

DOCS = Path(__file__).parents[2] / "docs/interventions"
TEXT = "The name is: bivq. The word is: cojx. The answer:"
MARKED = (("name", 13, 17), ("word", 32, 36))


def recipe(desk: Any, **changes: Any) -> Recipe:
    return Recipe(**{"model": desk.settings.model, "text": TEXT, "regions": MARKED, "new_tokens": 3, **changes})


def asked(desk: Any, name: str, given: dict[str, Any] | None = None, heads: Any = None, **changes: Any) -> Asked:
    document = {"recipe": recipe(desk, **changes).__dict__, "method": name, "fields": given or {}, "heads": heads}
    return Asked.read(document)


# -- what a class says of itself -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VALUED)
def test_every_field_of_a_method_has_a_control_with_its_default_and_what_the_class_says(name: str) -> None:
    cls, known = find_method(name), {field.name: field for field in fields_of(name)}
    kinds, said = kinds_of(cls), parameters(cls)
    for field in fields(cls):
        if not field.init or field.name in LEFT_OUT:
            assert field.name not in known
            continue
        shown = known[field.name]
        assert shown.about == said[field.name] != ""
        if required(field) or field.name in LEARNT.get(name, {}):
            assert shown.default == ""
            continue
        assert shown.default == text_of(field.default)
        if shown.default:
            assert read(shown.default, kinds[field.name], "") == field.default
        if shown.kind == "choice":
            assert shown.default in ("", *shown.options)
        if shown.kind in ("number", "whole"):
            assert shown.step > 0
    assert takes_heads(name) == (name != "pine")


@pytest.mark.parametrize("name", METHODS)
def test_what_is_said_of_a_method_is_its_documentations(name: str) -> None:
    told = about(name)
    assert told.title == TITLES[name] == (DOCS / f"{name}.md").read_text(encoding="utf-8").split("\n")[0].strip("# ")
    assert len(told.line) > 20
    assert told.line[0].isupper()
    assert "``" not in told.text
    if name != "ablation":
        assert any(year in told.paper for year in ("2022", "2023", "2024", "2025"))


def test_the_number_that_a_sweep_begins_with_is_the_one_that_a_method_is_neutral_by() -> None:
    made = {"var": {"dimensions": (0,)}, "ablation": {"heads": "all"}}
    for name in VALUED:
        cls = find_method(name)
        names = {field.name for field in fields(cls)}
        given = made.get(name, {}) | ({"region": "r"} if "region" in names and name != "ablation" else {})
        given |= {"source": "r"} if name == "knockout" else {"segments": ("a", "b")} if name == "pine" else {}
        main = strength(cls(**given))
        assert MAIN.get(name) == (None if main is None else main[0])


@pytest.mark.parametrize("name", METHODS)
def test_the_form_of_every_method_can_be_drawn(name: str, make_app: Any) -> None:
    _, desk = make_app()
    found = method.form_of(desk, "steer", name, {}, None)
    drawn = [one for part in found for one in (part, *part._traverse())]
    labels = [one.label for one in drawn if getattr(one, "label", None) and type(one).__name__ != "Tooltip"]
    if name in VALUED:
        assert labels == [field.name for field in fields_of(name)]
        described = [one.description for one in drawn if getattr(one, "description", None)]
        assert len(described) == len(labels)
    else:
        assert labels == ["Edit file of the workspace"]
        words = " ".join(str(one.children) for one in drawn if isinstance(getattr(one, "children", None), str))
        assert ("headscope tune" if name != "sae" else "hs.interventions.save") in words
        assert name in TRAINED
        assert "edits" in words


def test_controls_hold_what_an_address_says() -> None:
    given = method_asked.from_query({"method": "knockout", "set.source": "name,3", "set.layers": "2-4", "top": "x"})
    assert given["fields"] == {"source": "name,3", "layers": "2-4"}
    assert method.raw("knockout", given["fields"]) == {"source": ["name", "3"], "layers": "2-4"}
    assert method.raw("pasta", {"alpha": "0.1", "mode": "include"}) == {"alpha": 0.1, "mode": "include"}
    assert method.raw("pasta", {"alpha": "much"}) == {"alpha": "much"}
    assert method_asked.from_query({"method": "<script>"})["method"] == "pasta"
    assert method_asked.from_query({"edit": "edits/a.json"})["method"] == method_asked.SAVED


# -- what is asked for ---------------------------------------------------------------------------------------------


def test_values_that_are_the_defaults_are_left_out(make_app: Any) -> None:
    _, desk = make_app()
    given = {"region": ["name"], "alpha": 0.01, "mode": "exclude", "stack": "", "heads": "x", "unknown": 1}
    found = asked(desk, "pasta", given, {"kind": "all"}, edit="edits/other.json")
    assert found.fields == {"region": "name"}
    assert found.recipe.edit is None
    assert Asked.read(found.document()) == found
    assert found.name(desk) == asked(desk, "pasta", {"region": "name"}, {"kind": "all"}).name(desk)
    assert found.name(desk) != asked(desk, "pasta", {"region": "word"}, {"kind": "all"}).name(desk)


@pytest.mark.parametrize("document", [None, [], {}, {"method": "pasta"}, {"method": "magic", "recipe": {}}])
def test_what_is_no_request_is_refused(document: Any) -> None:
    with pytest.raises(RequestError):
        Asked.read(document)


def test_a_file_that_is_written_anew_makes_another_result(make_app: Any) -> None:
    _, desk = make_app()
    path = desk.workspace.path("edits/a.json")
    path.parent.mkdir(parents=True)
    document = {"recipe": recipe(desk).__dict__, "method": "saved", "file": "edits/a.json"}
    path.write_text("{}")
    one = Asked.read(document).name(desk)
    path.write_text("{ }")
    assert Asked.read(document).name(desk) != one


WRONG = [
    ("pasta", {}, None, "region", "Choose a region of the prompt"),
    ("pasta", {"region": ["nowhere"]}, None, "region", "no region 'nowhere'"),
    ("pasta", {"region": ["name"], "alpha": -1}, None, "alpha", "above 0"),
    ("pasta", {"region": ["name"], "alpha": "much"}, None, "alpha", "is not a number"),
    ("pasta", {"region": ["name"], "mode": "include"}, None, GENERAL, "alpha must be above 1"),
    ("pasta", {"region": ["name"], "mode": "generation"}, None, GENERAL, "clear the region"),
    ("spotlight", {"region": ["name"], "psi": 2}, None, "psi", "at most 1"),
    ("spotlight", {}, None, "region", "Choose a region"),
    ("knockout", {}, None, "source", "Choose a region"),
    ("knockout", {"source": ["name"], "target": ["there"]}, None, "target", "no region 'there'"),
    ("knockout", {"source": ["name"], "layers": "two"}, None, "layers", "list"),
    ("var", {}, None, "region", "Choose a region"),
    ("pine", {}, None, "segments", "two regions or more"),
    ("pine", {"segments": ["name"]}, None, "segments", "one order"),
    ("ablation", {}, {"kind": "typed", "text": ""}, "heads", "Say what to remove"),
    ("ablation", {"mode": "mask"}, {"kind": "all"}, "region", "Choose a region"),
    ("temperature", {}, {"kind": "typed", "text": "1.x"}, "heads", "no head"),
    ("temperature", {}, {"kind": "typed", "text": ""}, "heads", "No head is listed"),
    ("act", {}, {"kind": "set"}, "heads", "Choose a head set"),
    ("act", {}, {"kind": "top"}, "heads", "Choose a ranking"),
    ("act", {}, {"kind": "set", "file": "../secret.json"}, "heads", "outside the workspace"),
    ("act", {"threshold": 2}, None, "threshold", "at most 1"),
    ("lofit", {}, None, "file", "Choose the file"),
    ("saved", {}, None, "file", "Choose the file"),
]


@pytest.mark.parametrize(("name", "given", "heads", "at", "said"), WRONG)
def test_what_is_wrong_is_told_at_its_field_in_words_of_the_page(
    name: str, given: Any, heads: Any, at: str, said: str, make_app: Any
) -> None:
    _, desk = make_app()
    found = method_asked.wrong(desk, asked(desk, name, given, heads or {"kind": "all"}))
    assert list(found) == [at]
    assert said in found[at]
    assert "--" not in found[at]


def test_without_a_region_in_the_prompt_the_page_says_how_to_mark_one(make_app: Any) -> None:
    _, desk = make_app()
    found = method_asked.wrong(desk, asked(desk, "pasta", regions=()))
    assert "Mark selection" in found["region"]
    assert "empty" in method_asked.wrong(desk, asked(desk, "act", text="  "))["prompt"]
    assert "at least 1" in method_asked.wrong(desk, asked(desk, "act", new_tokens=0))["prompt"]


RIGHT = [
    ("pasta", {"region": ["name"], "alpha": 0.5}, "2-4.*"),
    ("pasta", {"region": ["word", "name"], "generated": "rest"}, "3.1,2.0"),
    ("pasta", {"region": ["name", "2"], "alpha": 3, "mode": "include"}, "all"),
    ("pasta", {"mode": "generation", "alpha": 0.2}, "all"),
    ("act", {"beta": 0.1, "layers": "1-4", "threshold": 0.05}, "all"),
    ("zerotuning", {"gamma": 0.25}, "all"),
    ("zerotuning", {"gamma": 0.25, "token": ["0", "1"]}, "2.*"),
    ("spotlight", {"region": ["name"], "psi": 0.4}, "all"),
    ("knockout", {"source": ["name"], "target": ["word"], "layers": "0-2"}, "all"),
    ("knockout", {"source": ["name", "last"], "target": ["last", "generated"]}, "1.2,4.3"),
    ("temperature", {"temperature": 0.7}, "all"),
    ("pai", {"region": ["word"], "alpha": 0.6, "queries": "last", "layers": "2-5"}, "all"),
    ("ablation", {"layers": "3", "mlps": "1,2", "neurons": "0.3,0.5"}, "none"),
    ("ablation", {"mode": "mean"}, "2.1,2.3"),
    ("ablation", {"mode": "resample", "seed": 3}, "2.1"),
    ("ablation", {"mode": "mask", "region": ["name"]}, "2.*"),
    ("var", {"region": "name", "dimensions": "3,5", "tau": 2.5, "keep_fraction": 0.2}, "all"),
]


# The chat template moves regions: whether it is on matters where there are some.
IN_CHAT = [(*one, True) for one in RIGHT if one[0] in ("pasta", "knockout")]


@pytest.mark.parametrize(("name", "given", "heads", "chat"), [*((*one, False) for one in RIGHT), *IN_CHAT])
def test_the_copied_python_and_the_copied_command_do_the_same(
    name: str, given: Any, heads: str, chat: bool, make_app: Any, tmp_path: Path
) -> None:
    _, desk = make_app()
    wanted = asked(desk, name, given, method_asked.heads_from(heads), chat=chat, system="Hm." if chat else None)
    assert method_asked.wrong(desk, wanted) == {}
    made = steering.compare(desk, wanted, lambda *said: None)
    document = steering.found(desk, made)
    assert document is not None
    for code in (document["python"], document["cell"]):
        space: dict[str, Any] = {}
        with contextlib.redirect_stdout(io.StringIO()):
            exec(code, space)
        assert space["found"].steered.text == document["steered"]["text"]
        assert list(space["found"].steered.steered) == document["steered"]["steered"]
        assert list(space["found"].base.base) == document["base"]["base"]

    app = typer.Typer()
    app.command()(steer)
    head, command, *words = shlex.split(document["command"])
    assert (head, command) == ("headscope", "steer")
    out = tmp_path / "cli.json"
    result = CliRunner().invoke(app, [*words, "--out", str(out), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["steered"]["text"] == document["steered"]["text"]
    # Equal in every number, banks of reference outputs included.
    files = (out, desk.workspace.path(f"{steering.FOLDER}/{made}.edit.json"))
    assert len({path.read_text().split('"interventions"')[1] for path in files}) == 1
