from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import headscope as hs
from headscope.errors import CheckpointError, HeadscopeError, OutputError, RequestError
from headscope.interventions import lora
from headscope.interventions.lora import LoRA, LoRARecipe, LowRankEdit, plan, tune_lora
from headscope.interventions.store import load, save
from headscope.interventions.training import Example, score
from headscope.models.prompt import Prompt
from headscope.models.tiny import tiny

needs_peft = pytest.mark.skipif(not lora.available(), reason="peft is not installed")


def made(family: str = "llama", **options: Any) -> Any:
    return hs.load(tiny(family, **options), validate=False)


def prompts(n: int = 12) -> list[Example]:
    rng = np.random.default_rng(0)
    return [
        Example(f"e{i}", f"s{i}", Prompt.from_ids(rng.integers(10, 90, 4 + i % 5)), (7, 3), ((9, 5, 6),))
        for i in range(n)
    ]


IDS = {"input_ids": torch.arange(10, 25)[None]}


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "phi3", "qwen3", "opt"])
@pytest.mark.parametrize("budget", [1, 60, 100, 250, 1000, 5000])
def test_budget_is_matched(family: str, budget: int) -> None:
    model = made(family, num_hidden_layers=6) if family != "gpt2" else made(family, n_layer=6)
    found = plan(model, budget)
    sizes = [model.hf.get_submodule(path).weight.shape for path in found.modules]
    assert found.parameters == found.rank * sum(sum(size) for size in sizes)
    smallest = min(plan(model, 1).parameters, found.parameters)
    assert abs(found.parameters - budget) <= max(0.35 * budget, smallest)
    assert len(set(found.modules)) == len(found.modules)


def test_a_tight_budget_spreads_over_layers() -> None:
    model = made(num_hidden_layers=6)  # q maps 32 to 32, v 32 to 16: 112 numbers for rank 1 in a layer
    assert plan(model, 336).modules == tuple(
        f"model.layers.{layer}.self_attn.{name}_proj" for layer in (0, 2, 4) for name in "qv"
    )
    assert plan(model, 48).modules == ("model.layers.2.self_attn.v_proj",)
    assert plan(model, 1344).rank == 2


@needs_peft
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("loss", ["sft", "dpo"])
def test_trains_saves_and_runs_without_peft(family: str, loss: Any, tmp_path: Path) -> None:
    model, data = made(family), prompts()
    before = {name: value.clone() for name, value in model.hf.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.hf.parameters()]
    recipe = LoRARecipe(budget=200, lr=2e-2, epochs=4, batch=4, loss=loss)
    tuned = tune_lora(model, data, recipe, tmp_path / "adapter")
    losses = [line["loss"] for line in tuned.history["lora"]]
    assert losses[-1] < losses[0]
    assert tuned.parameters == plan(model, 200).parameters
    assert set(model.hf.state_dict()) == set(before)
    assert all(torch.equal(value, before[name]) for name, value in model.hf.state_dict().items())
    assert not hasattr(model.hf, "peft_config")
    assert [parameter.requires_grad for parameter in model.hf.parameters()] == flags
    base = model.run(IDS).logits
    with model.edited(tuned.method):
        edited = model.run(IDS).logits
    assert not torch.allclose(edited, base, atol=1e-3)
    # As peft itself runs it.
    import peft

    adapted = peft.PeftModel.from_pretrained(tiny(family), tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(adapted(**IDS).logits, edited, rtol=0, atol=1e-4)


@needs_peft
def test_files(tmp_path: Path) -> None:
    model = made()
    method = tune_lora(model, prompts(), LoRARecipe(budget=200, lr=2e-2, epochs=1), tmp_path / "adapter").method
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "headscope.json"}
    path = save(tmp_path / "edit.json", method, model=model)
    assert load(path, model) == (method,)
    assert path.stat().st_size < 1000
    with pytest.raises(CheckpointError, match="weights differ"), made(seed=1).edited(method):
        pass
    assert isinstance(method, LoRA)
    base = model.run(IDS).logits
    assert method.neutralised().neutral
    with model.edited(method.neutralised()):
        assert torch.equal(model.run(IDS).logits, base)
    # Trained again it is another adapter; the file of the first does not take it for its own.
    tune_lora(model, prompts(6), LoRARecipe(budget=200, lr=2e-2, epochs=1), tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="not the one that was saved"):
        load(path, model)


class Killed(Exception):
    pass


@needs_peft
def test_a_killed_run_goes_on_and_ends_alike(tmp_path: Path) -> None:
    model, data, recipe = made(), prompts(), LoRARecipe(budget=200, lr=2e-2, epochs=3, batch=4)
    tune_lora(model, data, recipe, tmp_path / "whole")

    def stop(task: str, done: int, total: int) -> None:
        if done == 5:
            raise Killed

    with pytest.raises(Killed):
        tune_lora(model, data, recipe, tmp_path / "again", out=tmp_path / "run", progress=stop)
    assert not hasattr(model.hf, "peft_config")
    assert not (tmp_path / "again").exists()
    steps: list[int] = []

    def count(task: str, done: int, total: int) -> None:
        steps.append(done)

    tune_lora(model, data, recipe, tmp_path / "again", out=tmp_path / "run", progress=count)
    assert steps[0] == 4
    weights = [(tmp_path / name / lora.WEIGHTS).read_bytes() for name in ("whole", "again")]
    assert weights[0] == weights[1]


def test_updates_add_up_as_they_should() -> None:
    model = made()
    down, up = torch.randn(2, 32), torch.randn(16, 2)
    edit = LowRankEdit(((1, "v_proj", down, up),))
    with model.edited(edit):  # type: ignore[arg-type]
        edited = model.run(IDS).logits
    with torch.no_grad():
        model.hf.model.layers[1].self_attn.v_proj.weight += up @ down
    torch.testing.assert_close(model.run(IDS).logits, edited, rtol=0, atol=1e-4)
    assert LowRankEdit(((1, "v_proj", down, torch.zeros(16, 2)),)).neutral
    for wrong in ((1, "w_proj", down, up), (9, "v_proj", down, up), (1, "q_proj", down, up)):
        with pytest.raises(RequestError, match="An update of"):
            LowRankEdit((wrong,)).validate(model.sites)


def adapter(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    from safetensors.torch import save_file

    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / lora.WEIGHTS)
    return folder


def test_foreign_and_damaged_adapters(tmp_path: Path) -> None:
    model, plain = made(), {"r": 2, "lora_alpha": 8}
    path = "base_model.model.model.layers.0.self_attn.v_proj"
    pair = {f"{path}.lora_A.weight": torch.randn(2, 32), f"{path}.lora_B.weight": torch.randn(16, 2)}
    (edit,) = LoRA(str(adapter(tmp_path / "good", plain, pair))).edits(model)
    assert isinstance(edit, LowRankEdit)
    torch.testing.assert_close(edit.updates[0][3], pair[f"{path}.lora_B.weight"] * 4)
    for i, (config, tensors, words) in enumerate(
        (
            ({**plain, "use_dora": True}, pair, "more than LoRA"),
            (plain, {"x": torch.ones(2)}, "more than LoRA"),
            ({"r": 2}, pair, "damaged"),
            (plain, {name.replace("self_attn", "mlp"): x for name, x in pair.items()}, "no attention layer"),
        )
    ):
        method = LoRA(str(adapter(tmp_path / str(i), config, tensors)))
        with pytest.raises(HeadscopeError, match=words):
            method.edits(model)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / lora.WEIGHTS).write_bytes(b"xx")
    (tmp_path / "cut" / lora.CONFIG).write_text(json.dumps(plain))
    with pytest.raises(CheckpointError, match="damaged"):
        LoRA(str(tmp_path / "cut")).edits(model)
    with pytest.raises(CheckpointError, match="There is no adapter"):
        LoRA(str(tmp_path / "none"))


@needs_peft
def test_a_folder_of_something_else_is_kept(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="something else"):
        tune_lora(made(), prompts(), LoRARecipe(budget=100), tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_without_peft_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(HeadscopeError, match=r"pip install 'headscope\[lora\]'"):
        tune_lora(made(), prompts(), LoRARecipe(budget=100), tmp_path / "a")


@needs_peft
def test_training_sees_the_adapter_alone(tmp_path: Path) -> None:
    """The first step's loss is that of the untuned model: an update begins at 0."""
    model, data = made(), prompts(4)
    with torch.no_grad():
        expected = -score(model, [(e, e.answer) for e in data]).logprobs.mean()
    tuned = tune_lora(model, data, LoRARecipe(budget=100, epochs=1, batch=4), tmp_path / "a")
    assert tuned.history["lora"][0]["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_wrong_recipes_are_refused() -> None:
    for wrong in ({"budget": 0}, {"budget": 10, "lr": -1}, {"budget": 10, "loss": "x"}):
        with pytest.raises(RequestError):
            LoRARecipe(**wrong)  # type: ignore[arg-type]
