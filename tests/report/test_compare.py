from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import headscope as hs
from headscope.errors import DataError
from headscope.probes.scores import HeadScores
from headscope.report.compare import compare

Make = Callable[..., HeadScores]


def test_a_ranking_agrees_with_itself(make: Make) -> None:
    scores = make(details=False)
    found = compare(scores, scores, draws=50)
    assert found.matched
    assert found.correlations["spearman"].value == pytest.approx(1)
    assert found.correlations["kendall"].value == pytest.approx(1)
    assert (found.overlaps["jaccard"] == 1).all()
    assert (found.movers["change"] == 0).all()
    assert "270 heads compared one by one." in found.statement


def test_compare_is_at_hand_at_the_top() -> None:
    assert hs.compare is compare


def test_overlap_has_its_chance_level(make: Make) -> None:
    found = compare(make(details=False), make(seed=1, details=False), draws=0)
    row = found.overlaps.set_index("set").loc["top 10"]
    assert row["expected"] == pytest.approx(100 / 270)
    assert 0 < row["p_value"] <= 1
    assert np.isnan(found.correlations["spearman"].low)


def test_movers_are_sorted_and_say_whether_intervals_meet(make: Make) -> None:
    found = compare(make(details=False), make(seed=1, details=False), top=7, draws=0)
    change = found.movers["change"].abs()
    assert len(found.movers) == 7
    assert change.is_monotonic_decreasing
    frame = found.to_frame()
    disjoint = (frame["ci_low_a"] > frame["ci_high_b"]) | (frame["ci_low_b"] > frame["ci_high_a"])
    assert (frame["apart"] == disjoint).all()


def test_changes_between_probes_are_standardised(make: Make) -> None:
    found = compare(make(details=False), make("sinks", details=False), draws=0)
    assert "standard deviations" in found.statement
    assert not found.movers["apart"].any()
    assert abs(found.to_frame()["change"].mean()) < 1e-9


def test_models_of_other_shape_are_compared_over_depth(make: Make, tmp_path: Path) -> None:
    found = compare(make(details=False), make(layers=12, heads=12, model="gpt2", details=False))
    assert not found.matched
    assert found.overlaps.empty
    assert found.movers.empty
    assert "30 layers × 9 heads" in found.statement
    assert "12 layers × 12 heads" in found.statement
    assert list(found.to_frame()["depth"]) == pytest.approx(np.arange(0.05, 1, 0.1).tolist())
    assert found.report(tmp_path / "c.html").exists()


def test_one_layer_has_one_depth(make: Make) -> None:
    found = compare(make(layers=1, heads=2, details=False), make(layers=3, heads=1, details=False))
    assert len(found.profile) == 1
    json.dumps(found.to_dict(), allow_nan=False)


def test_document_is_strict_json(make: Make) -> None:
    scores = make(details=False)
    table = scores.table.assign(score=scores.table["score"].where(scores.table["layer"] > 0))
    broken = HeadScores(table, scores.probe, scores.provenance)
    found = compare(scores, broken, draws=0)
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["correlations"]["spearman"]["low"] is None
    assert "9 left out" in found.statement


def test_no_score_at_all_is_no_crash(make: Make, tmp_path: Path) -> None:
    scores = make(layers=2, heads=2, details=False)
    nothing = HeadScores(scores.table.assign(score=np.nan, selected=False), "retrieval", {})
    found = compare(nothing, nothing)
    assert np.isnan(found.correlations["kendall"].value)
    assert found.report(tmp_path / "c.html").exists()


def test_asking_for_no_mover_is_refused(make: Make) -> None:
    with pytest.raises(DataError, match="at least one"):
        compare(make(details=False), make(details=False), top=0)


def test_figures_of_both_kinds(make: Make) -> None:
    scores = make(details=False)
    assert len(compare(scores, make(seed=1, details=False), draws=0).plot().data) >= 2
    assert len(compare(scores, make(layers=5, details=False), draws=0).plot().data) == 2
