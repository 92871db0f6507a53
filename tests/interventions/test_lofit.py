from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import headscope as hs
from headscope.attention.edits import HeadEdit
from headscope.errors import CheckpointError, DataError, ModelError, RequestError, UnsupportedError
from headscope.interventions.lofit import LoFiT, LoFiTRecipe, Table, overlap, select_heads, tune_lofit
from headscope.interventions.store import load, save
from headscope.interventions.training import Example, Recipe, examples, score, train
from headscope.models.prompt import Prompt
from headscope.models.tiny import tiny


def made(family: str = "llama", **options: Any) -> Any:
    return hs.load(tiny(family, **options), validate=False)


def prompts(n: int = 12, seed: int = 0, *, answer: int = 7, wrong: int = 9) -> list[Example]:
    """Prompts of different lengths that are all to be answered alike."""
    rng = np.random.default_rng(seed)
    return [
        Example(f"e{i}", f"s{i}", Prompt.from_ids(rng.integers(10, 90, 4 + i % 5)), (answer, 3), ((wrong, 5, 6),))
        for i in range(n)
    ]


QUICK = LoFiTRecipe(k=3, epochs=3, batch=4, lr_A=2e-2, lr_v=5e-2)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen3"])
@pytest.mark.parametrize("loss", ["sft", "dpo"])
def test_both_losses_fall(family: str, loss: Any) -> None:
    model, data = made(family), prompts()
    recipe = LoFiTRecipe(k=3, epochs=6, batch=4, lr_v=0.1, loss=loss)
    tuned = tune_lofit(model, data, recipe, heads=[(0, 1), (1, 0), (1, 3)])
    (history,) = tuned.history.values()
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]
    pairs = [(example, example.answer) for example in data], [(example, example.wrong[0]) for example in data]
    with torch.no_grad():
        before = [score(model, part).sums() for part in pairs]
        with model.edited(tuned.method):
            after = [score(model, part).sums() for part in pairs]
    assert (after[0] - after[1]).mean() > (before[0] - before[1]).mean()


def test_the_method_runs_as_it_was_trained() -> None:
    model, data = made(), prompts()
    table = Table(model, [(0, 2), (1, 1)], "v", seed=1)
    for tensor in table.tensors.values():
        tensor.mul_(1000)
    pairs = [(example, example.answer) for example in data]
    trained = score(model, pairs, under=table.under).logprobs
    with model.edited(LoFiT(((0, 2), (1, 1)), v=table.rows())):
        run = score(model, pairs).logprobs
    torch.testing.assert_close(trained, run, rtol=0, atol=1e-5)
    assert not torch.allclose(run, score(model, pairs).logprobs, atol=1e-2)


@pytest.mark.parametrize("part", ["v", "A"])
def test_no_offset_is_no_edit(part: str) -> None:
    model = made()
    method = LoFiT(((0, 0), (1, 2)), **{part: np.zeros((2, 8))})
    ids = torch.arange(10, 30)[None]
    base = model.run({"input_ids": ids}).logits
    assert method.neutral
    with model.edited(method):
        assert torch.equal(model.run({"input_ids": ids}).logits, base)
    table = Table(model, [(0, 0), (1, 2)], "v" if part == "v" else "A", seed=0)
    for tensor in table.tensors.values():
        tensor.zero_()
    with torch.no_grad(), table.under(None):
        assert torch.equal(model.hf(input_ids=ids).logits, base)
    full = LoFiT(((0, 0), (1, 2)), v=np.ones((2, 8)))
    assert full.neutralised().neutral
    with model.edited(full):
        assert not torch.allclose(model.run({"input_ids": ids}).logits, base, atol=1e-3)


def planted() -> tuple[Any, tuple[int, int]]:
    """A model of which one head alone reaches the output."""
    hf, head = tiny("llama", num_hidden_layers=2), (1, 2)
    with torch.no_grad():
        for layer, block in enumerate(hf.model.layers):
            weight = block.self_attn.o_proj.weight.view(32, 4, 8)
            for other in range(4):
                if (layer, other) != head:
                    weight[:, other] = 0
    return hs.load(hf, validate=False), head


@pytest.mark.parametrize("loss", ["sft", "dpo"])
def test_stage_1_selects_the_only_head_that_can_help(loss: Any) -> None:
    model, head = planted()
    scores = select_heads(model, prompts(), LoFiTRecipe(epochs=5, batch=4, l1=5e-3, loss=loss, candidates=1))
    assert scores.top(1) == [head]
    assert scores.selected == [head]
    ranked = scores.ranked()["score"]
    assert ranked[0] > 5 * ranked[1]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_stage_1_selects_the_planted_retrieval_heads(kind: str) -> None:
    """The organism's answers come from two retrieval heads; weakened, they are what a gain must restore."""
    made = hs.data.organism(kind, seed=0)
    heads = made.planted["retrieval"]
    model = hs.load(made.model, tokenizer=made.tokenizer, validate=False)
    with torch.no_grad():
        for layer, head in heads:
            output = model.sites.stack(None)[layer].output.weight
            (output if kind == "gpt2" else output.T)[head * 64 : (head + 1) * 64] *= 0.3
    data = []
    for sample in made.needles(n=6, lengths=(192,)):
        ids = model.tokenizer.encode(" " + sample.answer, add_special_tokens=False)
        data.append(Example(sample.id, sample.source, sample.prompt(model), tuple(ids)))
    scores = select_heads(model, data, LoFiTRecipe(epochs=8, batch=3, l1=5e-3, candidates=2))
    assert set(scores.selected) == set(heads)
    ranked = scores.ranked()["score"]
    assert ranked[1] > 1.5 * ranked[2]
    losses = scores.details["history"]["loss"]
    assert losses.is_monotonic_decreasing


def test_the_penalty_leaves_few_heads_large() -> None:
    model, data = made(), prompts()
    shares = []
    for l1 in (0.0, 0.2):
        scores = select_heads(model, data, LoFiTRecipe(epochs=10, batch=4, lr_A=1e-2, l1=l1))
        values = scores.table["score"].to_numpy()
        shares.append((values.sum(), values.max() / values.sum()))
    assert shares[1][0] < shares[0][0] / 2
    assert shares[1][1] > shares[0][1]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("loss", ["sft", "dpo"])
def test_padding_changes_nothing(family: str, loss: Any) -> None:
    """Either side, or none: one example at a time."""
    model, data = made(family), prompts(8)
    found = []
    for side in ("left", "right"):
        table = Table(model, [(0, 1), (1, 3)], "v", seed=3)
        recipe = Recipe(2e-2, epochs=2, batch=4, loss=loss, side=side)  # type: ignore[arg-type]
        train(model, table.tensors, data, recipe, under=table.under, stage=side)
        assert all(np.isfinite(row).all() for row in table.rows())
        found.append(np.stack(table.rows()))
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    table = Table(model, [(0, 1), (1, 3)], "v", seed=3)
    whole = score(model, [(e, e.answer) for e in data], under=table.under).sums()
    single = torch.cat([score(model, [(e, e.answer)], under=table.under).sums() for e in data])
    torch.testing.assert_close(whole, single, rtol=0, atol=1e-5)


def test_padding_is_not_edited() -> None:
    model = made()
    table = Table(model, [(0, 1)], "v", seed=0)
    table.tensors["layer0"].fill_(3.0)
    seen = []
    handle = model.sites.stack(None)[0].output.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    tensors = {"input_ids": torch.tensor([[0, 0, 11, 12]]), "attention_mask": torch.tensor([[0, 0, 1, 1]])}
    with torch.no_grad():
        model.hf(**tensors)
        with table.under(tensors["attention_mask"]):
            model.hf(**tensors)
    handle.remove()
    change = (seen[1] - seen[0]).view(4, 4, 8)
    assert torch.equal(change[:2], torch.zeros(2, 4, 8))
    torch.testing.assert_close(change[2:, 1], torch.full((2, 8), 3.0))
    assert not change[2:, [0, 2, 3]].any()


def test_only_the_tensors_are_trained_and_the_model_is_left_as_it_was() -> None:
    model = made()
    before = {name: value.clone() for name, value in model.hf.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.hf.parameters()]
    tune_lofit(model, prompts(), QUICK)
    assert all(torch.equal(value, before[name]) for name, value in model.hf.state_dict().items())
    assert [parameter.requires_grad for parameter in model.hf.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.hf.parameters())


def test_prompts_are_not_trained_on() -> None:
    """The loss looks at answers alone: a prompt's own tokens may be as unlikely as they like."""
    model, (example, *_) = made(), prompts(1)
    found = score(model, [(example, example.answer)])
    ids = torch.tensor([[*example.prompt.ids, *example.answer]])
    logits = model.hf(input_ids=ids).logits[0].log_softmax(-1)
    at = len(example.prompt) - 1
    torch.testing.assert_close(found.logprobs[0], logits[at, example.answer[0]])
    torch.testing.assert_close(found.logprobs[1], logits[at + 1, example.answer[1]])
    assert len(found.logprobs) == len(example.answer)


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_and_ends_alike(tmp_path: Path) -> None:
    model, data = made(), prompts()
    whole = tune_lofit(model, data, QUICK, out=tmp_path / "whole")

    def stop(task: str, done: int, total: int) -> None:
        if task == "lofit-tune" and done == 5:
            raise Killed

    with pytest.raises(Killed):
        tune_lofit(model, data, QUICK, out=tmp_path / "killed", progress=stop)
    steps: list[tuple[str, int]] = []
    again = tune_lofit(
        model, data, QUICK, out=tmp_path / "killed", progress=lambda task, done, total: steps.append((task, done))
    )
    assert steps[0] == ("lofit-tune", 4)  # behind the finished first epoch; stage 1 is not run again
    assert again.method == whole.method
    assert again.history == whole.history
    with pytest.raises(CheckpointError, match="another run"):
        tune_lofit(model, prompts(answer=8), QUICK, out=tmp_path / "killed")
    tune_lofit(model, prompts(answer=8), QUICK, out=tmp_path / "killed", fresh=True)


def test_equal_seeds_give_equal_tensors() -> None:
    model, data = made(), prompts()
    first, second = (tune_lofit(model, data, QUICK).method for _ in range(2))
    assert first == second
    assert first != tune_lofit(model, data, LoFiTRecipe(**{**vars(QUICK), "seed": 1})).method


@pytest.mark.parametrize("part", ["v", "A"])
def test_files_round_trip_and_belong_to_one_model(part: str, tmp_path: Path) -> None:
    model = made()
    rows = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    method = LoFiT(((1, 2), (0, 3)), **{part: rows})
    path = save(tmp_path / "edit.json", method, model=model)
    (loaded,) = load(path, model)
    assert loaded == method
    assert path.stat().st_size < 2000
    with model.edited(method):
        expected = model.run({"input_ids": torch.arange(5, 15)[None]}).logits
    with model.edited(loaded):
        assert torch.equal(model.run({"input_ids": torch.arange(5, 15)[None]}).logits, expected)
    with pytest.raises(CheckpointError, match="weights differ"):
        load(path, made(seed=1))


def test_values_belong_to_their_heads() -> None:
    rows = np.arange(16, dtype=np.float32).reshape(2, 8)
    (edit,) = LoFiT(((1, 2), (0, 3)), v=rows).edits(made())
    assert isinstance(edit, HeadEdit)
    assert edit.values is not None
    np.testing.assert_array_equal(edit.values[1, 2][1], rows[0])
    np.testing.assert_array_equal(edit.values[0, 3][1], rows[1])


def test_on_other_heads_the_change_keeps_its_size() -> None:
    method = LoFiT(((0, 0), (0, 1), (1, 2)), v=np.arange(24).reshape(3, 8))
    other = method.with_heads([(1, 2), (1, 0), (1, 1)])
    assert other.v is not None
    assert method.v is not None
    by_head = dict(zip(other.heads, other.v, strict=True))
    np.testing.assert_array_equal(by_head[1, 2], method.v[2])
    assert sorted(float(row.sum()) for row in other.v) == sorted(float(row.sum()) for row in method.v)
    with pytest.raises(RequestError, match="cannot act on 4"):
        method.with_heads([(0, head) for head in range(4)])


def test_overlap_beside_chance() -> None:
    heads = [(layer, head) for layer in range(10) for head in range(10)]
    frame = overlap({"a": heads[:10], "b": heads[5:15], "c": heads[50:60]}, total=100)
    ab, ac = frame.iloc[0], frame.iloc[1]
    assert (ab["shared"], ab["by_chance"]) == (5, 1.0)
    assert ab["p_value"] < 0.01
    assert (ac["shared"], ac["p_value"]) == (0, 1.0)
    with pytest.raises(RequestError, match="one size"):
        overlap({"a": heads[:10], "b": heads[:5]}, total=100)


class Item:
    id, source, gold, answers = "i", "s", "c", ("c", "d", "c")

    def prompt(self, model: Any) -> Prompt:
        return Prompt.from_ids([1, 2], None, None)


def test_items_of_a_task_become_examples() -> None:
    organism = hs.data.organism("llama", seed=0)
    model = hs.load(organism.model, tokenizer=organism.tokenizer)
    (example,) = examples(model, [Item()])
    assert len(example.wrong) == 1
    assert example.answer not in example.wrong


def test_what_cannot_be_trained_says_so() -> None:
    model, data = made(), prompts()
    with pytest.raises(DataError, match="no example"):
        tune_lofit(model, [], QUICK)
    bare = [Example(e.id, e.source, e.prompt, e.answer) for e in data]
    with pytest.raises(DataError, match="wrong one"):
        tune_lofit(model, bare, LoFiTRecipe(k=2, loss="dpo"))
    with pytest.raises(DataError, match="without tokens"):
        Example("x", "x", data[0].prompt, ())
    with pytest.raises(RequestError, match="has 8 heads"):
        tune_lofit(model, data, LoFiTRecipe(k=9))
    with pytest.raises(RequestError, match="layers of this model"):
        tune_lofit(model, data, QUICK, heads=[(5, 0)])
    with pytest.raises(UnsupportedError, match="no decoder"):
        tune_lofit(made("t5"), data, QUICK)
    broken = made()
    broken.hf.lm_head.weight.data[3, 3] = torch.nan
    with pytest.raises(ModelError, match="not finite"):
        tune_lofit(broken, data, QUICK, heads=[(0, 0)])
    for wrong in ({"lr_A": 0}, {"epochs": 0}, {"loss": "mse"}, {"l1": -1}, {"k": 0}, {"beta": float("nan")}):
        with pytest.raises(RequestError):
            LoFiTRecipe(**wrong)  # type: ignore[arg-type]
    for heads, values in ((((0, 0),), np.zeros((2, 8))), (((0, 0),), [[np.nan]]), (((0, 0), (0, 0)), np.zeros((2, 8)))):
        with pytest.raises(RequestError):
            LoFiT(heads, v=values)
    with pytest.raises(RequestError, match="neither v nor A"):
        LoFiT(((0, 0),))


def test_hooks_go_when_training_fails() -> None:
    model = made()
    with pytest.raises(Killed):
        tune_lofit(model, prompts(), QUICK, heads=[(0, 0)], progress=lambda *_: (_ for _ in ()).throw(Killed))
    assert not any(module._forward_pre_hooks for module in model.hf.modules() if isinstance(module, torch.nn.Linear))
