from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headscope.errors import DataError, RequestError
from headscope.interventions.calibration import calibrate_heads
from headscope.interventions.outcomes import outcomes, prepared
from headscope.interventions.search import search, updown_heads
from tests.interventions.planted import Favour, organism, task

GRID = (0.05, 0.5, 1.0, 2.0, 20.0)


@pytest.fixture(scope="module")
def planted() -> tuple[Any, set[tuple[int, int]]]:
    return organism()


def swapped(model: Any, which: Any) -> list[Any]:
    """Items whose right and wrong answers have changed places."""
    items = prepared(model, task())
    return [
        replace(item, answer=item.wrong[0], wrong=(item.answer,)) if which(i) else item for i, item in enumerate(items)
    ]


def test_labels_lead_to_what_is_right(planted: Any) -> None:
    model, heads = planted
    on = Favour(tuple(sorted(heads)))
    for objective in ("accuracy", "logprob"):
        found = search(model, on, task(), field_name="alpha", grid=GRID, objective=objective)
        assert found.best == 0.05
        assert found.method == replace(on, alpha=0.05)
        # With the labels turned round, the other end is right.
        assert search(model, on, task(), swapped(model, lambda i: True), field_name="alpha", grid=GRID).best == 20.0
    table = found.table.set_index("value")
    assert table.loc[0.05, "accuracy"] == 1.0
    assert table.loc[20.0, "accuracy"] == 0.0
    assert table.loc[0.05, "accuracy_low"] == 1.0
    assert {"valid", "accuracy_among_valid", "entropy", "n"} <= set(table.columns)
    assert len(found.table) == len(GRID) + 1


def test_least_entropy_reads_no_label(planted: Any) -> None:
    model, heads = planted
    on = Favour(tuple(sorted(heads)))
    options: dict[str, Any] = {"field_name": "alpha", "grid": GRID, "objective": "entropy"}
    plain = search(model, on, task(), **options)
    assert plain.best in (0.05, 20.0)
    for which in (lambda i: True, lambda i: i % 2 == 0, lambda i: i % 3 == 0):
        found = search(model, on, task(), swapped(model, which), **options)
        assert found.best == plain.best
        assert found.table["entropy"].equals(plain.table["entropy"])
        assert not found.table["logprob"].equals(plain.table["logprob"])
    assert any("confidence" in note for note in plain.notes)


def test_where_nothing_helps_the_untouched_model_stays(planted: Any) -> None:
    model, heads = planted
    on = Favour(tuple(sorted(heads)))
    found = search(model, on, task(), field_name="alpha", grid=(2.0, 20.0), objective="logprob")
    assert found.best is None
    assert found.method.neutral
    assert any("untouched" in note for note in found.notes)
    # A neutral value is the untouched model, to the bit.
    table = search(model, on, task(), field_name="alpha", grid=(1.0,)).table
    assert table.loc[0, "logprob"] == table.loc[1, "logprob"]


def test_a_tie_is_told(planted: Any) -> None:
    model, heads = planted
    data = prepared(model, task())
    right = [item for item, row in zip(data, outcomes(model, data), strict=True) if row[1] == 1]
    found = search(model, Favour(tuple(sorted(heads))), task(), right, field_name="alpha", grid=(0.5, 0.05))
    assert found.best == 0.05
    assert any("broke the tie" in note for note in found.notes)


def test_search_resumes(planted: Any, tmp_path: Path) -> None:
    model, heads = planted
    on = Favour(tuple(sorted(heads)))

    def killed(name: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    options: dict[str, Any] = {"field_name": "alpha", "grid": GRID}
    whole = search(model, on, task(), **options)
    with pytest.raises(KeyboardInterrupt):
        search(model, on, task(), out=tmp_path, progress=killed, **options)
    assert len(list(tmp_path.rglob("*.shard"))) == 3
    found = search(model, on, task(), out=tmp_path, **options)
    assert found.table.equals(whole.table)
    assert found.best == whole.best


def test_search_of_what_is_not_there(planted: Any) -> None:
    model, _ = planted
    with pytest.raises(RequestError, match=r"no parameter 'alpa'.*Did you mean 'alpha'"):
        search(model, Favour(), task(), field_name="alpa", grid=GRID)
    for grid in ((), (float("nan"),)):
        with pytest.raises(RequestError, match="finite number"):
            search(model, Favour(), task(), field_name="alpha", grid=grid)
    with pytest.raises(RequestError, match="no metric"):
        search(model, Favour(), task(), field_name="alpha", grid=GRID, objective="truth")


def test_heads_want_up_or_down(planted: Any) -> None:
    model, heads = planted
    options: dict[str, Any] = {"field_name": "alpha", "up": 20.0, "down": 0.05, "min_gain": 0.05}
    others = [(0, 0), (1, 4), (4, 0), (5, 5)]
    found = updown_heads(model, Favour(), task(), heads=[*sorted(heads), *others], **options)
    assert set(found.top(2)) == heads
    directions = found.table.set_index(["layer", "head"])["direction"]
    assert {directions[pair] for pair in heads} == {"down"}
    assert set(found.selected) == heads
    assert {directions[pair] for pair in others} == {"none"}
    other = updown_heads(model, Favour(), task(), swapped(model, lambda i: True), heads=sorted(heads), **options)
    assert {other.head(*pair)["direction"] for pair in heads} == {"up"}
    pair = min(heads)
    assert other.head(*pair)["score"] == other.head(*pair)["gain_up"] > other.head(*pair)["gain_down"]


def test_calibration_finds_the_planted_heads_and_says_what_they_are_worth(planted: Any, tmp_path: Path) -> None:
    model, heads = planted
    found = calibrate_heads(model, Favour(alpha=0.05), task(24), controls=5, min_gain=0.05, out=tmp_path)
    assert set(found.heads) == heads
    assert found.method == Favour(found.heads, alpha=0.05)
    report = found.report.set_index("kind")
    assert report.loc["chosen", "gain"] > 0.3
    assert report.loc["chosen", "gain_low"] > 0
    controls = report.loc[["control"]]
    assert len(controls) == 5
    assert controls["gain"].max() < report.loc["chosen", "gain"]
    assert report.loc["chosen", "p_value"] == pytest.approx(1 / 6)
    assert "share no source" in found.notes[0]
    again = calibrate_heads(model, Favour(alpha=0.05), task(24), controls=5, min_gain=0.05, out=tmp_path)
    assert again.report.equals(found.report)


def test_calibration_recommends_nothing_where_nothing_helps(planted: Any) -> None:
    model, _ = planted
    hurts = Favour(alpha=20.0)
    found = calibrate_heads(model, hurts, task(16), controls=2, screen=2)
    assert found.method is None
    assert found.heads == ()
    assert list(found.report["kind"]) == ["base"]
    assert any("nothing is recommended" in note for note in found.notes)
    # Asked for heads all the same, it measures them and shows that they do not help.
    forced = calibrate_heads(model, hurts, task(16), controls=2, screen=2, k=1)
    row = forced.report.set_index("kind").loc["chosen"]
    assert len(forced.heads) == 1
    assert row["gain"] < 0.05
    assert np.isfinite(row["p_value"])


def test_calibration_needs_sources_and_controls(planted: Any) -> None:
    model, _ = planted
    with pytest.raises(RequestError, match="at least one control"):
        calibrate_heads(model, Favour(), task(8), controls=0)
    with pytest.raises(DataError, match="at least 4"):
        calibrate_heads(model, Favour(), task(3))
