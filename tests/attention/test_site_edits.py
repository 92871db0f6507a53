"""Edits of units and of the residual stream inside real families."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from headscope.attention import requests as ask
from headscope.attention.edits import NeuronEdit, ResidualEdit
from headscope.attention.engine import NAME
from headscope.errors import RequestError
from headscope.interventions.store import decode, encode
from headscope.models.families import build_spec
from headscope.models.inputs import random_inputs
from headscope.models.model import Model
from headscope.models.prompt import Prompt
from headscope.models.tiny import tiny

FAMILIES = ["gpt2", "gpt_neox", "opt", "llama", "mistral", "qwen3", "gemma2", "gemma3", "phi3", "olmo2"]


@pytest.fixture(scope="module")
def models():
    made: dict[str, Model] = {}

    def get(family: str) -> Model:
        if family not in made:
            hf = tiny(family)
            hf.set_attn_implementation(NAME)
            made[family] = Model(hf=hf, tokenizer=None, spec=build_spec(hf, family), source=family, name=family)
        return made[family]

    return get


def prompt(n: int = 20, seed: int = 0, **regions) -> Prompt:
    ids = torch.randint(5, 60, (n,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Prompt.from_ids(ids, regions or None)


def direction(seed: int = 0, width: int = 32) -> torch.Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


EDITS = [
    NeuronEdit(0, (3, 17, 40)),
    NeuronEdit(1, (3, 17), "clamp", 0.7),
    NeuronEdit(1, (3, 17), "scale", (0.5, -2.0)),
    NeuronEdit(0, (5, 1), "mean", (0.1, 0.2)),
    ResidualEdit(0, direction()),
    ResidualEdit(1, direction(), scale=-2.0, positions="spot"),
    ResidualEdit(1, direction(), "project"),
    ResidualEdit(2, direction(), "clamp", 3.0, positions=("spot", "last", "generated")),
]
NAMES = [f"{type(e).__name__}-{e.mode}-{e.layer}" for e in EDITS]


@pytest.mark.parametrize("family", FAMILIES)
def test_units_become_what_is_said_and_no_other_does(models, family):
    model, text = models(family), prompt()
    want = ask.MlpActivation(layers=[1])
    before = model.run(text, [want])["mlp_activation"].values[0, 0]
    others = np.delete(np.arange(48), [3, 17])
    for edit, expected in [
        (NeuronEdit(1, (17, 3)), np.zeros((20, 2))),
        (NeuronEdit(1, (17, 3), "clamp", (1.0, -2.0)), np.tile([1.0, -2.0], (20, 1))),
        (NeuronEdit(1, (17, 3), "mean", (0.25, 0.5)), np.tile([0.25, 0.5], (20, 1))),
        (NeuronEdit(1, (17, 3), "scale", 3.0), before[:, [17, 3]] * 3),
    ]:
        with model.edited(edit):
            run = model.run(text, [want])
        after = run["mlp_activation"].values[0, 0]
        assert np.allclose(after[:, [17, 3]], expected, atol=1e-6)
        assert np.array_equal(after[:, others], before[:, others])
        assert (run.logits - model.run(text).logits).abs().max() > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_stream_is_changed_as_said_and_where_said(models, family, layer):
    model, text, v = models(family), prompt(spot=[4, 5, 9]), direction()
    unit = (v / v.norm()).numpy()
    want = ask.Residual(layers=[layer])
    before = model.run(text, [want])["residual"].values[0, 0]
    along = before @ unit
    cases = {
        "add": before + 2.5 * v.numpy(),
        "project": before - 2.5 * along[:, None] * unit,
        "clamp": before + (2.5 - along)[:, None] * unit,
    }
    rest = np.delete(np.arange(20), [4, 5, 9])
    for mode, expected in cases.items():
        with model.edited(ResidualEdit(layer, v, mode, 2.5)):
            assert np.allclose(model.run(text, [want])["residual"].values[0, 0], expected, atol=1e-5)
        with model.edited(ResidualEdit(layer, v, mode, 2.5, positions="spot")):
            after = model.run(text, [want])["residual"].values[0, 0]
        assert np.allclose(after[[4, 5, 9]], expected[[4, 5, 9]], atol=1e-5)
        assert np.array_equal(after[rest], before[rest])


def test_project_removes_the_component(models):
    model, text, v = models("llama"), prompt(), direction()
    with model.edited(ResidualEdit(1, v, "project")):
        left = model.run(text, [ask.Residual(layers=[1])])["residual"].values
    assert np.abs(left @ (v / v.norm()).numpy()).max() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("edit", EDITS, ids=NAMES)
def test_prefill_equals_decoding(models, family, edit):
    model, start = models(family), prompt(12, spot=[2, 7])
    if getattr(edit, "positions", None) and "generated" in edit.positions:
        edit = ResidualEdit(edit.layer, edit.vector, edit.mode, edit.scale, positions=("spot", "generated"))
    with model.edited(edit):
        trace = model.trace(start, max_new_tokens=6)
        whole = Prompt.from_ids([*start.ids, *trace.tokens[:-1]], {"spot": [2, 7], "new": range(12, 17)})
    if isinstance(edit, ResidualEdit) and edit.positions == ("spot", "generated"):
        edit = ResidualEdit(edit.layer, edit.vector, edit.mode, edit.scale, positions=("spot", "new"))
    with model.edited(edit):
        run = model.run(whole)
    assert (trace.logits[0] - run.logits[0, 11:]).abs().max() < 5e-5
    assert (model.run(whole).logits - run.logits).abs().max() > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("edit", EDITS, ids=NAMES)
def test_batches_and_padding_change_nothing(models, family, side, edit):
    model = models(family)
    short, long = prompt(9, 1, spot=[3, 8]), prompt(17, 2, spot=[9])
    with model.edited(edit):
        both = model.run([short, long], side=side).logits
        for row, one in enumerate((short, long)):
            begin = 17 - len(one) if side == "left" else 0
            assert (both[row, begin : begin + len(one)] - model.run(one).logits[0]).abs().max() < 5e-5


def words() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the words w0 to w96."""
    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(97)}, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0", pad_token="w0")


def test_generation_with_left_padding_and_beams_edits_the_right_positions(models):
    hf = models("llama").hf
    model = Model(hf=hf, tokenizer=words(), spec=build_spec(hf, "llama"), source="llama", name="llama")
    short = model.prompt("w5 {needle} w8", needle="w6 w7")
    long = model.prompt("w11 w12 w13 w14 w15 {needle} w17 w18 w19", needle="w16")
    for positions in ("needle", "generated", "last", ("needle", "generated"), (-1, 0)):
        with model.edited(ResidualEdit(1, direction(3), scale=3.0, positions=positions)):
            alone = [model.generate(p, max_new_tokens=5) for p in (short, long)]
            assert model.generate([short, long], max_new_tokens=5) == alone
            beams = [model.generate(p, max_new_tokens=5, num_beams=3) for p in (short, long)]
            assert model.generate([short, long], max_new_tokens=5, num_beams=3) == beams


def test_last_and_generated_are_where_the_prompt_ends(models):
    model, start, v = models("llama"), prompt(10), direction()
    want = [ask.Residual(layers=[1])]
    plain = model.trace(start, want, max_new_tokens=4)
    for positions, changed in [
        ("last", [0]),
        ("generated", [1, 2, 3]),
        (("last", "generated"), [0, 1, 2, 3]),
        (9, [0]),
    ]:
        # The stream that block 1 reads depends on the tokens alone, so the same tokens show where it is edited.
        with model.edited(ResidualEdit(1, v, scale=5.0, positions=positions)):
            steered = model.trace(start, want, teacher=plain.tokens)
        moved = np.abs(steered["residual"].values - plain["residual"].values).max((0, 1, 3))
        assert np.flatnonzero(moved > 1e-3).tolist() == changed


def test_gradients_pass_through(models):
    model, text = models("llama"), prompt(8, spot=[2])
    for edit in EDITS:
        with model.live(text, edit) as tensors:
            embedded = model.hf.get_input_embeddings()(tensors["input_ids"]).detach().requires_grad_()
            model.hf(inputs_embeds=embedded).logits[0, -1].sum().backward()
        assert torch.isfinite(embedded.grad).all()
        assert embedded.grad.abs().max() > 0


def test_a_vector_can_be_trained(models):
    model, text = models("llama"), prompt(8)
    v = torch.zeros(32, requires_grad=True)
    edit = ResidualEdit(1, v + 1e-3, "add")
    with model.live(text, edit) as tensors:
        model.hf(**tensors).logits[0, -1, 7].backward()
    assert v.grad is not None
    assert v.grad.abs().max() > 0


def test_neutral_edits_are_bit_equal(models):
    model, text = models("llama"), prompt()
    base = model.run(text).logits
    for edit in [
        NeuronEdit(0, (1, 2), "scale", 1.0),
        NeuronEdit(0, (1, 2), "scale", (1.0, 1.0)),
        ResidualEdit(1, direction(), scale=0.0),
        ResidualEdit(1, torch.zeros(32)),
        ResidualEdit(1, direction(), "project", 0.0),
    ]:
        assert edit.neutral
        with model.edited(edit):
            assert torch.equal(model.run(text).logits, base)
    assert not any(edit.neutral for edit in EDITS)


def test_edits_apply_in_the_order_given(models):
    model, text, v = models("llama"), prompt(), direction()
    add, remove = ResidualEdit(1, v, scale=4.0), ResidualEdit(1, v, "project")
    want = [ask.Residual(layers=[1])]
    with model.edited(add, remove):
        removed = model.run(text, want)["residual"].values
    with model.edited(remove, add):
        added = model.run(text, want)["residual"].values
    unit = (v / v.norm()).numpy()
    assert np.abs(removed @ unit).max() < 1e-5
    assert np.abs(added @ unit - 4 * float(v.norm())).max() < 1e-4


def test_nothing_is_left_behind_by_an_exception(models):
    model, text = models("llama"), prompt(spot=[2])
    base = model.run(text).logits
    for edit in EDITS:
        with pytest.raises(KeyError), model.edited(edit):  # noqa: PT012
            model.run(text)
            raise KeyError
        with (
            model.edited(ResidualEdit(1, direction(), positions="nowhere")),
            pytest.raises(RequestError, match="nowhere"),
        ):
            model.run(text)
        assert torch.equal(model.run(text).logits, base)


@pytest.mark.parametrize("edit", EDITS, ids=NAMES)
def test_json_round_trip(edit):
    import json

    back = decode(json.loads(json.dumps(encode(edit))))
    assert back == edit
    assert hash(back) == hash(edit)


def test_encoder_stacks_are_edited(models):
    model = models("bert")
    inputs = random_inputs(model.hf)
    base = model.run(inputs).logits
    for edit in (ResidualEdit(1, direction()), NeuronEdit(1, (3,), "clamp", 9.0)):
        with model.edited(edit):
            assert (model.run(inputs).logits - base).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NeuronEdit(0, ()), "names no unit"),
        (lambda: NeuronEdit(0, (1, 1)), "twice"),
        (lambda: NeuronEdit(0, (1,), "clamp"), "needs value="),
        (lambda: NeuronEdit(0, (1,), "mean", 0.5), "one number per unit"),
        (lambda: NeuronEdit(0, (1, 2), "clamp", (1.0,)), "1 values for 2 units"),
        (lambda: NeuronEdit(0, (1,), "clamp", float("nan")), "not finite"),
        (lambda: NeuronEdit(0, (1,), "zero", 1.0), "takes no value"),
        (lambda: NeuronEdit(0, (1,), "swap"), "choose one of zero"),
        (lambda: NeuronEdit(0, (1,), "resample"), "bank= of shape"),
        (lambda: NeuronEdit(0, (1, 2), "resample", bank=[[1.0]]), "bank= of shape"),
        (lambda: NeuronEdit(0, (1,), "resample", bank=[[float("nan")]]), "not finite"),
        (lambda: NeuronEdit(0, (1,), bank=[[1.0]]), "takes no bank"),
        (lambda: ResidualEdit(0, torch.ones(2, 3)), "shape"),
        (lambda: ResidualEdit(0, torch.tensor([1.0, torch.nan])), "not finite"),
        (lambda: ResidualEdit(0, torch.zeros(4), "project"), "direction"),
        (lambda: ResidualEdit(0, torch.ones(4), "turn"), "choose add"),
        (lambda: ResidualEdit(0, torch.ones(4), positions=()), "names no position"),
        (lambda: ResidualEdit(0, torch.ones(4), scale=float("inf")), "not finite"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(RequestError, match=message):
        make()


@pytest.mark.parametrize(
    ("family", "edit", "message"),
    [
        ("llama", NeuronEdit(2, (0,)), "layers of this model go from 0 to 1"),
        ("llama", NeuronEdit(0, (48,)), "units 0 to 47"),
        ("gpt_oss", NeuronEdit(0, (0,)), "no MLP activation"),
        ("llama", ResidualEdit(3, torch.ones(32)), "blocks of this model go from 0 to 1"),
        ("llama", ResidualEdit(0, torch.ones(31)), "31 numbers"),
    ],
)
def test_what_the_model_has_not_is_refused(models, family, edit, message):
    with pytest.raises(RequestError, match=message), models(family).edited(edit):
        pass
