"""The command line as its users meet it: text for people, JSON for machines, exit codes for scripts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner, Result

import headscope.commands.compare as compare_module
from headscope.cli import app
from headscope.commands.console import emit, interval, numbers
from headscope.probes.scores import HeadScores

LAYERS, HEADS = 3, 4


def run(*words: Any) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200", "NO_COLOR": "1"})


def scores(probe: str, seed: int) -> HeadScores:
    values = np.random.default_rng(seed).random(LAYERS * HEADS)
    layer, head = np.divmod(np.arange(LAYERS * HEADS), HEADS)
    table = pd.DataFrame(
        {
            "layer": layer,
            "head": head,
            "score": values,
            "ci_low": values - 0.1,
            "ci_high": values + 0.1,
            "n": 5,
            "null_mean": 0.1,
            "p_value": 0.01,
            "selected": values > 0.7,
        }
    )
    return HeadScores(table, probe, {"model": {"name": "toy", "n_layers": LAYERS, "n_heads": HEADS}})


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    return scores("echo", 0).save(tmp_path / "a.parquet"), scores("induction", 1).save(tmp_path / "b.parquet")


@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("models", "--help"),
        ("models", "fetch", "--help"),
        ("rank", "--help"),
        ("compare", "--help"),
        ("bench", "capture", "--help"),
    ],
    ids=" ".join,
)
def test_help(words: tuple[str, ...]) -> None:
    result = run(*words)
    assert result.exit_code == 0
    assert "Usage: headscope" in result.output or "Usage: root" in result.output
    if words not in {("--help",), ("models", "--help")}:
        assert "Example" in result.output


@pytest.mark.parametrize(
    "words", [("rnk",), ("rank",), ("compare", "one.parquet"), ("bench", "capture", "--lengths", "x")]
)
def test_wrong_usage_is_exit_code_2(words: tuple[str, ...]) -> None:
    assert run(*words).exit_code == 2


def test_a_deliberate_error_is_one_message_and_exit_code_1(tmp_path: Path) -> None:
    result = run("compare", tmp_path / "none.parquet", tmp_path / "none.parquet")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: There is no file ")
    assert "Traceback" not in result.output


def test_ctrl_c_says_that_the_run_resumes(two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compare_module, "_show", interrupted)
    result = run("compare", *two)
    assert result.exit_code == 130
    assert "again to resume" in result.stderr


def test_compare_for_people(two: tuple[Path, Path]) -> None:
    result = run("compare", *two)
    assert result.exit_code == 0, result.output
    assert "echo beside induction" in result.stdout
    assert "top 5" in result.stdout
    assert "Farthest apart" in result.stdout


def test_compare_for_machines(two: tuple[Path, Path]) -> None:
    result = run("compare", *two, "--json")
    found = json.loads(result.stdout)
    assert found["matched"] is True
    assert {row["set"] for row in found["overlaps"]} == {"top 5", "top 10", "selected"}


def test_compare_writes_a_report(two: tuple[Path, Path], tmp_path: Path) -> None:
    result = run("compare", *two, "--report", tmp_path / "both.html", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["report"] == str(tmp_path / "both.html")
    assert (tmp_path / "both.html").read_text().lstrip().lower().startswith("<!doctype html>")


def test_numbers() -> None:
    import typer

    assert numbers("512, 2048", "--lengths") == (512, 2048)
    assert numbers(None, "--lengths") is None
    for wrong in ("", "a", "0", "-4", "1.5"):
        with pytest.raises(typer.BadParameter, match="whole numbers"):
            numbers(wrong, "--lengths")


def test_interval() -> None:
    assert interval(0.5, 0.4, 0.6) == "0.500 (0.40 to 0.60)"
    assert interval(0.5, float("nan"), float("nan")) == "0.500"
    assert interval(float("nan"), 0.0, 1.0) == "–"


def test_json_never_holds_nan(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"score": np.float64("nan"), "top": [(np.int64(1), float("inf"))], "path": Path("runs")})
    assert json.loads(capsys.readouterr().out) == {"score": None, "top": [[1, None]], "path": "runs"}
