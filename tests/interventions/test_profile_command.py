from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import headscope as hs
from headscope.commands.profile import profile
from headscope.errors import CheckpointError, RequestError
from headscope.probes.scores import HeadScores
from tests.interventions.planted import task


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[tuple[int, int]]]:
    made = hs.data.organism("llama", seed=0)
    return made.save(tmp_path_factory.mktemp("profile") / "model"), set(made.planted["retrieval"])


@pytest.fixture(autouse=True)
def _tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks that the organism can do, in place of the real ones."""

    def make(name: str, model: Any, n: int, seed: int, **options: Any) -> Any:
        from dataclasses import replace

        whole = task(round(n * 0.4), ("train", "validation"), seed + len(name))
        return replace(whole, name=name)

    monkeypatch.setattr("headscope.data.tasks.make", make)


def run(model: Path, out: Path, *words: str) -> Any:
    app = typer.Typer()
    app.command()(profile)
    fixed = ["--model", str(model), "--out", str(out)]
    return CliRunner().invoke(app, [*fixed, *words], catch_exceptions=False, env={"COLUMNS": "160", "NO_COLOR": "1"})


PASTA = ("pasta", "--set", "alpha=0.05", "--n", "12", "--min-gain", "0.05")


def named(heads: set[tuple[int, int]]) -> list[str]:
    return [f"L{layer}H{head}" for layer, head in sorted(heads)]


def test_screened_profile_for_people_and_for_steer(grown: Any, tmp_path: Path) -> None:
    model, heads = grown
    result = run(model, tmp_path, *PASTA, "--screen", "3", "--top", "2")
    assert result.exit_code == 0, result.output
    assert "2 heads pass" in result.stdout
    assert all(name in result.stdout for name in named(heads))
    assert "Rank correlation" in " ".join(result.stdout.split())
    found = HeadScores.load(tmp_path / "heads.parquet")
    assert set(found.selected) == heads
    assert {path.name for path in tmp_path.iterdir()} >= {"heads.csv", "heads.json", "report.html", "work"}

    from headscope.commands.methods import build

    method: Any = build("pasta", heads=str(tmp_path / "heads.parquet"), region="right", model=hs.load(model))
    assert set(method.heads) == heads


def test_chosen_heads_for_machines_and_again(grown: Any, tmp_path: Path) -> None:
    model, heads = grown
    pairs = ",".join(f"{layer}.{head}" for layer, head in sorted(heads)) + ",0.0"
    words = (*PASTA, "--heads", pairs, "--metric", "accuracy", "--json")
    first, again = (json.loads(run(model, tmp_path, *words).stdout) for _ in range(2))
    assert first == again
    assert {(row["layer"], row["head"]) for row in first["scores"]["heads"]["top"][:2]} == heads
    assert len(first["scores"]["heads"]["top"]) == 3
    with pytest.raises(CheckpointError, match="another run"):
        run(model, tmp_path, *words, "--seed", "1")
    assert run(model, tmp_path, *words, "--seed", "1", "--fresh").exit_code == 0


def test_several_tasks_share_heads(grown: Any, tmp_path: Path) -> None:
    model, heads = grown
    words = (*PASTA, "--task", "sentiment", "--task", "needles", "--screen", "4", "--top", "2", "--json")
    found = json.loads(run(model, tmp_path, *words).stdout)
    assert set(found["scores"]) == {"sentiment", "needles", "heads"}
    assert {tuple(pair) for pair in found["scores"]["heads"]["selected"]} == heads
    assert {path.stem for path in tmp_path.glob("*.parquet")} == {"sentiment", "needles", "heads"}


def test_keys(grown: Any, tmp_path: Path) -> None:
    found = json.loads(run(grown[0], tmp_path, "pasta", "--keys", "--n", "4", "--length", "256", "--json").stdout)
    assert found["scores"]["heads"]["heads"] == 36
    assert "min_diff" in found["scores"]["heads"]["top"][0]


def test_calibrate(grown: Any, tmp_path: Path) -> None:
    model, heads = grown
    words = (*PASTA, "--n", "24", "--calibrate", "--screen", "3", "--controls", "3")
    shown = run(model, tmp_path, *words)
    assert shown.exit_code == 0, shown.output
    assert "3 control sets" in shown.stdout
    (method,) = hs.interventions.load(tmp_path / "edit.json", hs.load(model))
    assert set(method.heads) == heads
    found = json.loads(run(model, tmp_path, *words, "--json").stdout)
    assert [row["kind"] for row in found["table"]] == ["base", "chosen", "control", "control", "control"]


def test_search(grown: Any, tmp_path: Path) -> None:
    model, heads = grown
    pairs = ",".join(f"{layer}.{head}" for layer, head in sorted(heads))
    words = ("pasta", "--search", "alpha", "--grid", "0.05,1,20", "--heads", pairs, "--n", "8")
    shown = run(model, tmp_path, *words)
    assert "Best accuracy: alpha = 0.05." in shown.stdout
    assert "untouched" in shown.stdout
    (method,) = hs.interventions.load(tmp_path / "edit.json", hs.load(model))
    assert (set(method.heads), method.alpha) == (heads, 0.05)
    entropy = json.loads(run(model, tmp_path, *words, "--metric", "entropy", "--json").stdout)
    assert any("confidence" in note for note in entropy["notes"])


def test_up_and_down(grown: Any, tmp_path: Path) -> None:
    model, heads = grown
    pairs = ",".join(f"{layer}.{head}" for layer, head in sorted(heads))
    words = ("pasta", "--updown", "alpha", "--grid", "20,0.05", "--heads", pairs, "--n", "12", "--json")
    found = json.loads(run(model, tmp_path, *words).stdout)
    assert [row["direction"] for row in found["scores"]["heads"]["top"]] == ["down", "down"]


def test_wrong_usage(grown: Any, tmp_path: Path) -> None:
    model, _ = grown
    for words in (
        ("--keys", "--calibrate"),
        ("--screen", "3", "--keys"),
        ("--calibrate", "--task", "a", "--task", "b"),
        ("--n", "2"),
    ):
        assert run(model, tmp_path, "pasta", *words).exit_code == 2
    for words, message in (
        (("psta",), "Did you mean 'pasta'"),
        (("pasta", "--search", "mode"), "no usual grid"),
        (("pasta", "--search", "alpha", "--grid", "a"), "numbers separated by commas"),
        (("pasta", "--updown", "alpha", "--grid", "0.5"), "two values"),
        (("pasta", "--screen", "3", "--heads", "0.0"), "leave out --heads"),
    ):
        with pytest.raises(RequestError, match=message):
            run(model, tmp_path, *words)
