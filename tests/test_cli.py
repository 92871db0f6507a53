"""The command line as its users meet it: text for people, JSON for machines, exit codes for scripts."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
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


@pytest.fixture(scope="session")
def organism(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, set[tuple[int, int]]]]:
    """Folder of a checkpoint whose heads are known, and what each probe must find in it."""
    import headscope as hs

    made = hs.data.organism("llama", seed=0)
    return made.save(tmp_path_factory.mktemp("models") / "organism"), made.expected


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


QUICK = ("--n", "10", "--length", "48", "--controls", "2", "--k", "2", "--trials", "2")


def test_rank_for_people(organism: Any, tmp_path: Path) -> None:
    model, expected = organism
    result = run("rank", "induction", "previous", "--model", model, "--out", tmp_path / "out", *QUICK)
    assert result.exit_code == 0, result.output
    assert "induction: 2 of 36 heads pass" in result.stdout
    assert "Without the top 2: loss on the repeat" in result.stdout
    assert "Ranking: repeats (10)" in result.stderr
    for probe in ("induction", "previous"):
        found = HeadScores.load(tmp_path / "out" / f"{probe}.parquet")
        assert set(found.selected) == expected[probe]
        assert {"dose", "samples"} <= set(found.details)
        assert (tmp_path / "out" / f"{probe}.csv").exists()
        assert (tmp_path / "out" / f"{probe}.json").exists()
    assert (tmp_path / "out" / "report.html").stat().st_size > 100_000


def test_rank_for_machines_and_again(organism: Any, tmp_path: Path) -> None:
    words = (
        "rank",
        "induction",
        "--model",
        organism[0],
        "--out",
        tmp_path / "out",
        *QUICK[:4],
        "--no-verify",
        "--json",
    )
    first, again = (json.loads(run(*words).stdout) for _ in range(2))
    assert first == again
    assert {tuple(pair) for pair in first["probes"]["induction"]["selected"]} == organism[1]["induction"]
    other = run(*words, "--seed", "1")
    assert other.exit_code == 1
    assert "belongs to another run" in other.stderr
    assert run(*words, "--seed", "1", "--fresh").exit_code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("inducton",), "There is no probe 'inducton'. Did you mean 'induction'"),
        (("induction", "--model", "smollm2-135"), "Did you mean 'smollm2-135m'"),
        (("induction", "--model", "./no-such-folder"), "There is no file or folder"),
    ],
)
def test_rank_suggests_the_nearest(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    result = run("rank", *words, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_rank_says_where_it_cannot_write(organism: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    result = run("rank", "induction", "--model", organism[0], "--out", tmp_path / "file", *QUICK)
    assert result.exit_code == 1
    assert str(tmp_path / "file") in result.stderr
    assert (tmp_path / "file").read_text() == "in the way"


def test_rank_with_an_empty_haystack(organism: Any, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    words = ("--model", organism[0], "--haystack", tmp_path / "texts", "--out", tmp_path / "out")
    result = run("rank", "retrieval", *words)
    assert result.exit_code == 1
    assert "holds no text" in result.stderr


def test_models_list() -> None:
    found = json.loads(run("models", "list", "--json").stdout)
    assert "smollm2-135m" in {row["name"] for row in found}
    assert "smollm2-135m" in run("models", "list").stdout


def test_models_info(organism: Any) -> None:
    found = json.loads(run("models", "info", organism[0], "--json").stdout)
    assert (found["layers"], found["heads"], found["family"]) == (6, 6, "llama")
    assert "self_attn" in run("models", "info", organism[0]).stdout


def test_models_fetch_of_an_unknown_name() -> None:
    result = run("models", "fetch", "smolm2")
    assert result.exit_code == 1
    assert "Did you mean 'smollm2-135m'" in result.stderr


@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_bytes(smollm2: Any, tmp_path: Path) -> None:
    """SIGKILL in the middle, the same command again: the Parquet equals that of an undisturbed run."""
    size = ("--n", "4", "--lengths", "256", "--length", "64", "--no-verify")

    def command(out: Path) -> list[str]:
        words = ["rank", "retrieval", "sinks", "induction", "--model", "smollm2-135m", "--out", str(out), *size]
        return [sys.executable, "-m", "headscope", *words]

    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True)
    process = subprocess.Popen(command(tmp_path / "cut"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(list((tmp_path / "cut").rglob("*.shard"))) < 2 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not list((tmp_path / "cut").glob("*.parquet"))
    subprocess.run(command(tmp_path / "cut"), check=True, capture_output=True)
    for probe in ("retrieval", "sinks", "induction"):
        whole, cut = ((tmp_path / name / f"{probe}.parquet").read_bytes() for name in ("whole", "cut"))
        stamp = rb'"created":"[^"]*"'
        assert re.sub(stamp, b"", whole) == re.sub(stamp, b"", cut)


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
