"""Rank without a browser: what is listed, shown, compared, made, stopped and gone on with, sent in and sent out."""

from __future__ import annotations

import base64
import importlib
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from dash import dcc

import headscope as hs
from headscope.app.components import ranking_compare, ranking_details, ranking_sets, ranking_table
from headscope.app.components.ranking_cell import cell
from headscope.app.components.ranking_files import Ranking, rankings, read
from headscope.app.components.ranking_form import FIELDS, form
from headscope.app.components.ranking_list import listing
from headscope.app.components.ranking_sets_tab import source
from headscope.app.components.ranking_table import pairs
from headscope.app.components.ranking_upload import receive
from headscope.app.components.ranking_work import (
    WORKS,
    Asked,
    Pace,
    asked,
    command_line,
    default_name,
    duration,
    make,
    unfinished,
    words_of,
    workload,
)
from headscope.app.jobs import Cancelled
from headscope.app.pages.rank import layout
from headscope.commands.ranking import Plan
from headscope.errors import CheckpointError, DataError, HeadscopeError, ModelError, RequestError
from headscope.probes.head_sets import HeadSet
from headscope.probes.scores import HeadScores
from tests.app.rankings import dose, put, ranking

SMALL = {"probes": ["induction"], "n": 4, "length": 16, "verify": False, "seed": 0}


@pytest.fixture
def desk(make_app: Any) -> Any:
    made = make_app()[1]
    made.workspace.root.mkdir(parents=True, exist_ok=True)
    return made


def text(component: Any) -> str:
    """Return all that a component says."""
    if component is None:
        return ""
    if isinstance(component, (str, int, float)):
        return str(component)
    if isinstance(component, (list, tuple)):
        return " ".join(map(text, component))
    return text(getattr(component, "children", None))


def parts(component: Any) -> dict[str, Any]:
    found = component if isinstance(component, list) else [component]
    every = [part for one in found for part in (one, *one._traverse())]
    return {str(part.id): part for part in every if getattr(part, "id", None) is not None}


# -- what is listed --------------------------------------------------------------------------------------------------


def test_rankings_are_listed_newest_first_and_once_whatever_their_formats(desk: Any) -> None:
    put(desk.workspace.root, "a/induction.parquet", ranking(created="2025-01-01T00:00:00+00:00"))
    for suffix in ("json", "csv", "parquet"):
        put(desk.workspace.root, f"b/sinks.{suffix}", ranking("sinks", created="2025-02-01T00:00:00+00:00"))
    found = rankings(desk)
    assert [one.file for one in found] == ["b/sinks.parquet", "a/induction.parquet"]
    assert found[0] == Ranking("b/sinks.parquet", "sinks", "toy", 12, 24, 2, (6, 4), "2025-02-01T00:00:00+00:00")
    assert [one.label for one in found] == ["b", "a"]


@pytest.mark.parametrize("suffix", ["json", "csv", "parquet"])
@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1}', b"a,b\n1,2\n", b"PAR1\0\0PAR1", bytes(range(256)) * 9])
def test_other_files_are_passed_over(desk: Any, suffix: str, content: bytes) -> None:
    (desk.workspace.root / f"x.{suffix}").write_bytes(content)
    (desk.workspace.root / "plain.txt").write_bytes(content)
    put(desk.workspace.root, "good.json", ranking())
    assert [one.file for one in rankings(desk)] == ["good.json"]


def test_a_file_that_changes_is_read_again_and_one_that_was_altered_is_refused(desk: Any) -> None:
    path = put(desk.workspace.root, "x.json", ranking())
    assert read(desk, "x.json") is read(desk, "x.json")
    put(desk.workspace.root, "x.json", ranking("sinks", seed=1))
    assert read(desk, "x.json").probe == "sinks"
    path.write_text(path.read_text().replace('"sinks"', '"other"', 1))
    with pytest.raises(DataError, match="altered"):
        read(desk, "x.json")
    with pytest.raises(RequestError, match="outside"):
        read(desk, "../x.json")


def test_the_list_is_filtered_by_all_words_and_marks_what_is_open(desk: Any) -> None:
    put(desk.workspace.root, "a/induction.json", ranking())
    put(desk.workspace.root, "b/sinks.json", ranking("sinks", model="other"))
    known = rankings(desk)
    assert len(listing(known, "", None)) == 2
    found = listing(known, "SINKS other", "b/sinks.json")
    assert [button.id for button in found] == [{"ranking": "b/sinks.json"}]
    assert found[0].className == "ranking-item open"
    assert "2 of 24" in text(found)
    assert "None of 2 rankings" in text(listing(known, "nothing", None))
    assert "No ranking is in the workspace" in text(listing([], "", None))


# -- the table -------------------------------------------------------------------------------------------------------


def test_every_head_has_a_row_with_its_numbers_best_first() -> None:
    scores = ranking()
    rows = ranking_table.rows(scores)
    assert [row["id"] for row in rows[:2]] == ["3.2", "4.1"]
    assert [row["rank"] for row in rows] == list(range(1, 25))
    for row in rows:
        known = scores.head(row["layer"], row["head"])
        assert (row["score"], row["ci_low"], row["n"]) == (known["score"], known["ci_low"], known["n"])
        assert row["selected"] == int(known["selected"])
        assert row["kind"] == known["kind"]
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_what_is_not_a_number_is_nothing_and_breaks_no_axis() -> None:
    table = ranking().table.assign(ci_low=float("nan"), ci_high=float("nan"), null_mean=float("nan"))
    table.loc[5, "score"] = float("nan")
    scores = HeadScores(table, "induction", {"model": {}})
    rows = ranking_table.rows(scores)
    assert rows[-1]["score"] is None
    assert all(row["ci_low"] is None for row in rows)
    low, high = ranking_table.bounds(scores.table)
    assert (low, high) == (0.0, 0.9)
    assert "null_mean" not in ranking_table.shown_at_first(scores)


def test_negative_scores_and_no_scores_have_an_axis_too() -> None:
    table = ranking().table
    assert ranking_table.bounds(table.assign(score=-0.5, ci_low=-0.7, ci_high=-0.4, null_mean=0.0)) == (-0.7, 0.0)
    nothing = table.assign(score=float("nan"), ci_low=float("nan"), ci_high=float("nan"), null_mean=float("nan"))
    assert ranking_table.bounds(nothing) == (0.0, 1.0)


def test_columns_of_the_probe_can_be_shown_and_numbers_colour_the_map() -> None:
    scores = ranking()
    names = [column["colId"] for column in ranking_table.columns(scores)]
    assert len(names) == len(set(names))
    assert {"interval", "q_value", "kind"} <= set(names)
    choices = [choice["value"] for choice in ranking_table.choices(scores)]
    assert set(ranking_table.shown_at_first(scores)) <= set(choices) <= set(names)
    measures = [measure["value"] for measure in ranking_table.measures(scores)]
    assert "q_value" in measures
    assert "kind" not in measures


# -- the page --------------------------------------------------------------------------------------------------------


def test_the_address_is_the_state_of_the_page(desk: Any) -> None:
    put(desk.workspace.root, "a.json", ranking())
    put(desk.workspace.root, "b.json", ranking("sinks"))
    query = {"with": "b.json", "set": None}
    page = parts(layout(desk, file="a.json", heads="3.2,4.1,x,1.2.3", tab="compare", k="7", columns="score,n", **query))
    assert page["rank-file"].data == "a.json"
    assert page["rank-heads"].data == ["3.2", "4.1"]
    assert page["rank-with"].value == ["b.json"]
    assert page["rank-tab"].value == "compare"
    assert page["rank-k"].value == 7
    assert page["rank-columns-asked"].data == ["score", "n"]


@pytest.mark.parametrize("query", [{"k": "-3", "tab": "zz"}, {"k": "1e9", "tab": ""}, {"k": "0", "heads": "<script>"}])
def test_an_address_that_makes_no_sense_gives_the_usual_page(desk: Any, query: dict[str, str]) -> None:
    put(desk.workspace.root, "a.json", ranking())
    page = parts(layout(desk, **query))
    assert page["rank-k"].value == 20
    assert page["rank-tab"].value == "heads"
    assert page["rank-heads"].data == []
    assert page["rank-file"].data == "a.json"


def test_an_empty_workspace_begins_with_a_new_ranking(desk: Any) -> None:
    assert parts(layout(desk))["rank-tab"].value == "new"


def test_every_field_of_the_form_has_a_label_or_a_name(desk: Any) -> None:
    page = parts(layout(desk))
    fields = {name: part for name, part in page.items() if type(part).__name__ in
              ("TextInput", "NumberInput", "Select", "MultiSelect", "Switch", "SegmentedControl")}  # fmt: skip
    assert len(fields) > 15
    for name, part in fields.items():
        props = part.to_plotly_json()["props"]
        assert props.get("label") or props.get("aria-label"), name


def test_heads_of_an_address_are_read_and_others_left_out() -> None:
    assert pairs(["18.6", "x", "1.", "2.3.4", "0.0"]) == [(18, 6), (0, 0)]
    assert pairs(None) == []


# -- side by side ----------------------------------------------------------------------------------------------------


def graphs(component: Any) -> list[Any]:
    return [part for part in component._traverse() if isinstance(part, dcc.Graph)]


def test_two_rankings_are_compared_with_intervals_and_chance(desk: Any) -> None:
    put(desk.workspace.root, "a.json", ranking())
    put(desk.workspace.root, "b.json", ranking("sinks", seed=3, best=((3, 2), (0, 0))))
    found = ranking_compare.compared(desk, "a.json", ["b.json", "a.json"])
    said = text(found)
    rho = hs.compare(read(desk, "a.json"), read(desk, "b.json")).correlations["spearman"]
    assert f"{rho.value:.3f}".replace("-", "−") in said
    assert "Spearman’s ρ of the scores [" in said
    assert "share 1 of 2 and 2 selected heads; chance would share 0.167" in said
    assert len(graphs(found)) == 2


def test_rankings_of_different_shape_are_compared_over_depth_and_say_why(desk: Any) -> None:
    put(desk.workspace.root, "a.json", ranking())
    put(desk.workspace.root, "b.json", ranking(layers=8, heads=8, model="larger"))
    said = text(ranking_compare.compared(desk, "a.json", ["b.json"]))
    assert "toy: 6 layers × 4 heads; larger: 8 layers × 8 heads" in said
    assert "course of the mean score" in said


def test_several_rankings_give_a_matrix_and_those_that_do_not_fit_are_named(desk: Any) -> None:
    for name, made in {
        "a": ranking(),
        "b": ranking("sinks", seed=2),
        "c": ranking("echo", seed=3),
        "d": ranking("previous", layers=9),
    }.items():
        put(desk.workspace.root, f"{name}.json", made)
    found = ranking_compare.compared(desk, "a.json", ["b.json", "c.json", "d.json"])
    assert "Not compared, because the model has other heads: previous." in text(found)
    assert "Spearman’s ρ of induction and previous over depth alone: the heads differ" in text(found)
    assert "Spearman’s ρ of induction and sinks [" in text(found)
    assert len(graphs(found)) >= 5


def test_rankings_of_one_name_are_told_apart_by_their_files(desk: Any) -> None:
    put(desk.workspace.root, "a.json", ranking())
    put(desk.workspace.root, "b.json", ranking(seed=4))
    said = text(ranking_compare.compared(desk, "a.json", ["b.json"]))
    assert "induction (1): a.json · induction (2): b.json" in said


def test_without_files_the_tab_says_what_to_do(desk: Any) -> None:
    assert "Open a ranking first" in text(ranking_compare.compared(desk, None, []))
    put(desk.workspace.root, "a.json", ranking())
    assert "Choose what to compare" in text(ranking_compare.compared(desk, "a.json", ["a.json"]))
    with pytest.raises(RequestError):
        ranking_compare.compared(desk, "a.json", ["../b.json"])


def test_heads_are_looked_up_in_all_rankings_of_their_model(desk: Any) -> None:
    put(desk.workspace.root, "a.json", ranking())
    put(desk.workspace.root, "b.json", ranking("sinks", best=((0, 0), (3, 2))))
    put(desk.workspace.root, "c.json", ranking("echo", model="other"))
    said = text(ranking_compare.elsewhere(desk, "a.json", [(3, 2)], rankings(desk)))
    assert "The picked heads in all rankings of toy" in said
    assert "#1  0.900" in said
    assert "#2  0.800" in said
    assert "echo" not in said


# -- details and report ----------------------------------------------------------------------------------------------


def test_details_show_removal_notes_and_provenance(desk: Any) -> None:
    put(desk.workspace.root, "a.json", ranking(dose=dose()))
    found = ranking_details.details(desk, "a.json")
    said = text(found)
    assert "What removing them does" in said
    assert "With the 2 best heads removed, accuracy is 0.3" in said
    assert "Only 12 independent sources." in said
    assert "print-toy" in said
    assert len(graphs(found)) == 2


def test_a_report_is_written_and_shown_under_its_own_policy(make_app: Any) -> None:
    app, desk = make_app()
    put(desk.workspace.root, "a/x y.json", ranking(dose=dose()))
    file = ranking_details.write(desk, "a/x y.json")
    assert file == "reports/a-x-y.html"
    client = app.server.test_client()
    shown = client.get("/rank/report/a-x-y.html")
    assert shown.status_code == 200
    assert b"Induction heads of toy" in shown.data
    policy = shown.headers["Content-Security-Policy"]
    assert "sandbox allow-scripts" in policy
    assert "allow-same-origin" not in policy
    assert "default-src 'none'" in policy
    assert policy.count("sha256-") == 2
    saved = client.get("/rank/report/a-x-y.html?download=1")
    assert saved.headers["Content-Disposition"].startswith("attachment")
    # Everything else keeps the policy of the pages.
    assert "sandbox" not in client.get("/rank").headers["Content-Security-Policy"]


@pytest.mark.parametrize("name", ["none.html", "..%2F..%2Fa.html", "a.json", "%2Fetc%2Fpasswd"])
def test_only_reports_of_the_workspace_are_served(make_app: Any, name: str) -> None:
    app, desk = make_app()
    put(desk.workspace.root, "reports/a.json", ranking())
    (desk.workspace.root.parent / "a.html").write_text("outside")
    answer = app.server.test_client().get(f"/rank/report/{name}")
    assert answer.status_code in (404, 308) or b"<!DOCTYPE" in answer.data
    assert b"outside" not in answer.data


# -- head sets -------------------------------------------------------------------------------------------------------


def test_picked_heads_are_saved_renamed_deleted_and_brought_back(desk: Any) -> None:
    scores = ranking()
    file = ranking_sets.save(
        desk, " mine ", [(3, 2), (4, 1)], scores, source=source(scores, [(3, 2), (4, 1)], "a.json")
    )
    assert file == "heads/mine.json"
    found = hs.probes.HeadSet.load(desk.workspace.root / file)
    assert (found.name, found.heads, found.source) == ("mine", ((3, 2), (4, 1)), "a.json, all that pass")
    assert found.shape == (6, 4)
    with pytest.raises(RequestError, match="already"):
        ranking_sets.save(desk, "mine", [(0, 0)], scores, source="")
    moved = ranking_sets.rename(desk, file, "ours")
    assert moved == "heads/ours.json"
    assert not (desk.workspace.root / file).exists()
    ranking_sets.delete(desk, moved)
    assert not (desk.workspace.root / moved).exists()
    ranking_sets.restore(desk, moved)
    assert ranking_sets.load(desk, moved).heads == ((3, 2), (4, 1))
    with pytest.raises(RequestError, match="gone"):
        ranking_sets.restore(desk, moved)


def test_what_brings_a_set_back_replaces_no_other(desk: Any) -> None:
    file = ranking_sets.save(desk, "a", [(3, 2)], ranking(), source="")
    ranking_sets.delete(desk, file)
    ranking_sets.save(desk, "a", [(0, 0)], ranking(), source="")
    with pytest.raises(RequestError, match="another set has its name"):
        ranking_sets.restore(desk, file)
    assert ranking_sets.load(desk, file).heads == ((0, 0),)


@pytest.mark.parametrize("name", ["", "  ", "../x", "a/b", "x" * 90, ".hidden", "a\n"])
def test_names_that_are_none_are_refused(desk: Any, name: str) -> None:
    if name.strip() != "a":
        with pytest.raises(RequestError):
            ranking_sets.save(desk, name, [(0, 0)], ranking(), source="")
    assert not list(desk.workspace.root.rglob("*.json")) or name.strip() == "a"


def test_nothing_picked_is_nothing_saved(desk: Any) -> None:
    with pytest.raises(RequestError, match="No head is picked"):
        ranking_sets.save(desk, "a", [], ranking(), source="")


def test_sets_are_combined_and_their_overlap_set_against_chance(desk: Any) -> None:
    scores = ranking()
    a = ranking_sets.save(desk, "a", [(0, 0), (0, 1), (0, 2)], scores, source="")
    b = ranking_sets.save(desk, "b", [(0, 1), (0, 2), (5, 3)], scores, source="")
    assert ranking_sets.combined(desk, a, b, "union").heads == ((0, 0), (0, 1), (0, 2), (5, 3))
    assert ranking_sets.combined(desk, a, b, "intersection").heads == ((0, 1), (0, 2))
    assert ranking_sets.combined(desk, a, b, "difference", "rest").name == "rest"
    said = ranking_sets.shared(ranking_sets.load(desk, a), ranking_sets.load(desk, b))
    # 3 of 24 and 3 of 24: by chance 9 / 24 are shared; P(at least 2) = (3 * 21 + 1) / C(24, 3).
    assert "share 2 heads; two random sets of these sizes share 0.375 on average (p = 0.032)" in said
    with pytest.raises(RequestError, match="combined by"):
        ranking_sets.combined(desk, a, b, "_combined")


def test_a_set_of_another_model_is_not_picked_in_this_ranking() -> None:
    ranking_sets.of_ranking(HeadSet.of("a", ranking()), ranking("sinks"))
    for other in (ranking(model="other"), ranking(layers=9)):
        with pytest.raises(RequestError, match="same model"):
            ranking_sets.of_ranking(HeadSet.of("a", ranking()), other)


def test_where_picked_heads_come_from_is_told() -> None:
    scores = ranking(best=((3, 2), (4, 1), (5, 0)))
    assert source(scores, [(4, 1), (3, 2), (5, 0)], "x.json") == "x.json, all that pass"
    assert source(scores, [(3, 2), (4, 1)], "x.json") == "x.json, top 2"
    assert source(scores, [(3, 2), (0, 0)], "x.json") == "x.json, picked"


def test_a_set_is_handed_on_as_python_and_as_an_option(desk: Any) -> None:
    file = ranking_sets.save(desk, "my set", [(3, 2)], ranking(), source="")
    assert eval(ranking_sets.python(desk, file), {"hs": hs}) == ((3, 2),)
    assert ranking_sets.argument(desk, file).startswith("--heads '")
    assert "L3H2" in text(ranking_sets.card(desk, file))


# -- files that are sent ---------------------------------------------------------------------------------------------


def sent(path: Path) -> str:
    return "data:application/octet-stream;base64," + base64.b64encode(path.read_bytes()).decode()


@pytest.mark.parametrize("suffix", ["parquet", "json"])
def test_a_ranking_that_is_sent_enters_the_workspace_and_replaces_nothing(
    desk: Any, tmp_path: Path, suffix: str
) -> None:
    path = ranking().save(tmp_path / f"x.{suffix}")
    assert receive(desk, [sent(path)], [f"C:\\data\\my x.{suffix}"]) == f"uploads/my-x.{suffix}"
    assert receive(desk, [sent(path)], [f"../../my x.{suffix}"]) == f"uploads/my-x-2.{suffix}"
    assert read(desk, f"uploads/my-x.{suffix}").top(1) == [(3, 2)]


def test_a_csv_needs_what_stands_beside_it(desk: Any, tmp_path: Path) -> None:
    path = ranking().save(tmp_path / "x.csv")
    beside = tmp_path / "x.csv.meta.json"
    for order in ([path, beside], [beside, path]):
        file = receive(desk, [sent(one) for one in order], [one.name for one in order])
        assert read(desk, file).probe == "induction"
    with pytest.raises(DataError, match="missing beside it"):
        receive(desk, [sent(path)], ["x.csv"])
    with pytest.raises(RequestError, match="both files together"):
        receive(desk, [sent(beside)], ["x.csv.meta.json"])


def test_a_head_set_that_is_sent_lies_among_the_sets(desk: Any, tmp_path: Path) -> None:
    path = HeadSet.of("mine", ranking()).save(tmp_path / "mine.json")
    assert receive(desk, [sent(path)], ["mine.json"]) == "heads/mine.json"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.html", "data:;base64,PGI+"),
        ("x.json", "data:;base64,e30="),
        ("x.parquet", "data:;base64,UEFSMQ=="),
        ("x.json", "data:;base64,***"),
        ("x.json", "no comma"),
        (".json", "data:;base64,e30="),
        ("x.pkl", "data:;base64,gASVAA=="),
    ],
)
def test_other_files_that_are_sent_leave_nothing_behind(desk: Any, name: str, content: str) -> None:
    with pytest.raises(HeadscopeError):
        receive(desk, [content], [name])
    assert not [path for path in desk.workspace.root.rglob("*") if path.is_file() and "jobs" not in str(path)]


def test_a_ranking_of_more_heads_than_any_model_has_is_refused(desk: Any, tmp_path: Path) -> None:
    made = ranking()
    source = {"model": {**made.provenance["model"], "n_layers": 10**9}}
    path = HeadScores(made.table, "induction", source).save(tmp_path / "x.json")
    with pytest.raises(RequestError, match="1000000000 layers"):
        receive(desk, [sent(path)], ["x.json"])


def test_a_file_over_the_limit_is_refused(make_app: Any, tmp_path: Path) -> None:
    desk = make_app(upload_bytes=1000)[1]
    path = ranking().save(tmp_path / "x.json")
    with pytest.raises(RequestError, match="Copy it into the workspace"):
        receive(desk, [sent(path)], ["x.json"])


# -- rankings that are made ------------------------------------------------------------------------------------------


def test_what_a_form_asks_for_becomes_a_plan(desk: Any) -> None:
    values = {
        "model": desk.settings.model,
        "probes": ["retrieval", "sinks"],
        "n": "5",
        "lengths": "256, 512 256",
        "teacher": True,
        "verify": True,
        "k": "1,5",
        "controls": 3,
        "trials": "",
        "seed": None,
    }
    found = asked(desk, values)
    assert found.plan == Plan(("retrieval", "sinks"), n=5, lengths=(256, 512), teacher=True, k=(1, 5), controls=3)
    again = asked(desk, {**values, **words_of(found.plan)})
    assert again == found
    assert found.folder.startswith("rankings/")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"probes": []}, "at least one probe"),
        ({"probes": ["nonsense"]}, "no probe"),
        ({"n": 0}, "Samples"),
        ({"n": 2.5}, "Samples"),
        ({"n": 10**9}, "Samples"),
        ({"length": "x"}, "Text length"),
        ({"probes": ["retrieval"], "lengths": "512,-3"}, "Context lengths"),
        ({"verify": True, "k": "0"}, "Heads to remove"),
        ({"verify": True, "trials": 1}, "Trials"),
        ({"verify": True, "ablation": "burn"}, "ablation"),
        ({"name": "../../x"}, "no name for a file"),
        ({"seed": "nan"}, "Seed"),
    ],
)
def test_a_form_that_makes_no_sense_says_which_field(desk: Any, changed: dict[str, Any], says: str) -> None:
    with pytest.raises(HeadscopeError, match=says):
        asked(desk, {"model": desk.settings.model, **SMALL, **changed})


def test_a_model_that_is_not_on_the_list_is_refused(desk: Any) -> None:
    with pytest.raises(ModelError, match="does not load"):
        asked(desk, {**SMALL, "model": "someone/else"})


def test_equal_settings_have_one_name_and_others_another() -> None:
    names = {default_name("org/Model-1B", plan) for plan in (Plan(("echo",)), Plan(("echo",)), Plan(("echo",), n=3))}
    assert len(names) == 2
    assert all(name.startswith("Model-1B echo ") for name in names)
    assert default_name("/tmp/über modell/", Plan(("echo", "sinks"))).startswith("ber-modell 2 probes ")


def test_the_command_line_makes_the_same_plan() -> None:
    from typer.testing import CliRunner

    from headscope import cli
    from headscope.commands import rank as command

    plan = Plan(("induction", "sinks"), n=5, length=64, seed=3, controls=4, k=(1, 2), trials=3, ablation="zero")
    line = command_line(Asked("some-model", plan, "my name"), Path("runs"))
    made: list[Any] = []

    def stop(plan: Plan, model: Any, folder: Path, phase: Any, *, fresh: bool) -> Any:
        made.append((plan, folder))
        raise DataError("enough")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "carry_out", stop)
        patch.setattr(importlib.import_module("headscope.models.load"), "load", lambda name, **options: name)
        CliRunner().invoke(cli.app, shlex.split(line)[1:])
    assert made == [(plan, Path("runs/rankings/my name"))]


def test_how_much_is_run_is_told_before() -> None:
    said = workload(Plan(("induction", "previous"), n=4, k=(1, 5), controls=3, trials=2))
    assert said.startswith("Runs 4 blocks of repeated tokens once. For each probe, 2 trials")
    assert "9 removals" in said
    assert workload(Plan(("sinks",), verify=False)) == "Runs 28 texts once."


def test_the_time_that_is_left_is_not_guessed_from_nothing() -> None:
    clock = iter([0.0, 10.0, 20.0, 30.0])
    pace = Pace(lambda: next(clock))
    assert pace.left("a", 3, 10) == ""  # three were finished before
    assert pace.left("a", 4, 10) == ""
    assert pace.left("a", 5, 10) == ", about 50 s left"
    assert pace.left("a", 10, 10) == ""
    assert duration(1) == "5 s"
    assert duration(58) == "1 min"


def test_a_ranking_is_made_and_can_be_opened(desk: Any) -> None:
    wanted = asked(desk, {"model": desk.settings.model, **SMALL, "probes": ["induction", "previous"], "name": "both"})
    told: list[tuple[str, int, int]] = []
    file = make(desk, wanted, lambda *said: told.append(said))
    assert file == "rankings/both/induction.parquet"
    assert {one.file for one in rankings(desk)} == {file, "rankings/both/previous.parquet"}
    assert read(desk, file).provenance["data"]["n"] == 4
    assert any(done == total == 4 for _, done, total in told)
    assert not WORKS.of(desk)
    assert not unfinished(desk)


def test_a_cancelled_ranking_goes_on_where_it_stopped_and_comes_out_the_same(desk: Any) -> None:
    wanted = asked(desk, {"model": desk.settings.model, **SMALL, "name": "cut"})

    def stop(text: str, done: int, total: int) -> None:
        if done == 2 and total == 4:
            raise Cancelled

    with pytest.raises(Cancelled):
        make(desk, wanted, stop)
    assert not WORKS.of(desk)
    assert unfinished(desk) == [wanted]
    assert "Go on" in text(form(desk))
    first: list[int] = []
    file = make(desk, unfinished(desk)[0], lambda text, done, total: first.append(done) if total == 4 else None)
    assert min(first) == 2, "finished samples were run again"
    whole = asked(desk, {"model": desk.settings.model, **SMALL, "name": "whole"})
    other = make(desk, whole, lambda *said: None)
    pd.testing.assert_frame_equal(read(desk, file).table, read(desk, other).table)


def test_what_runs_is_seen_from_elsewhere_stopped_and_not_started_twice(desk: Any) -> None:
    wanted = asked(desk, {"model": desk.settings.model, **SMALL, "name": "busy"})
    seen: list[str] = []

    def look(said: str, done: int, total: int) -> None:
        if total != 4 or done != 1:
            return
        seen.append(text(form(desk)))
        with pytest.raises(RequestError, match="being made already"):
            make(desk, wanted, lambda *told: None)
        WORKS.of(desk)[0].stop.set()

    with pytest.raises(Cancelled):
        make(desk, wanted, look)
    assert "busy" in seen[0]
    assert "Stop" in seen[0]
    assert "Ranking: repeated tokens · 1 of 4" in seen[0]
    assert [one.name for one in unfinished(desk)] == ["busy"]


def test_another_ranking_in_the_same_folder_is_told_apart_and_can_begin_anew(desk: Any) -> None:
    values = {"model": desk.settings.model, **SMALL, "name": "one"}
    make(desk, asked(desk, values), lambda *said: None)
    other = asked(desk, {**values, "length": 24})
    with pytest.raises(CheckpointError, match="belongs to another run"):
        make(desk, other, lambda *said: None)
    file = make(desk, other, lambda *said: None, fresh=True)
    assert read(desk, file).provenance["data"]["parameters"]["length"] == 24


def test_a_plan_that_cannot_be_read_is_not_offered(desk: Any) -> None:
    wanted = asked(desk, {"model": desk.settings.model, **SMALL, "name": "one"})
    wanted.save(desk)
    assert unfinished(desk) == [wanted]
    copy = desk.workspace.root / "rankings" / "two"
    shutil.copytree(desk.workspace.root / "rankings" / "one", copy)
    assert {one.name for one in unfinished(desk)} == {"one", "two"}
    (copy / "plan.json").write_text('{"format": "headscope.plan/1", "model": "m", "plan": {"evil": 1}}')
    assert unfinished(desk) == [wanted]
    with pytest.raises(RequestError, match="does not say"):
        Asked.load(copy / "plan.json")


def test_the_form_has_every_field_of_a_plan(desk: Any) -> None:
    found = parts(form(desk))
    assert all(f"rank-run-{name}" in found for name in FIELDS)


# -- notebook cell ---------------------------------------------------------------------------------------------------


def test_the_notebook_cell_runs_and_shows_the_picked_heads(tmp_path: Path) -> None:
    put(tmp_path, "a.json", ranking())
    put(tmp_path, "b.json", ranking("sinks", seed=2))
    shown: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("plotly.graph_objects.Figure.show", lambda figure: shown.append(figure))
        for arguments in (
            {"heads": ["3.2", "0.0"], "colour": "q_value"},
            {"heads": []},
            {"heads": ["3.2"], "beside": ["b.json"]},
            {"heads": [], "beside": ["b.json", "b.json"]},
        ):
            lines = cell(tmp_path, "a.json", **arguments)
            names: dict[str, Any] = {}
            exec(compile(lines, "cell", "exec"), names)
            assert names["scores"].probe == "induction"
    assert len(shown) == 5
    assert shown[0].data[0].name == "q_value"
