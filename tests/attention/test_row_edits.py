"""Edits of attention rows in running models: exact, in prefill and decoding alike, and gone afterwards."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import headscope as hs
from headscope.attention.edits import (
    AttentionEdit,
    ColumnSinks,
    Floor,
    Group,
    HeadEdit,
    KnockOut,
    LogitEdit,
    Redistribute,
    ResidualPeaks,
    Scale,
    Transfer,
)
from headscope.errors import CheckpointError, RequestError
from headscope.models.tiny import tiny as tiny_model

FAMILIES = ["gpt2", "llama", "mistral", "gemma2", "gpt_oss", "opt"]
HEADS = ((0, 1), (1, 0))
IDS = list(range(5, 29))
REGIONS = {"span": range(4, 9), "tail": range(15, 20)}


def tiny(family, seed=0):
    return hs.load(tiny_model(family, seed=seed))


def edits() -> dict[str, AttentionEdit | KnockOut | LogitEdit]:
    span, new = Group("span", ("span",)), Group("new", ("generated",))
    return {
        "scale": AttentionEdit(HEADS, (span, new), Scale((1.0, 1.0), rest=0.05)),
        "floor": AttentionEdit(HEADS, (span,), Floor(0.5)),
        "transfer": AttentionEdit(HEADS, (Group("sinks", ColumnSinks(0.05)),), Transfer(0.2)),
        "peaks": AttentionEdit(
            HEADS,
            (
                Group("out", ResidualPeaks((0, 1, 2), 1.0, outside="span")),
                Group("in", ResidualPeaks((0, 1, 2), 1.0, within="span")),
                Group("rest of it", ("span",)),
            ),
            Redistribute(0.3, 1.0, 0.0),
        ),
        "knock-out": KnockOut(HEADS, ("span",)),
        "logits": LogitEdit(HEADS, temperature=1.7, bias=0.8, boost=0.3, regions=("span",)),
    }


@pytest.fixture(params=FAMILIES)
def model(request):
    return tiny(request.param)


def prompt(model, more=(), ids=IDS):
    return model.prompt_from_ids([*ids, *more], {name: list(where) for name, where in REGIONS.items()})


@pytest.mark.parametrize("name", edits())
def test_an_edit_changes_logits_and_leaves_nothing(model, name) -> None:
    plain = model.run(prompt(model)).logits

    def failing() -> None:
        with model.edited(edits()[name]):
            found.append(model.run(prompt(model)).logits)
            raise KeyError

    found: list[torch.Tensor] = []
    with pytest.raises(KeyError):
        failing()
    changed = found[0]
    assert (changed - plain).abs().max() > 1e-6
    assert torch.equal(model.run(prompt(model)).logits, plain)


@pytest.mark.parametrize("name", edits())
def test_decoding_equals_prefill(model, name) -> None:
    """A step with a cache sees what the last row of one pass over the same tokens sees."""
    if name in ("transfer", "peaks"):
        pytest.skip("keys are found in the prefill, so a longer prefill finds others: see the test after this")
    given, more = prompt(model), [7, 8, 9]
    with model.edited(edits()[name]):
        steps = model.trace(given, teacher=[*more, 1]).logits[0]
        for count in range(len(more) + 1):
            grown = prompt(model, more[:count])
            run = model.run(grown, logits="last").logits[0, -1]
            if name != "scale" or count == 0:  # in one pass nothing is "generated"
                assert (run - steps[count]).abs().max() < 2e-5


@pytest.mark.parametrize("name", ["scale", "transfer", "peaks"])
def test_generate_equals_trace(name) -> None:
    made = hs.data.organism("llama", seed=0)
    model = hs.load(made.model, tokenizer=made.tokenizer)
    with model.edited(edits()[name]):
        trace = model.trace(prompt(model), max_new_tokens=6)
        assert model.generate(prompt(model), max_new_tokens=6) == trace.text


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", edits())
def test_a_batch_equals_its_prompts_alone(model, name, side) -> None:
    short = model.prompt_from_ids(IDS[:21], {name: list(where) for name, where in REGIONS.items()})
    with model.edited(edits()[name]):
        alone = [model.run(p).logits[0] for p in (prompt(model), short)]
        both = model.run([prompt(model), short], side=side).logits
    assert (both[0] - alone[0]).abs().max() < 1e-4
    rows = both[1, -21:] if side == "left" else both[1, :21]
    assert (rows - alone[1]).abs().max() < 1e-4


@pytest.mark.parametrize("name", edits())
def test_other_heads_of_the_first_edited_layer_are_bit_equal(model, name) -> None:
    wanted = [hs.HeadOutput(layers=[0])]
    plain = model.run(prompt(model), wanted)["head_output"].values
    with model.edited(edits()[name]):
        changed = model.run(prompt(model), wanted)["head_output"].values
    others = [head for head in range(plain.shape[2]) if head != 1]
    assert (plain[:, :, others] == changed[:, :, others]).all()


@pytest.mark.parametrize("name", edits())
def test_rows_that_an_edit_does_not_name_are_bit_equal(model, name) -> None:
    wanted, edit = [hs.HeadOutput(layers=[0])], replace(edits()[name], queries="span")
    short = model.prompt_from_ids(IDS[:21], {name: list(where) for name, where in REGIONS.items()})
    plain = model.run([prompt(model), short], wanted)["head_output"].values[0, :, 1]
    with model.edited(edit):
        changed = model.run([prompt(model), short], wanted)["head_output"].values[0, :, 1]
    for sample, shift in enumerate((0, 3)):  # the shorter prompt is padded on the left
        span = [q + shift for q in REGIONS["span"]]
        others = [q for q in range(shift, 24) if q not in span]
        assert (plain[sample, others] == changed[sample, others]).all()
        assert abs(plain[sample, span] - changed[sample, span]).max() > 1e-6


def test_heads_without_a_sink_are_bit_equal() -> None:
    model = tiny("llama")
    heads = tuple((0, head) for head in range(4))
    wanted = [hs.HeadOutput(layers=[0])]
    plain = model.run(prompt(model), wanted)["head_output"].values
    means = model.run(prompt(model), [hs.Received(layers=[0])])["received"].values[0, 0] / range(len(IDS), 0, -1)
    second = sorted(means.max(-1))[-2]  # one head has a key above the threshold
    edit = AttentionEdit(heads, (Group("sinks", ColumnSinks(float(second), skip_first=False)),), Transfer(0.2))
    with model.edited(edit):
        changed = model.run(prompt(model), wanted)["head_output"].values
    same = (plain == changed).all((0, 1, 3, 4))
    assert same.tolist() == (means.max(-1) <= second).tolist()
    assert same.sum() == 3


@pytest.mark.parametrize("name", edits())
def test_later_tokens_do_not_leak(model, name) -> None:
    if name == "transfer":
        pytest.skip("sinks are those of the whole prefill, as published")
    other = prompt(model, [], [*IDS[:-1], 40])
    with model.edited(edits()[name]):
        a, b = (model.run(p).logits[0, :-1] for p in (prompt(model), other))
    assert (a - b).abs().max() < 1e-5


@pytest.mark.parametrize("name", edits())
def test_captures_are_those_of_the_edited_model(model, name) -> None:
    """The pattern captured, times the values, is the output that the edited model uses."""
    wanted = [hs.Mass(["span"]), hs.Entropy(), hs.Rows(queries="all")]
    with model.edited(edits()[name]):
        run = model.run(prompt(model), wanted)
        again = model.run(prompt(model)).logits
    assert (run.logits - again).abs().max() < 1e-4
    rows = run["rows"].values
    span = rows[..., list(REGIONS["span"])].sum(-1)
    assert abs(run["mass"].values[..., 0] - span).max() < 1e-5


def test_neutral_edits_are_bit_equal(model) -> None:
    plain = model.run(prompt(model)).logits
    neutral = [
        AttentionEdit(HEADS, (Group("span", ("span",)),), Scale((1.0,))),
        AttentionEdit(HEADS, (Group("span", ("span",)),), Floor(0)),
        LogitEdit(HEADS),
        HeadEdit(HEADS, "scale", factor=1),
    ]
    with model.edited(*neutral):
        assert torch.equal(model.run(prompt(model)).logits, plain)


def test_nested_blocks_edit_once(model) -> None:
    once = HeadEdit(HEADS, "scale", factor=0.5)
    with model.edited(HeadEdit(HEADS, "scale", factor=0.25)):
        quarter = model.run(prompt(model)).logits
    with model.edited(once), model.edited(once):
        assert torch.equal(model.run(prompt(model)).logits, quarter)
        with torch.no_grad():
            direct = model.hf(input_ids=torch.tensor([IDS])).logits
        assert (direct - quarter).abs().max() < 1e-5


def test_gradients_are_those_of_the_edited_model(model) -> None:
    edit = edits()["scale"]
    with model.edited(edit):
        expected = model.run(prompt(model)).logits
    model.hf.requires_grad_(True)
    with model.live(prompt(model), edit) as tensors:
        logits = model.hf(**tensors, use_cache=False).logits
    assert (logits - expected).abs().max() < 1e-4
    logits.logsumexp(-1).sum().backward()
    grads = [p.grad for p in model.hf.parameters() if p.grad is not None]
    assert grads
    assert all(bool(torch.isfinite(g).all()) for g in grads)
    model.hf.zero_grad()
    model.hf.requires_grad_(False)


def test_affine_edits_are_what_they_say(model) -> None:
    width = model.sites.stack(None)[0].output_weight().shape[1]
    values = {(0, 1): torch.stack([torch.full((width,), -1.0), torch.arange(width) * 0.1])}
    with model.edited(HeadEdit([(0, 1)], "affine", values)):
        z = model.run(prompt(model), [hs.HeadOutput(heads=[(0, 1)])])["head_output"].values
    assert abs(z - values[0, 1][1].numpy()).max() < 1e-6


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (AttentionEdit([(9, 0)], (Group("a", ("span",)),), Floor(0.5)), "layers of this model"),
        (LogitEdit([(0, 99)], temperature=2), "layer 0 has heads"),
    ],
)
def test_heads_that_are_not_there(edit, message) -> None:
    with pytest.raises(RequestError, match=message), tiny("llama").edited(edit):
        pass


def test_senseless_regions() -> None:
    model = tiny("llama")
    twice = AttentionEdit(HEADS, (Group("a", ("span",)), Group("b", ("tail", 6))), Scale((2.0, 1.0)))
    unknown = AttentionEdit(HEADS, (Group("a", ("spam",)),), Floor(0.5))
    with model.edited(twice), pytest.raises(RequestError, match="another group"):
        model.run(prompt(model))
    with model.edited(unknown), pytest.raises(RequestError, match="Did you mean 'span'"):
        model.run(prompt(model))
    with pytest.raises(RequestError, match="speaks of 1 groups"):
        AttentionEdit(HEADS, (), Floor(0.5))
    with pytest.raises(RequestError, match="temperature"):
        LogitEdit(HEADS, temperature=0)


def test_nothing_found_is_a_warning() -> None:
    model = tiny("llama")
    edit = AttentionEdit(HEADS, (Group("sinks", ColumnSinks(0.99)),), Transfer(0.2))
    with model.edited(edit), pytest.warns(UserWarning, match="found no key"):
        model.run(prompt(model))


def test_files_hold_edits_and_know_their_model(tmp_path) -> None:
    model, other = tiny("llama"), tiny("llama", seed=1)
    width = model.sites.stack(None)[0].output_weight().shape[1]
    vectors = HeadEdit([(0, 1)], "affine", {(0, 1): torch.randn(2, width)})
    path = hs.interventions.save(tmp_path / "edit.json", *edits().values(), vectors, model=model)
    back = hs.interventions.load(path, model)
    assert back[:-1] == tuple(edits().values())
    with model.edited(vectors):
        expected = model.run(prompt(model)).logits
    with model.edited(back[-1]):
        assert torch.equal(model.run(prompt(model)).logits, expected)
    with pytest.raises(CheckpointError, match="differ"):
        hs.interventions.load(path, other)
    path.write_text(path.read_text()[:-40])
    with pytest.raises(CheckpointError, match="damaged"):
        hs.interventions.load(path)
