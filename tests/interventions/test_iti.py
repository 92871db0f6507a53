from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import headscope as hs
from headscope.errors import CheckpointError, DataError, RequestError
from headscope.interventions.iti import ITI, ITIRecipe, fit_iti, fit_probes
from headscope.interventions.store import load, save
from headscope.interventions.training import Example
from headscope.models.prompt import Prompt
from headscope.models.tiny import tiny

RIGHT, WRONG = 7, 9


def made(**options: Any) -> Any:
    return hs.load(tiny("llama", **options), validate=False)


def prompts(n: int = 40, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    return [
        Example(f"e{i}", f"s{i}", Prompt.from_ids(rng.integers(10, 90, 4 + i % 5)), (RIGHT,), ((WRONG,),))
        for i in range(n)
    ]


def planted() -> tuple[Any, tuple[int, int], np.ndarray]:
    """A model of which one head of layer 0 reads what tells right from wrong; the others see noise alone.

    The embeddings of both answers differ along one direction, which only one value projection maps to anything.
    """
    hf, direction = tiny("llama", num_key_value_heads=4), np.random.default_rng(5).normal(size=8)
    direction /= np.linalg.norm(direction)
    with torch.no_grad():
        embed = hf.model.embed_tokens.weight
        embed[WRONG] = embed[RIGHT]
        embed[RIGHT, 0], embed[WRONG, 0] = 3.0, -3.0
        attention = hf.model.layers[0].self_attn
        attention.q_proj.weight.zero_()  # attend evenly, to the answer's own token too
        attention.v_proj.weight[:, 0] = 0
        attention.v_proj.weight[16:24] *= 0.3
        attention.v_proj.weight[16:24, 0] = torch.tensor(direction, dtype=torch.float32)
    return hs.load(hf, validate=False), (0, 2), direction


@pytest.mark.parametrize("kind", ["mass_mean_shift", "probe_weight"])
def test_finds_the_planted_head_and_direction(kind: Any) -> None:
    model, head, direction = planted()
    # Layer 1 reads what layer 0 wrote: the planted head is the only one of its own layer, so look there.
    tuned = fit_iti(model, prompts(40), prompts(40, seed=1), ITIRecipe(k=1, direction=kind))
    scores = tuned.scores
    assert scores is not None
    first = scores.table[scores.table["layer"] == 0].set_index("head")["score"]
    assert first.idxmax() == head[1]
    assert first[head[1]] > 0.95
    assert first.drop(head[1]).max() < 0.85
    method = fit_iti(model, prompts(40), prompts(40, seed=1), ITIRecipe(k=8, direction=kind)).method
    assert isinstance(method, ITI)
    found = method.directions[method.heads.index(head)]
    assert float(found @ direction) > (0.95 if kind == "mass_mean_shift" else 0.7)
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-5)


def test_probes_minimise_the_objective_of_logistic_regression() -> None:
    rng = np.random.default_rng(0)
    x, truth = rng.normal(size=(3, 60, 5)), rng.random(60) < 0.5
    x[1, truth] += 1.0  # one easy head
    x[2, truth] += 50.0  # one that separates the classes
    y = np.where(truth, 1.0, -1.0)
    w, b = fit_probes(x, truth, C=0.7)

    def objective(p: np.ndarray, features: np.ndarray) -> float:
        return p[:-1] @ p[:-1] / 2 + 0.7 * np.logaddexp(0, -y * (features @ p[:-1] + p[-1])).sum()

    for head in range(3):
        best = minimize(objective, np.zeros(6), args=(x[head],), method="L-BFGS-B", tol=1e-14)
        assert objective(np.append(w[head], b[head]), x[head]) == pytest.approx(best.fun, rel=1e-6)
        np.testing.assert_allclose(np.append(w[head], b[head])[:-1], best.x[:-1], atol=2e-3)
    with pytest.raises(DataError, match="one kind"):
        fit_probes(x, np.ones(60, dtype=bool))


def test_shift_is_alpha_standard_deviations_along_the_direction() -> None:
    model = made()
    data = prompts()
    method = fit_iti(model, data, data, ITIRecipe(k=2, alpha=4.0)).method
    assert isinstance(method, ITI)
    seen = []
    (layer, head), direction, sigma = method.heads[0], method.directions[0], method.sigma[0]
    output = model.sites.stack(None)[layer].output
    ids = {"input_ids": torch.arange(10, 20)[None]}
    for edits in ((), (method.with_heads([(layer, head)]),)):
        with model.edited(*edits):
            handle = output.register_forward_hook(lambda module, args, out: seen.append(args[0].view(10, 4, 8)))
            model.run(ids)
            handle.remove()
    change = (seen[1] - seen[0])[:, head]
    torch.testing.assert_close(
        change, torch.tensor(4.0 * sigma * direction, dtype=torch.float32).expand(10, 8), rtol=1e-4, atol=1e-5
    )


def test_sigma_is_the_spread_of_z_on_the_training_answers() -> None:
    model, data = made(), prompts(10)
    method = fit_iti(model, data, data, ITIRecipe(k=8), batch=3).method
    assert isinstance(method, ITI)
    z = []
    for example in data:
        for answer in (example.answer, example.wrong[0]):
            run = model.run(model.prompt_from_ids([*example.prompt.ids, *answer]), [hs.HeadOutput(queries="last")])
            z.append(run["head_output"].isel(batch=0, query=0).transpose("layer", "head", "dim").values)
    for (layer, head), direction, sigma in zip(method.heads, method.directions, method.sigma, strict=True):
        x = np.stack([sample[layer, head] for sample in z])
        assert sigma == pytest.approx((x @ direction).std(), rel=1e-4)
        shift = x[::2].mean(0) - x[1::2].mean(0)
        np.testing.assert_allclose(direction, shift / np.linalg.norm(shift), atol=1e-4)


def test_no_strength_is_no_edit() -> None:
    model, data = made(), prompts(10)
    method = fit_iti(model, data, data, ITIRecipe(k=3)).method
    ids = {"input_ids": torch.arange(10, 20)[None]}
    base = model.run(ids).logits
    assert method.neutralised().neutral
    with model.edited(method.neutralised()):
        assert torch.equal(model.run(ids).logits, base)
    with model.edited(method):
        assert not torch.allclose(model.run(ids).logits, base, atol=1e-3)


def test_heads_are_the_best_on_validation() -> None:
    model, data = made(), prompts(20)
    tuned = fit_iti(model, data, prompts(20, seed=1), ITIRecipe(k=3))
    assert tuned.scores is not None
    assert isinstance(tuned.method, ITI)
    best = tuned.scores.table.sort_values(["score", "loss"], ascending=[False, True])[:3]
    assert set(tuned.method.heads) == set(zip(best["layer"], best["head"], strict=True))
    assert tuned.scores.selected
    assert tuned.parameters == 3 * 8


def test_what_was_read_is_kept(tmp_path: Path) -> None:
    model, data = made(), prompts(10)
    first = fit_iti(model, data, data, ITIRecipe(k=2), out=tmp_path)
    runs = []
    original, model.run = model.run, lambda *args, **kwargs: runs.append(args)
    assert fit_iti(model, data, data, ITIRecipe(k=2), out=tmp_path).method == first.method
    assert not runs
    model.run = original
    with pytest.raises(CheckpointError, match="another run"):
        fit_iti(model, prompts(11), data, ITIRecipe(k=2), out=tmp_path)


def test_files_round_trip(tmp_path: Path) -> None:
    model, data = made(), prompts(10)
    method = fit_iti(model, data, data, ITIRecipe(k=2, alpha=3.0)).method
    path = save(tmp_path / "iti.json", method, model=model)
    assert load(path, model) == (method,)
    with pytest.raises(CheckpointError, match="weights differ"):
        load(path, made(seed=1))


def test_what_cannot_be_fitted_says_so() -> None:
    model, data = made(), prompts(4)
    bare = [Example(e.id, e.source, e.prompt, e.answer) for e in data]
    with pytest.raises(DataError, match="no validation example"):
        fit_iti(model, data, bare, ITIRecipe(k=1))
    with pytest.raises(RequestError, match="has 8 heads"):
        fit_iti(model, data, data, ITIRecipe(k=9))
    for wrong in ({"k": 0}, {"direction": "pca"}, {"C": 0}):
        with pytest.raises(RequestError):
            ITIRecipe(**wrong)  # type: ignore[arg-type]
    row = np.ones((1, 8))
    for heads, directions, sigma, alpha in (
        ((), row, (1.0,), 1.0),
        (((0, 0),), row, (-1.0,), 1.0),
        (((0, 0),), row, (1.0, 2.0), 1.0),
        (((0, 0),), row, (1.0,), np.inf),
        (((0, 0), (0, 1)), row, (1.0, 1.0), 1.0),
    ):
        with pytest.raises(RequestError):
            ITI(heads, directions, sigma, alpha)
