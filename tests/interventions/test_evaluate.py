"""An evaluation finds the gain that was planted, says what a gain is made of, and cannot be fooled by a method."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from headscope.attention.edits import HeadEdit
from headscope.errors import CheckpointError, DataError, ModelError, RequestError
from headscope.interventions import ACT, PASTA, SteeringVector, ZeroTuning, drift, evaluate, findings, summary, sweep
from headscope.interventions.answers import Forced
from headscope.interventions.measurements import Answered, Measurements
from headscope.interventions.reading import Written
from headscope.interventions.summary import MEASURES, Judged
from headscope.interventions.variants import controls, variants
from tests.interventions import quiz
from tests.interventions.quiz import Boost, Lying, Say

RETRIEVAL = ((2, 1), (3, 2))
RANDOM = ((2, 4), (3, 5))
"""Heads of the layers of the retrieval heads, that do nothing."""


def pasta(heads: Any = RETRIEVAL) -> PASTA:
    return PASTA(heads=heads, region="fact")


@pytest.fixture(scope="module")
def model() -> Any:
    made, planted = quiz.organism()
    assert tuple(planted["retrieval"]) == RETRIEVAL
    return made


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few and short neutral texts."""
    monkeypatch.setattr(drift, "TEXTS", 3)
    monkeypatch.setattr(drift, "LENGTH", 20)


@pytest.fixture(scope="module")
def found(model: Any) -> Any:
    """One evaluation that most tests look at; no text is scored, which takes long."""
    methods = {
        "helps": pasta(),
        "elsewhere": pasta(RANDOM),
        "direction": SteeringVector(3, np.ones(model.spec.d_model), coefficient=0.1),
        "everywhere": ZeroTuning(gamma=1.1),
        "bare": HeadEdit(RETRIEVAL, mode="scale", factor=1.5),
    }
    return evaluate(model, quiz.task(24), methods, controls=19, drift=False)


def row(found: Any, name: str) -> Any:
    return found.table.set_index("method").loc[name]


def said(found: Any, name: str) -> list[str]:
    return [note for note in found.notes if note.startswith((f"{name}:", f"{name} "))]


def test_a_planted_gain_is_found(found: Any) -> None:
    helps, base = row(found, "helps"), row(found, "base")
    assert base["accuracy"] < 0.8
    assert helps["accuracy"] == helps["constrained"] == 1.0
    assert helps["accuracy_gain"] == pytest.approx(1 - base["accuracy"])
    assert helps["accuracy_gain_low"] > 0
    assert helps["p_value"] == pytest.approx(1 / 20)
    assert helps["p_measure"] == "constrained"
    assert re.match(r"helps: accuracy rises, \+0\.\d+ \(.*\)\.$", said(found, "helps")[0])
    assert "more than its controls gain" in said(found, "helps")[1]


def test_other_heads_gain_nothing(found: Any) -> None:
    elsewhere = row(found, "elsewhere")
    assert elsewhere["accuracy_gain_low"] <= 0 <= elsewhere["accuracy_gain_high"]
    assert elsewhere["p_value"] > 0.2
    assert "no gain in accuracy" in said(found, "elsewhere")[0]
    assert "holds 0" in said(found, "elsewhere")[0]


def test_neutral_rows_equal_the_base(found: Any) -> None:
    kinds = found.table["kind"].tolist()
    assert kinds == ["base"] + ["method"] * 5 + ["neutral"] * 4  # a bare edit has none, and a note says so
    assert any("no neutral row of bare" in note for note in found.notes)
    neutral = found.table[found.table["kind"] == "neutral"]
    for measure in MEASURES:
        assert (neutral[measure] == row(found, "base")[measure]).all()
        assert (neutral[f"{measure}_gain"] == 0).all()


def test_controls_are_other_heads_of_the_same_layers(found: Any) -> None:
    mine = found.controls[found.controls["method"] == "helps"]
    assert len(mine) == 19
    assert mine["what"].is_unique
    for what in mine["what"]:
        pairs = {tuple(map(int, pair.split("."))) for pair in what.removeprefix("heads ").split()}
        assert pairs.isdisjoint(RETRIEVAL)
        assert sorted(layer for layer, _ in pairs) == sorted(layer for layer, _ in RETRIEVAL)
    assert set(found.controls["method"]) == {"helps", "elsewhere", "direction", "bare"}
    assert found.controls.loc[found.controls["method"] == "direction", "what"].str.startswith("random direction").all()
    assert any("everywhere has no control" in note and "acts on all heads" in note for note in found.notes)
    assert np.isnan(row(found, "everywhere")["p_value"])


def test_tables_have_their_shape(found: Any) -> None:
    count = int(found.table["n"].iloc[0])
    assert len(found.items) == count * len(found.table)
    assert {"text", "label", "valid", "correct", "constrained_label", "logprob", "length"} <= set(found.items.columns)
    base = found.items[found.items["method"] == "base"]
    assert base["correct"].mean() == row(found, "base")["accuracy"]
    assert (base["constrained_label"] == base["gold"]).mean() == row(found, "base")["constrained"]
    assert (found.table["constrained_baseline"] == row(found, "base")["constrained"]).all()
    labels = found.labels[found.labels["method"] == "helps"]
    assert labels["label"].tolist() == [*sorted(quiz.MARKERS[:2]), "(none)"]
    assert labels["written"].sum() == pytest.approx(1)
    assert labels["constrained_recall"].dropna().tolist() == [1.0, 1.0]


def test_label_shifts_are_distances_of_the_labels_given(found: Any) -> None:
    shares = {
        name: found.items[found.items["method"] == name]["constrained_label"].value_counts(normalize=True)
        for name in ("base", "everywhere")
    }
    gold = found.items[found.items["method"] == "base"]["gold"].value_counts(normalize=True)
    distance = 0.5 * shares["everywhere"].subtract(shares["base"], fill_value=0).abs().sum()
    assert row(found, "everywhere")["prior_constrained_base"] == pytest.approx(distance)
    distance = 0.5 * shares["base"].subtract(gold, fill_value=0).abs().sum()
    assert row(found, "base")["prior_constrained_gold"] == pytest.approx(distance)
    assert row(found, "helps")["prior_constrained_gold"] == 0


# -- what a gain is made of ------------------------------------------------------------------------------------------


def test_more_valid_answers_alone_are_called_that(model: Any, tmp_path: Path) -> None:
    """Half of the prompts hold no fact, and the organism says neither label; pushed, it says one, right or wrong."""
    task = quiz.task(64, blank=32)
    push = Say(quiz.MARKERS[:2], 3.0)
    found = evaluate(model, task, {"push": push}, drift=False)
    pushed, base = row(found, "push"), row(found, "base")
    assert base["valid"] < 0.5 < pushed["valid"]
    assert pushed["accuracy_gain_low"] > 0
    assert not pushed["constrained_gain_low"] > 0
    first = said(found, "push")[0]
    assert "only because more answers are valid" in first
    assert f"from {base['constrained']:.3f} to {pushed['constrained']:.3f}" in first
    found.save(tmp_path)
    headline = "No method raises accuracy by better answers. push raises accuracy only because more answers are valid."
    assert headline in (tmp_path / "report.html").read_text()


def judged(right: np.ndarray, valid: np.ndarray, forced: np.ndarray) -> Judged:
    """Answers to yes-or-no questions, all of which are to be answered yes."""
    items = [
        SimpleNamespace(
            id=str(i),
            source=str(i),
            gold="yes",
            verdict=lambda text: SimpleNamespace(
                valid=text != "hm", correct=text == "yes", label=None if text == "hm" else text
            ),
        )
        for i in range(len(right))
    ]
    texts = ["yes" if r else "no" if v else "hm" for r, v in zip(right, valid, strict=True)]
    totals = np.where(forced[:, None], [-0.5, -1.0], [-1.0, -0.5])
    answered = Answered(
        Forced(totals, totals == 0, np.zeros(len(right))), tuple(Written(text, 1, True) for text in texts)
    )
    return Judged(answered, items, items, [["yes", "no"]] * len(right))  # type: ignore[arg-type]


def spread(count: int, right: int, valid: int) -> tuple[np.ndarray, np.ndarray]:
    place = np.random.default_rng(0).permutation(count)
    return place < right, place < valid


def test_the_published_gain_of_zerotuning_on_sst2_is_validity(model: Any) -> None:
    """Figures of the authors' notebook: of 500, 153 are invalid and 318 right; at gamma 3, 8 and 442."""
    constrained, _ = spread(500, 450, 500)
    before = judged(*spread(500, 318, 347), constrained)
    after = judged(*spread(500, 442, 492), constrained)
    sources = [str(i) for i in range(500)]
    gains = summary.gains(after, before, sources, 0)
    rows = [summary.means(part, sources, 0) for part in (after, before)]
    assert rows[0]["accuracy"] == pytest.approx(0.884)
    assert rows[1]["accuracy_among_valid"] == pytest.approx(0.916, abs=5e-4)
    assert rows[0]["accuracy_among_valid"] == pytest.approx(0.898, abs=5e-4)
    assert gains["accuracy"].up
    assert gains["accuracy_among_valid"].mean < 0
    about = {"p_value": np.nan, "controls": 0, **summary.columns(gains)}
    found = findings.Found("gamma=3", "accuracy", rows[0] | about, rows[1], gains)
    assert findings.only_validity(found.row)
    first, second = findings.sentences(found)
    assert "only because more answers are valid" in first
    assert "from 0.916 to 0.898" in first
    assert "the untouched model does as well once its answers are constrained" in second


def test_a_gain_of_decisions_is_not_called_validity() -> None:
    before = judged(*spread(200, 100, 190), spread(200, 110, 200)[0])
    after = judged(*spread(200, 160, 200), spread(200, 160, 200)[0])
    sources = [str(i) for i in range(200)]
    gains = summary.gains(after, before, sources, 0)
    about = {"p_value": np.nan, "controls": 0, **summary.columns(gains)}
    rows = [summary.means(part, sources, 0) | about for part in (after, before)]
    found = findings.Found("m", "accuracy", rows[0], rows[1], gains)
    assert gains["valid"].up
    assert not findings.only_validity(found.row)
    assert findings.sentences(found) == [f"m: accuracy rises, {findings._size(gains['accuracy'])}."]


def test_a_method_that_says_one_label_is_named(model: Any) -> None:
    found = evaluate(model, quiz.task(24), {"one": Say(quiz.MARKERS[:1], 30.0)}, drift=False)
    assert any("it gives 'bivq' to 100% of the items" in note for note in said(found, "one"))


def test_the_gain_among_valid_answers_is_a_difference_of_two_accuracies() -> None:
    a = np.array([1.0, 0.0, np.nan, 1.0, 1.0, np.nan])
    b = np.array([1.0, np.nan, np.nan, 0.0, 0.0, 0.0])
    gain = summary.difference_of_means(a, b, list("abcdef"), 0)
    assert gain.mean == pytest.approx(3 / 4 - 1 / 4)
    assert gain.low < gain.mean < gain.high
    nothing = summary.difference_of_means(a, np.full(6, np.nan), list("abcdef"), 0)
    assert np.isnan([nothing.mean, nothing.low, nothing.high]).all()


@pytest.mark.parametrize(
    ("gain", "others", "p"),
    [(0.5, [0.1, 0.2, 0.5, 0.6], 3 / 5), (1.0, [0.0] * 19, 0.05), (0.0, [0.0] * 19, 1.0), (0.1, [], np.nan)],
)
def test_p_counts_controls_that_gain_as_much(gain: float, others: list[float], p: float) -> None:
    assert summary.p_value(gain, others) == pytest.approx(p, nan_ok=True)


def test_total_variation() -> None:
    assert summary.total_variation({"a": 0.5, "b": 0.5}, {"a": 1.0}) == pytest.approx(0.5)
    assert summary.total_variation({"a": 1.0}, {"b": 1.0}) == 1.0
    assert np.isnan(summary.total_variation({}, {"a": 1.0}))


# -- what cannot fool it ---------------------------------------------------------------------------------------------


def test_a_neutral_strength_that_is_none_stops_everything(model: Any) -> None:
    with pytest.raises(ModelError, match=r"liar at neutral strength is not the untouched model: totals differ"):
        evaluate(model, quiz.task(8), {"liar": Lying(RETRIEVAL)}, controls=0)


def test_a_method_that_changes_nothing_is_named(model: Any) -> None:
    act = ACT(heads=RETRIEVAL, threshold=0.99)
    found = evaluate(model, quiz.task(8), {"act": act}, controls=0, drift=False)
    assert any("act changed no number and no text" in note for note in found.notes)


def test_one_source_gives_no_interval(model: Any) -> None:
    task = quiz.task(8)
    items = [replace(item, source="one") for item in task.items]
    found = evaluate(model, task, {"helps": pasta()}, items=items, controls=0, drift=False)
    assert np.isnan(row(found, "helps")["accuracy_gain_low"])
    assert "with no interval" in said(found, "helps")[0]


def test_only_test_items_are_measured_unless_told(model: Any) -> None:
    task = quiz.task(16)
    test = {item.id for item in task.split("test")}
    assert set(evaluate(model, task, {}, drift=False).items["id"]) == test
    assert len(test) < 16


def test_drift_is_measured_where_a_region_is(model: Any, short: None) -> None:
    task = quiz.task(8)
    found = evaluate(model, task, {"helps": pasta(), "push": Say(quiz.MARKERS[:1], 2.0)}, controls=0)
    base, helps, push = (row(found, name) for name in ("base", "helps", "push"))
    assert base["drift"] == 0
    assert base["perplexity_ratio"] == 1
    assert helps["drift"] != 0
    assert push["drift_low"] > 0
    assert push["perplexity"] == pytest.approx(base["perplexity"] * push["perplexity_ratio"])
    assert any("neutral text becomes less likely" in note for note in said(found, "push"))
    assert np.isnan(row(found, "helps, neutral")["drift"])


def test_drift_is_the_loss_of_generated_text(model: Any, short: None) -> None:
    from headscope.interventions.drift import losses, neutral_texts
    from headscope.interventions.outcomes import prepared

    prompts = [item.prompt for item in prepared(model, quiz.task(5))]
    texts = neutral_texts(model, prompts, 3)
    assert not isinstance(texts, str)
    with model.edited(pasta()):
        found = losses(model, texts[:3], batch=2)
        for text, loss in zip(texts, found, strict=False):
            rows = model.trace(text.prompt, teacher=text.ids).logits[0].double().log_softmax(-1)
            assert loss == pytest.approx(-float(rows[range(len(text.ids)), list(text.ids)].mean()), abs=1e-5)


# -- other ways to ask -----------------------------------------------------------------------------------------------


def test_without_text_there_is_no_accuracy_to_speak_of(model: Any) -> None:
    found = evaluate(model, quiz.task(16), {"helps": pasta()}, generate=False, drift=False, controls=5)
    assert found.table[["accuracy", "valid", "length"]].isna().all().all()
    assert row(found, "helps")["constrained_gain_low"] > 0
    assert "label-constrained accuracy rises" in said(found, "helps")[0]
    assert "text" not in found.items


def test_controls_write_when_asked_to(model: Any) -> None:
    found = evaluate(model, quiz.task(12), {"helps": pasta()}, write_controls=True, drift=False, controls=3)
    assert found.controls["accuracy"].notna().all()
    assert row(found, "helps")["p_measure"] == "accuracy"


def test_controls_on_some_items_are_compared_there(model: Any) -> None:
    task = quiz.task(24)
    found = evaluate(model, task, {"helps": pasta()}, control_items=6, drift=False, controls=19)
    assert found.provenance["settings"]["control_items"] == 6
    assert row(found, "helps")["p_value"] == pytest.approx(0.05)
    whole = evaluate(model, task, {"helps": pasta()}, control_items=99, drift=False, controls=2)
    assert whole.provenance["settings"]["control_items"] == len(task.split("test"))


def test_items_with_candidates_of_their_own_have_no_shares_of_labels(model: Any) -> None:
    task = quiz.task(12, shared=False)
    task.answers = None
    found = evaluate(model, task, {"helps": pasta()}, controls=0, drift=False)
    assert found.labels.empty
    assert np.isnan(row(found, "helps")["prior_constrained_gold"])
    assert row(found, "helps")["constrained"] == 1


def test_free_answers_are_judged_by_their_text_alone(model: Any) -> None:
    task = quiz.task(12)
    task.answers = None

    class Free(quiz.Item):
        def verdict(self, text: str) -> Any:
            right = text.strip().startswith(self.gold)
            return SimpleNamespace(valid=bool(text.strip()), correct=right, label=None)

    items = [Free(**{**vars(item), "answers": ()}) for item in task.items]
    found = evaluate(model, task, {"helps": pasta()}, items=items, controls=3, drift=False)
    assert row(found, "helps")["accuracy"] == 1
    assert found.table["constrained"].isna().all()
    assert row(found, "helps")["p_measure"] == "logprob"


def test_several_parts_act_together_and_are_controlled_together(model: Any) -> None:
    both = {"both": (pasta(), ZeroTuning(gamma=1.01))}
    found = evaluate(model, quiz.task(8), both, controls=2, drift=False)
    assert any("The controls of both keep its ZeroTuning" in note for note in found.notes)
    (made,) = variants(both)
    drawn, _ = controls(made, model, 2, 0)
    assert all(control.parts[1] == both["both"][1] and control.parts[0] != both["both"][0] for control in drawn)


def test_a_sweep_has_a_row_for_each_value(model: Any, tmp_path: Path) -> None:
    task, options = quiz.task(12), {"controls": 0, "drift": False, "out": tmp_path}
    found = sweep(model, task, pasta(), "alpha", [0.01, 0.5, 1.0], **options)
    rows = found.table[found.table["kind"] == "method"]
    assert rows["method"].tolist() == ["alpha=0.01", "alpha=0.5", "alpha=1"]
    assert rows["constrained"].iloc[0] == 1
    assert rows["constrained_gain"].iloc[2] == 0
    assert any("flattered by its choice" in note for note in found.notes)
    forced = list((tmp_path / "shards" / "forced").iterdir())
    assert len(forced) == 4  # the base, two strengths, and the neutral one that all three share
    with pytest.raises(RequestError, match="no parameter 'alhpa'"):
        sweep(model, task, pasta(), "alhpa", [1])
    with pytest.raises(RequestError, match="empty"):
        sweep(model, task, pasta(), "alpha", [])
    with pytest.raises(RequestError, match="twice"):
        sweep(model, task, pasta(), "alpha", [1, 1.0])


# -- files -----------------------------------------------------------------------------------------------------------


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_killed_run_ends_in_the_same_bytes(
    model: Any, short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headscope.probes import provenance

    task, methods = quiz.task(12), {"helps": pasta(), "boost": Boost(RETRIEVAL, 1.2)}
    options: dict[str, Any] = {"controls": 3, "batch": 4}
    clock = iter(f"2026-01-01T00:00:{i:02d}+00:00" for i in range(60))
    monkeypatch.setattr(provenance, "now", lambda: next(clock))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    evaluate(model, task, methods, out=whole, **options).save(whole)
    next(clock)

    class Killed(Exception):
        pass

    runs: list[str] = []
    original = Measurements._run

    def run(self: Any, variant: Any, *rest: Any) -> Any:
        if len(runs) in (1, 4, 6):
            runs.append("killed")
            raise Killed
        runs.append(variant.name)
        return original(self, variant, *rest)

    monkeypatch.setattr(Measurements, "_run", run)
    for _ in range(3):
        with pytest.raises(Killed):
            evaluate(model, task, methods, out=killed, **options)
    evaluate(model, task, methods, out=killed, **options).save(killed)
    assert len(runs) == 3 + 1 + 2 + 2 + 6  # kills, base, neutral, methods, controls: nothing ran twice
    first, second = bytes_of(whole), bytes_of(killed)
    assert first.keys() == second.keys()
    created = [re.compile(rb"2026-01-01T00:00:\d\d"), b"T"]
    assert {n: created[0].sub(created[1], b) for n, b in first.items() if "shards/run" not in n} == {
        n: created[0].sub(created[1], b) for n, b in second.items() if "shards/run" not in n
    }
    again = bytes_of(killed)
    evaluate(model, task, methods, out=killed, **options).save(killed)
    assert bytes_of(killed) == again  # also its time stamp: the run began when it began


def test_another_run_is_refused(model: Any, tmp_path: Path) -> None:
    task = quiz.task(8)
    evaluate(model, task, {}, out=tmp_path, drift=False)
    with pytest.raises(CheckpointError, match="another run"):
        evaluate(model, quiz.task(12), {}, out=tmp_path, drift=False)
    evaluate(model, quiz.task(12), {}, out=tmp_path, drift=False, fresh=True)


def test_files_hold_what_was_found(found: Any, tmp_path: Path) -> None:
    files = found.save(tmp_path)
    assert {path.name for path in files} == {
        *(f"{name}.{end}" for name in ("methods", "items", "labels", "controls") for end in ("csv", "parquet")),
        "evaluation.json",
        "report.html",
    }
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "methods.parquet"), found.table)
    document = json.loads((tmp_path / "evaluation.json").read_text())
    assert [line["method"] for line in document["methods"]] == found.table["method"].tolist()
    assert document["notes"] == list(found.notes)
    assert document["provenance"]["methods"]["helps"][0]["alpha"] == 0.01
    page = (tmp_path / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "").split("<script")[0]
    for words in ("helps", "among valid", "constrained", "no gain in accuracy", "random direction", "Provenance"):
        assert words in page


@pytest.mark.parametrize("methods", [{}, {"<b>": pasta()}])
def test_a_report_of_little(model: Any, methods: Any, tmp_path: Path) -> None:
    found = evaluate(model, quiz.task(8, shared=False), methods, controls=0, drift=False, generate=False)
    found.save(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<b></bdi>" not in page
    assert ("&lt;b&gt;" in page) == bool(methods)


# -- bad input -------------------------------------------------------------------------------------------------------


def test_bad_input(model: Any) -> None:
    task = quiz.task(8)
    with pytest.raises(RequestError, match="cannot be called 'base'"):
        evaluate(model, task, {"base": pasta()})
    with pytest.raises(RequestError, match="must be a method"):
        evaluate(model, task, {"odd": [3]})  # type: ignore[list-item]
    with pytest.raises(RequestError, match="layers of this model"):
        evaluate(model, task, {"far": pasta(((99, 0),))})
    with pytest.raises(DataError, match="no item"):
        evaluate(model, task, {}, items=[])
    with pytest.raises(DataError, match="verdict"):
        evaluate(model, task, {}, items=[object()])
    with pytest.raises(RequestError, match="control_items=0"):
        evaluate(model, task, {}, control_items=0)
