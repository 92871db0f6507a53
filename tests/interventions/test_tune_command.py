from __future__ import annotations

import csv
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import headscope as hs
from headscope.commands.tune import tune
from headscope.errors import HeadscopeError
from headscope.interventions import lora

needs_peft = pytest.mark.skipif(not lora.available(), reason="peft is not installed")


@dataclass(frozen=True)
class Item:
    id: str
    split: str
    word: str
    gold: str
    source: str = "s"
    answers: tuple[str, ...] = ("light", "night")

    def prompt(self, model: Any) -> Any:
        return model.prompt(f"The {self.word} was found {self.id}:")


def items() -> list[Item]:
    splits = ["train"] * 8 + ["validation"] * 4 + ["test"] * 6
    return [
        Item(str(i), split, "river" if i % 2 else "house", "light" if i % 2 else "night")
        for i, split in enumerate(splits)
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An organism on disk, and a task of few items in place of the real ones."""
    hs.data.organism("llama", seed=0).save(tmp_path / "model")
    task = SimpleNamespace(items=items(), answers=None)
    fake = SimpleNamespace(make=lambda name, model, n, seed: task)
    monkeypatch.setitem(sys.modules, "headscope.data.tasks", fake)
    return tmp_path


def run(folder: Path, method: str, *options: str) -> Any:
    app = typer.Typer()
    app.command()(tune)
    fixed = ["--model", str(folder / "model"), "--out", str(folder / "edit.json"), "--k", "2", "--epochs", "1"]
    return CliRunner().invoke(app, [method, *fixed, *options], catch_exceptions=False)


@needs_peft
def test_lofit_beside_its_baselines(folder: Path) -> None:
    result = run(folder, "lofit", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert [row["method"] for row in found["methods"]] == ["untuned", "LoFiT", "LoFiT, random heads", "ITI", "LoRA"]
    assert found["training"]["LoFiT"]["parameters"] == 2 * 64
    assert all(Path(path).is_file() for path in found["files"])
    model = hs.load(folder / "model")
    (method,) = hs.interventions.load(folder / "edit.json", model)
    assert method.name == "lofit"
    with (folder / "edit-run" / "comparison.csv").open() as file:
        assert [row["method"] for row in csv.DictReader(file)] == [row["method"] for row in found["methods"]]
    again = json.loads(run(folder, "lofit", "--json").stdout)
    assert again["methods"] == found["methods"]


@pytest.mark.parametrize("method", ["lofit", "iti", pytest.param("lora", marks=needs_peft)])
def test_one_method_alone(folder: Path, method: str) -> None:
    result = run(folder, method, "--no-baselines")
    assert result.exit_code == 0
    assert "untuned" in result.stdout
    (loaded,) = hs.interventions.load(folder / "edit.json", hs.load(folder / "model"))
    assert loaded.name == method


def test_lora_without_peft_stops_before_it_trains(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(HeadscopeError, match="pip install"):
        run(folder, "lora")
    assert not (folder / "edit-run").exists()


def test_wrong_usage() -> None:
    app = typer.Typer()
    app.command()(tune)
    for options in (["pasta"], ["lofit", "--loss", "mse"], ["lofit", "--k", "0"]):
        assert CliRunner().invoke(app, options).exit_code == 2
