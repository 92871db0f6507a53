"""Ablations: heads, MLPs, layers and neurons, and what is put in their place."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import headscope as hs
from headscope.errors import DataError, RequestError
from headscope.interventions import Ablation
from headscope.interventions.store import decode, encode
from headscope.models.tiny import tiny
from tests.interventions.small import prompt, small, steps


def references(model, n: int = 4) -> list:
    rng = np.random.default_rng(1)
    return [model.prompt_from_ids(rng.integers(5, 60, 12 + i).tolist()) for i in range(n)]


def seen(model, method, layer: int = 0):
    """z (H, T, Dv) and the MLP activation (T, U) of a layer under a method."""
    with model.edited(method):
        run = model.run(prompt(model), [hs.HeadOutput(layers=[layer]), hs.MlpActivation(layers=[layer])])
    return run["head_output"].values[0, 0], run["mlp_activation"].values[0, 0]


def test_zero_of_a_layer_passes_the_stream_on() -> None:
    model = small(layers=3)
    with model.edited(Ablation(layers=1)):
        run = model.run(prompt(model), [hs.Residual()])
    stream = run["residual"].values
    assert np.array_equal(stream[2], stream[1])
    assert not np.array_equal(stream[3], stream[2])


def test_zero_of_heads_mlps_and_neurons_removes_them_alone() -> None:
    model = small()
    z, act = seen(model, Ablation(heads=[(0, 1)]))
    assert (z[1] == 0).all()
    assert (z[[0, 2, 3]] != 0).any(axis=(1, 2)).all()
    z, act = seen(model, Ablation(mlps=(0,)))
    assert (act == 0).all()
    assert (z != 0).any()
    _, act = seen(model, Ablation(neurons=[(0, 3), (0, 40)]))
    assert (act[:, [3, 40]] == 0).all()
    assert (np.delete(act, [3, 40], axis=1) != 0).any(axis=0).all()
    assert (seen(model, Ablation("all"))[0] == 0).all()


def test_a_whole_mlp_at_its_mean_is_its_mean_output() -> None:
    """The down projection is linear, so the mean of the activation gives the mean of the output."""
    model = small()
    given = references(model)
    method = Ablation.fit(model, given, mlps=(0,))
    outputs = []
    for one in given:
        x = torch.as_tensor(model.run(one, [hs.MlpActivation(layers=[0])])["mlp_activation"].values[0, 0])
        outputs.append(model.sites.stack(None)[0].mlp(x).detach())
    expected = torch.cat(outputs).mean(0)
    got = model.sites.stack(None)[0].mlp(torch.as_tensor(seen(model, method)[1][5])).detach()
    assert got == pytest.approx(expected, abs=1e-5)


def test_means_are_those_of_the_reference_prompts() -> None:
    model = small()
    given = references(model)
    method = Ablation.fit(model, given, heads=[(0, 1), (1, 2)], neurons=[(0, 3)])
    z = np.concatenate([model.run(p, [hs.HeadOutput(layers=[0])])["head_output"].values[0, 0, 1] for p in given])
    act = np.concatenate([model.run(p, [hs.MlpActivation()])["mlp_activation"].values[0, 0] for p in given])
    found, units = seen(model, method)
    assert found[1] == pytest.approx(np.broadcast_to(z.mean(0), found[1].shape), abs=1e-5)
    assert units[:, 3] == pytest.approx(np.full(24, act[:, 3].mean()), abs=1e-5)
    fewer = Ablation.fit(model, given, heads=[(0, 1)], positions=3)
    assert not np.allclose(fewer.values[0, 1], method.values[0, 1])
    assert fewer == Ablation.fit(model, given, heads=[(0, 1)], positions=3)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_resampled_outputs_are_rows_of_the_reference(family) -> None:
    """Drawn anew for each position, the same in prefill, while decoding, and under padding."""
    model = small(family)
    method = Ablation.fit(model, references(model), mode="resample", heads=[(0, 1)], mlps=(0,), seed=3)
    z, act = seen(model, method)
    for got, bank in ((z[1], method.values[0, 1]), (act, method.units[0])):
        rows = [int(abs(bank - row).sum(-1).argmin()) for row in got]
        assert got == pytest.approx(bank[rows], abs=1e-6)
        assert len(set(rows)) > 8
    longer = model.prompt_from_ids([*prompt(model).ids, 7, 8, 9])
    with model.edited(method):
        assert steps(model) == pytest.approx(model.run(longer).logits[0, -4:], abs=1e-4)
        short = prompt(model, 20)
        both = model.run([prompt(model), short]).logits
        assert both[1, -20:] == pytest.approx(model.run(short).logits[0], abs=1e-4)
    other = seen(model, Ablation.fit(model, references(model), mode="resample", heads=[(0, 1)], mlps=(0,), seed=4))
    assert not np.allclose(other[1], act)


def test_resampling_lets_no_later_token_through() -> None:
    model = small()
    method = Ablation.fit(model, references(model), mode="resample", layers=(0,))
    changed = model.prompt_from_ids([*prompt(model).ids[:-1], 50])
    with model.edited(method):
        a, b = (model.run(p).logits[0, :-1] for p in (prompt(model), changed))
    assert a == pytest.approx(b, abs=1e-5)


def test_fitted_for_all_heads_it_can_be_moved_to_any() -> None:
    model = small()
    method = Ablation.fit(model, references(model), heads="all")
    moved = method.with_heads([(1, 2)])
    z, _ = seen(model, moved, layer=1)
    assert z[2] == pytest.approx(np.broadcast_to(method.values[1, 2], z[2].shape), abs=1e-6)
    few = Ablation.fit(model, references(model), heads=[(0, 1)])
    with pytest.raises(RequestError, match="no values for heads"), model.edited(few.with_heads([(1, 2)])):
        pass


def test_what_removal_means_is_said() -> None:
    assert "set to 0" in Ablation([(0, 1)]).semantics
    assert "'span'" in Ablation([(0, 1)], mode="mask", region="span").semantics
    both = Ablation(layers=(0,)).semantics
    assert "output projection" in both
    assert "down projection" in both
    assert "output projection" not in Ablation(neurons=[(0, 1)]).semantics.split("biases")[0]
    model = small()
    for mode in ("mean", "resample"):
        said = Ablation.fit(model, references(model), mode=mode, layers=(0,)).semantics
        assert said.startswith(f"{mode} ablation: ")
        assert "reference prompts" in said


def test_files_hold_what_was_collected() -> None:
    model = small()
    method = Ablation.fit(model, references(model, 2), mode="resample", layers=(0,), seed=1)
    back = decode(encode(method))
    assert back == method
    assert np.array_equal(seen(model, back)[1], seen(model, method)[1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ablation(), "nothing to remove"),
        (lambda: Ablation("all", mode="half"), "choose one of"),
        (lambda: Ablation("all", mode="mask"), "is empty"),
        (lambda: Ablation(layers=(0,), mode="mask", region="span"), "hides keys from heads"),
        (lambda: Ablation("all", region="span"), "takes no region"),
        (lambda: Ablation("all", mode="mean"), "Ablation.fit"),
        (lambda: Ablation("all", values={(0, 1): [1.0]}), "takes no values"),
        (lambda: Ablation("all", mode="mean", values={(0, 1): [[1.0]]}), "takes one vector"),
        (lambda: Ablation("all", mode="resample", values={(0, 1): [1.0]}), "a bank"),
        (lambda: Ablation("all", mode="mean", values={(0, 1): [np.nan]}), "finite"),
        (lambda: Ablation.fit(small(), ["x"], mode="zero", heads="all"), "needs no reference"),
        (lambda: Ablation(layers=(9,)).edits(small()), "there is no 9"),
        (lambda: Ablation(mlps=(1,), mode="mean", values={(0, 0): [1.0]}).edits(small()), "reference activations"),
        (lambda: Ablation(mlps=(0,)).edits(hs.load(tiny("gpt_oss"), validate=False)), "no MLP activation"),
    ],
)
def test_senseless_ablations(make, message) -> None:
    with pytest.raises(RequestError, match=message):
        make()


def test_heads_that_are_not_there() -> None:
    with pytest.raises(RequestError, match="layers of this model"), small().edited(Ablation([(9, 0)])):
        pass


def test_no_reference_is_an_error() -> None:
    with pytest.raises(DataError, match="there is none"):
        Ablation.fit(small(), [], heads="all")
