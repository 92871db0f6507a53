from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headscope.errors import CheckpointError, DataError, RequestError
from headscope.interventions.act import ACT
from headscope.interventions.outcomes import outcomes, prepared
from headscope.interventions.profile import combined, intersect, profile_heads
from headscope.interventions.screen import screen_heads
from headscope.probes.scores import HeadScores
from tests.interventions.planted import Favour, Louder, organism, task

ALPHA = Favour(alpha=0.05)


@pytest.fixture(scope="module")
def planted() -> tuple[Any, set[tuple[int, int]]]:
    return organism()


@pytest.fixture(scope="module")
def profile(planted: Any) -> HeadScores:
    return profile_heads(planted[0], ALPHA, task(), min_gain=0.01)


def test_the_planted_heads_come_first(planted: Any, profile: HeadScores) -> None:
    model, heads = planted
    assert set(profile.top(2)) == heads
    assert set(profile.selected) == heads
    rest = profile.ranked()["score"][2:]
    assert profile.ranked()["score"][1] > 20 * rest.abs().max()
    assert len(profile) == model.spec.n_layers * model.spec.n_heads
    assert np.isfinite(profile.table[["score", "ci_low", "p_value", "q_value"]]).all(None)


def test_a_score_is_the_mean_gain_of_that_head_alone(planted: Any, profile: HeadScores) -> None:
    model, heads = planted
    data = prepared(model, task())
    base = outcomes(model, data)
    for pair in (*heads, (0, 0)):
        gain = outcomes(model, data, ALPHA.with_heads([pair])) - base
        row = profile.head(*pair)
        assert row["score"] == pytest.approx(gain[:, 0].mean(), abs=1e-9)
        assert row["change_accuracy"] == pytest.approx(gain[:, 1].mean(), abs=1e-9)


def test_a_function_of_a_head_gives_the_same(planted: Any, profile: HeadScores) -> None:
    model, heads = planted
    found = profile_heads(model, lambda head: Favour((head,), alpha=0.05), task(), heads=sorted(heads))
    for pair in heads:
        assert found.head(*pair)["score"] == profile.head(*pair)["score"]
    assert found.table["score"].notna().sum() == 2


def test_a_method_of_some_layers_is_tried_on_their_heads_alone(planted: Any) -> None:
    model, _ = planted
    method = ACT(layers=(1,), threshold=0.01)
    found = profile_heads(model, method, task()).table
    assert set(found["layer"][found["score"].notna()]) == {1}
    assert found["score"].notna().sum() == model.spec.n_heads
    assert set(screen_heads(model, method, task()).table["layer"]) == {1}


def test_less_entropy_is_a_gain(planted: Any) -> None:
    model, heads = planted
    found = profile_heads(model, ALPHA, task(), heads=[*heads, (0, 0)], metric="entropy")
    assert set(found.top(2)) == heads
    assert found.head(*min(heads))["score"] == pytest.approx(-found.head(*min(heads))["change_entropy"])
    assert found.head(*min(heads))["score"] > 0


def test_resumed_is_undisturbed(planted: Any, profile: HeadScores, tmp_path: Path) -> None:
    """Killed after seven heads, and run again: the same table, and no finished head is measured twice."""
    model, _ = planted

    def killed(name: str, done: int, total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile_heads(model, ALPHA, task(), out=tmp_path, progress=killed)
    shards = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.shard")}
    assert len(shards) == 8  # the untouched model and seven heads
    found = profile_heads(model, ALPHA, task(), min_gain=0.01, out=tmp_path)
    assert found.table.equals(profile.table)
    assert all(path.stat().st_mtime_ns == before for path, before in shards.items())


def test_another_run_is_refused(planted: Any, tmp_path: Path) -> None:
    model, heads = planted
    some: dict[str, Any] = {"heads": sorted(heads), "out": tmp_path}
    profile_heads(model, ALPHA, task(), **some)
    for other in (
        lambda: profile_heads(model, Favour(alpha=0.5), task(), **some),
        lambda: profile_heads(model, ALPHA, task(seed=1), **some),
        lambda: profile_heads(model, ALPHA, task(), batch=4, **some),
    ):
        with pytest.raises(CheckpointError, match="another run"):
            other()
    profile_heads(model, Favour(alpha=0.5), task(), fresh=True, **some)


def test_bad_input(planted: Any) -> None:
    model, _ = planted
    with pytest.raises(RequestError, match="changes nothing"):
        profile_heads(model, Favour(alpha=1.0), task())
    with pytest.raises(RequestError, match="Did you mean 'logprob'"):
        profile_heads(model, ALPHA, task(), metric="logprobs")
    with pytest.raises(RequestError, match="layers of this model"):
        profile_heads(model, ALPHA, task(), heads=[(99, 0)])
    with pytest.raises(DataError, match="no item"):
        profile_heads(model, ALPHA, task(), items=[])
    bare = [_without_candidates(item) for item in prepared(model, task(4))]
    with pytest.raises(DataError, match="several candidates"):
        profile_heads(model, ALPHA, task(), bare, metric="valid")


def _without_candidates(item: Any) -> Any:
    from dataclasses import replace

    return replace(item, wrong=())


def test_a_head_that_changes_nothing_is_told(planted: Any) -> None:
    model, heads = planted
    loud = profile_heads(model, Louder(factor=1.0 + 1e-12), task(4), heads=sorted(heads))
    assert any("changed no output" in note for note in loud.provenance["notes"])


def ranked(order: list[int], name: str = "a", fingerprint: str = "f") -> HeadScores:
    import pandas as pd

    n = len(order)
    table = pd.DataFrame({"layer": 0, "head": order, "score": np.arange(n, 0, -1.0), "n": 5, "selected": False})
    for column in ("ci_low", "ci_high", "null_mean", "p_value"):
        table[column] = np.nan
    return HeadScores(table, "profile", {"model": {"fingerprint": fingerprint}, "data": {"name": name}})


def test_intersect_keeps_what_every_task_has_among_its_best() -> None:
    a, b = ranked([3, 1, 2, 0, 4]), ranked([1, 4, 3, 0, 2], "b")
    assert intersect([a, b], 3) == ((0, 1), (0, 3))
    assert intersect([a, b], 1) == ()
    assert intersect([a], 2) == ((0, 3), (0, 1))
    both = combined([a, b], 3)
    assert both.selected == [(0, 1), (0, 3)]
    assert both.head(0, 1)["score"] == pytest.approx((0.75 + 1.0) / 2)
    assert both.head(0, 3)["rank_a"] == 1
    assert both.head(0, 3)["rank_b"] == 3


def test_profiles_of_different_models_have_nothing_in_common() -> None:
    with pytest.raises(RequestError, match="different models"):
        intersect([ranked([0, 1]), ranked([0, 1], fingerprint="g")], 1)
    with pytest.raises(RequestError, match="at least one"):
        intersect([], 1)
