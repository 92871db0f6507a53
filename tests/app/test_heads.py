"""Choosing heads on a page: what is kept, what it comes to, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headscope.app.components.heads import (
    chosen,
    describe_heads,
    head_sets,
    heads_argument,
    heads_picker,
    ranking_files,
    resolve_heads,
)
from headscope.errors import HeadscopeError, RequestError
from headscope.probes.head_sets import HeadSet
from tests.app.rankings import put, ranking


@pytest.fixture
def desk(make_app: Any) -> Any:
    return make_app()[1]


@pytest.fixture
def model(desk: Any) -> Iterator[Any]:
    with desk.model(desk.settings.model) as model:
        yield model


def of_model(model: Any, probe: str = "induction") -> Any:
    """Return a ranking that says it is of ``model``: (3, 2) is best, (4, 1) second."""
    from dataclasses import replace

    made = ranking(probe, layers=model.spec.n_layers, heads=model.spec.n_heads)
    source = {**made.provenance["model"], "name": model.name, "fingerprint": model.fingerprint}
    return replace(made, provenance={**made.provenance, "model": source})


@pytest.mark.parametrize("data", [None, {}, {"kind": "nonsense"}, {"kind": "all", "top": "x"}])
def test_whatever_a_store_lacks_all_heads_are_meant(desk: Any, data: Any) -> None:
    assert chosen(data) == {"kind": "all", "text": "", "file": None, "top": None}
    assert resolve_heads(desk, None, data) == "all"
    assert heads_argument(desk, data) == ["--heads", "all"]


def test_typed_heads_are_those_of_the_command_line(desk: Any, model: Any) -> None:
    data = {"kind": "typed", "text": "L3H2, 1.* 3.2"}
    heads = model.spec.n_heads
    assert resolve_heads(desk, model, data) == ((3, 2), *((1, head) for head in range(heads)))
    assert heads_argument(desk, data) == ["--heads", "L3H2,1.*,3.2"]


@pytest.mark.parametrize("text", ["", "all", "a.json", "../x.parquet", "3", "3.2;4.1", "99.0"])
def test_what_is_no_head_is_refused_and_no_file_is_read(desk: Any, model: Any, text: str) -> None:
    with pytest.raises(RequestError):
        resolve_heads(desk, model, {"kind": "typed", "text": text})


def test_a_set_and_the_best_of_a_ranking_come_from_the_workspace(desk: Any, model: Any) -> None:
    scores = of_model(model)
    put(desk.workspace.root, "a/induction.parquet", scores)
    HeadSet.of("mine", scores, [(4, 1), (0, 0)]).save(desk.workspace.root / "heads" / "mine.json")
    assert head_sets(desk) == {"heads/mine.json": "mine"}
    assert ranking_files(desk) == ["a/induction.parquet"]
    assert resolve_heads(desk, model, {"kind": "set", "file": "heads/mine.json"}) == ((4, 1), (0, 0))
    best = {"kind": "top", "file": "a/induction.parquet", "top": 1}
    assert resolve_heads(desk, model, best) == ((3, 2),)
    assert resolve_heads(desk, model, {**best, "top": None}) == ((3, 2), (4, 1))
    assert heads_argument(desk, best) == ["--heads", str(desk.workspace.root / "a/induction.parquet"), "--top", "1"]
    assert describe_heads(desk, best) == f"1 head: L3H2 of {model.name}."
    assert describe_heads(desk, {"kind": "set", "file": "heads/mine.json"}) == f"2 heads: L4H1, L0H0 of {model.name}."


@pytest.mark.parametrize("file", ["../outside.json", "/etc/passwd", "none.json", "run.txt"])
def test_files_outside_missing_or_of_another_kind_are_refused(desk: Any, model: Any, file: str) -> None:
    (desk.workspace.root.parent / "outside.json").write_text("{}")
    (desk.workspace.root).mkdir(exist_ok=True)
    for data in ({"kind": "set", "file": file}, {"kind": "top", "file": file, "top": 3}):
        with pytest.raises(RequestError):
            resolve_heads(desk, model, data)


def test_a_set_of_another_model_is_refused(desk: Any, model: Any) -> None:
    HeadSet("far", ((0, 0),), "another", "other").save(desk.workspace.root / "heads" / "far.json")
    with pytest.raises(RequestError, match="weights differ"):
        resolve_heads(desk, model, {"kind": "set", "file": "heads/far.json"})


def test_what_is_not_chosen_yet_is_asked_for(desk: Any) -> None:
    for kind, word in (("set", "head set"), ("top", "ranking")):
        with pytest.raises(RequestError, match=word):
            resolve_heads(desk, None, {"kind": kind})
        assert describe_heads(desk, {"kind": kind}) == ""


def test_other_json_files_are_no_sets_and_no_rankings(desk: Any) -> None:
    folder: Path = desk.workspace.root / "heads"
    folder.mkdir(parents=True)
    (folder / "notes.json").write_text('{"format": "something else"}')
    (folder / "broken.json").write_text("{")
    assert head_sets(desk) == {}
    assert ranking_files(desk) == []


def test_the_picker_shows_what_the_address_asks_for_even_if_it_is_gone(desk: Any) -> None:
    made = heads_picker(desk, "x", kind="set", file="heads/gone.json")
    parts = {part.id: part for part in made._traverse() if getattr(part, "id", None)}
    assert parts["x-heads"].data == {"kind": "set", "text": "", "file": "heads/gone.json", "top": None}
    assert parts["x-heads-set"].value == "heads/gone.json"
    assert parts["x-heads-sets"].hidden is False
    assert parts["x-heads-typed"].hidden is True
    with pytest.raises(HeadscopeError):
        describe_heads(desk, parts["x-heads"].data)
