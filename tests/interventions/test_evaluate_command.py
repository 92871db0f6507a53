"""``headscope evaluate`` as its users meet it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import headscope as hs
from headscope.cli import app
from headscope.commands.evaluate import built, named_files, task_items, task_options
from headscope.data import tasks
from headscope.errors import DataError, RequestError
from headscope.interventions import PASTA, drift, store
from tests.interventions import quiz

RETRIEVAL = ((2, 1), (3, 2))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An organism on disk with a method for it, and a quiz in place of the real tasks."""
    hs.data.organism("llama", seed=0).save(tmp_path / "model")
    model = hs.load(tmp_path / "model")
    store.save(tmp_path / "edit.json", PASTA(heads=RETRIEVAL, region="fact"), model=model)
    monkeypatch.setattr(tasks, "make", lambda name, model, n, seed, **options: quiz.task(n))
    monkeypatch.setattr(drift, "TEXTS", 3)
    monkeypatch.setattr(drift, "LENGTH", 20)
    return tmp_path


def run(*words: Any) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, words)], env={"COLUMNS": "200", "NO_COLOR": "1"})


def quick(folder: Path, *words: Any) -> Result:
    return run("--model", folder / "model", "--out", folder / "run", "-n", 12, "--controls", 2, *words)


def test_one_table_with_notes_below(folder: Path) -> None:
    result = quick(folder, "--edit", folder / "edit.json")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert any(all(name in line for name in ("method", "valid", "strained", "gain", "p", "drift")) for line in lines)
    (row,) = [line for line in lines if line.strip().startswith("edit ")]
    assert row.split()[1:5] == ["1.000", "1.000", "1.000", "1.000"]
    assert max(map(len, lines[: lines.index(row) + 2])) <= 80
    assert any(line.startswith("- edit: accuracy rises") for line in lines)
    assert (folder / "run" / "report.html").is_file()


def test_json_is_one_document(folder: Path) -> None:
    result = quick(folder, "--edit", f"steered={folder / 'edit.json'}", "--json", "--no-generate", "--no-drift")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [row["method"] for row in found["methods"]] == ["base", "steered", "steered, neutral"]
    assert found["methods"][0]["n"] == 12
    assert found["methods"][1]["accuracy"] is None
    assert found["methods"][1]["drift"] is None
    assert len(found["controls"]) == 2
    assert all(Path(path).is_file() for path in found["files"])


def test_methods_by_name_act_on_the_region_of_the_task(folder: Path) -> None:
    words = ["--method", "pasta", "--heads", "2.1,3.2", "--set", "alpha=0.05", "--no-drift", "--json"]
    result = quick(folder, *words)
    assert result.exit_code == 0, result.output
    (described,) = json.loads(result.stdout)["provenance"]["methods"]["pasta"]
    assert described["region"] == ["fact"]
    assert described["alpha"] == 0.05
    assert described["heads"] == [list(pair) for pair in RETRIEVAL]


def test_a_folder_of_another_run_is_kept(folder: Path) -> None:
    assert quick(folder, "--no-drift").exit_code == 0
    other = quick(folder, "--no-drift", "--batch", 2)
    assert other.exit_code == 1
    assert "another run" in other.output
    assert quick(folder, "--no-drift", "--batch", 2, "--fresh").exit_code == 0


def test_an_edit_of_another_model_is_refused(folder: Path) -> None:
    hs.data.organism("llama", seed=1).save(folder / "other")
    result = run("--model", folder / "other", "--edit", folder / "edit.json", "--out", folder / "run")
    assert result.exit_code == 1
    assert "whose weights differ" in result.output
    assert "Traceback" not in result.output
    assert not (folder / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "alpha=1"], "belong to a --method"),
        (["--method", "pasta", "--set", "alfa=1"], "no field 'alfa'"),
        (["--method", "pasta", "--method", "spotlight", "--set", "alpha=1"], "say of which method, as pasta.alpha=1"),
        (["--method", "pasta", "--set", "spotlight.psi=1"], "no method 'spotlight' here"),
        (["--split", "tset"], "no split 'tset'"),
        (["--edit", "missing.json"], "There is no file missing.json"),
    ],
)
def test_mistakes_are_named(folder: Path, words: list[str], message: str) -> None:
    result = quick(folder, *words)
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())


@pytest.mark.parametrize(
    "words", [["-n", "0"], ["--controls", "-1"], ["--option", "length"], ["--edit", "a=x.json", "--edit", "a=y.json"]]
)
def test_wrong_usage(words: list[str]) -> None:
    assert run(*words).exit_code == 2


def test_names_of_edits(tmp_path: Path) -> None:
    odd = tmp_path / "a=b.json"
    odd.write_text("{}")
    found = named_files(["runs/lofit.json", "iti=x.json", str(odd)])
    assert found == {"lofit": Path("runs/lofit.json"), "iti": Path("x.json"), "a=b": odd}


def test_options_are_what_they_look_like() -> None:
    found = task_options(["length=400", "share=0.5", "chat=true", "name=x=y", "shots=none"])
    assert found == {"length": 400, "share": 0.5, "chat": True, "name": "x=y", "shots": None}
    assert isinstance(found["length"], int)


def test_settings_go_to_the_method_they_name() -> None:
    model, _ = quiz.organism()
    words = ["pasta.alpha=0.5", "spotlight.psi=0.3"]
    found = built(model, ["pasta", "spotlight"], words, None, None, "fact", taken=set())
    assert found["pasta"].alpha == 0.5
    assert found["spotlight"].psi == 0.3
    with pytest.raises(RequestError, match="both called 'pasta'"):
        built(model, ["pasta"], [], None, None, "fact", taken={"pasta"})


def test_as_many_items_as_asked_for() -> None:
    model, _ = quiz.organism()
    for n in (7, 30):
        task, items = task_items("sentiment", model, n, 3, "validation", {"shots": 2})
        assert len(items) == n
        assert {item.split for item in items} == {"validation"}
        assert task.parameters["shots"] == 2
    with pytest.raises(DataError, match="no split"):
        task_items("sentiment", model, 7, 3, "all", {})


def test_the_real_task_on_an_organism(tmp_path: Path) -> None:
    hs.data.organism("llama", seed=0).save(tmp_path / "model")
    words = ["--method", "zerotuning", "-n", 6, "--option", "shots=0", "--no-drift", "--json"]
    result = run("--task", "sentiment", "--model", tmp_path / "model", "--out", tmp_path / "run", *words)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert {row["label"] for row in found["labels"]} == {"positive", "negative", "(none)"}
    base, method, neutral = found["methods"]
    assert base["valid"] == 0  # an organism knows no English
    assert 0 <= base["constrained"] <= 1
    assert method["accuracy_among_valid"] is None
    assert neutral["logprob"] == base["logprob"]


def test_help_is_quick_and_has_examples() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "headscope", "evaluate", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=None)
    assert "headscope evaluate --task sentiment --edit edit.json" in " ".join(result.stdout.split())
    # What takes time is importing libraries: none of them is.
    for heavy in ("torch", "transformers", "pandas", "numpy", "plotly"):
        assert not any(line.rpartition("|")[2].strip() == heavy for line in result.stderr.splitlines()), heavy


@pytest.mark.slow
def test_methods_on_real_weights(smollm2: Any, tmp_path: Path) -> None:
    task, items = task_items("sentiment", smollm2, 12, 0, "test", {})
    methods = {"zerotuning": hs.interventions.ZeroTuning(gamma=1.5), "pasta": PASTA(heads=((8, 1),), region="text")}
    found = hs.interventions.evaluate(smollm2, task, methods, items=items, controls=1, out=tmp_path)
    table = found.table.set_index("method")
    assert table.loc["base", "valid"] > 0.5
    assert math.isfinite(table.loc["pasta", "p_value"])
    assert table["perplexity_ratio"].dropna().between(0.5, 2).all()
