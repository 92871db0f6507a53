"""Features of sparse autoencoders: trained on planted directions, chosen, steered, stored."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from headscope.attention import requests as ask
from headscope.attention.engine import NAME
from headscope.errors import DataError, ModelError, RequestError, UnsupportedError, WeightsError
from headscope.interventions.sae import (
    SaeFeature,
    contrast_features,
    decoder_direction,
    encode,
    load_sae,
    place,
    save_sae,
)
from headscope.interventions.sae_training import TrainedSae, measure_sae, train_sae
from headscope.interventions.store import decode as from_json
from headscope.interventions.store import encode as to_json
from headscope.models.families import build_spec
from headscope.models.model import Model
from headscope.models.prompt import Prompt
from headscope.models.tiny import tiny

sae_lens = pytest.importorskip("sae_lens")

CONCEPTS = 12


def wrap(hf, family: str = "llama") -> Model:
    hf.set_attn_implementation(NAME)
    return Model(hf=hf, tokenizer=None, spec=build_spec(hf, family), source=family, name=family)


def prompts(n: int, length: int = 40, seed: int = 0) -> list[Prompt]:
    rng = np.random.default_rng(seed)
    return [Prompt.from_ids(rng.integers(5, 97, size=length).tolist(), {"spot": [2, 5]}) for _ in range(n)]


@pytest.fixture(scope="module")
def planted() -> tuple[Model, torch.Tensor, torch.Tensor]:
    """A model whose embeddings are sums of two of twelve directions; the directions; which token has which (97, 12)."""
    hf = tiny("llama", tie_word_embeddings=False)
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(CONCEPTS, 32, generator=generator), dim=-1)
    has = torch.zeros(97, CONCEPTS)
    for token in range(97):
        has[token, torch.randperm(CONCEPTS, generator=generator)[:2]] = 1
    strength = has * (1 + torch.rand(97, CONCEPTS, generator=generator))
    with torch.no_grad():
        hf.model.embed_tokens.weight.copy_(3 * strength @ directions)
    return wrap(hf), directions, has


@pytest.fixture(scope="module")
def trained(planted) -> TrainedSae:
    """An SAE of the planted model's embeddings."""
    return train_sae(planted[0], prompts(60), 0, site="residual", width=24, k=2, steps=1500, train_batch=128, lr=3e-3)


@pytest.fixture(scope="module")
def heads(planted) -> TrainedSae:
    """An SAE of the outputs of one layer's heads."""
    return train_sae(planted[0], prompts(30), 1, width=64, k=6, steps=200, train_batch=64)


def made(architecture: str = "standard", normalize: str = "none", hook: str = "blocks.1.hook_resid_pre", **options):
    """A random SAE of SAELens, with every parameter far from 0."""
    from sae_lens.saes.sae import SAE, SAEMetadata

    config = {
        "architecture": architecture,
        "d_in": 32,
        "d_sae": 40,
        "normalize_activations": normalize,
        "reshape_activations": "hook_z" if hook.endswith("hook_z") else "none",
        **options,
    }
    sae = SAE.from_dict({**config, "metadata": SAEMetadata(hook_name=hook).to_dict()})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return sae


def test_planted_directions_are_found(planted, trained):
    _, directions, _ = planted
    found = torch.nn.functional.normalize(trained.sae.W_dec.detach(), dim=-1)
    best = (found @ directions.T).max(0).values
    assert (best > 0.9).sum() >= CONCEPTS - 1
    assert trained.report.explained_variance > 0.9
    assert trained.report.l0 <= 2
    assert trained.report.width == 24
    assert trained.report.dead < 24


def test_the_report_is_what_a_count_by_hand_gives(planted, trained):
    model = planted[0]
    runs = [model.run(p, [ask.Residual(layers=[0])]) for p in prompts(5, seed=9)]
    x = torch.cat([torch.from_numpy(run["residual"].values[0, 0, 1:]) for run in runs])
    with torch.no_grad():
        f = trained.sae.encode(x)
        lost = ((trained.sae.decode(f) - x) ** 2).sum()
    report = measure_sae(trained.sae, x[:100], x)
    assert report.l0 == pytest.approx(float((f > 0).sum(1).float().mean()))
    assert report.explained_variance == pytest.approx(1 - float(lost / ((x - x.mean(0)) ** 2).sum()), abs=1e-5)
    assert report.dead == int((f[:100] > 0).any(0).logical_not().sum())
    assert (report.tokens_train, report.tokens_test) == (100, len(x))


def test_training_is_repeatable_and_holds_texts_out(planted):
    model, options = planted[0], {"site": "residual", "width": 16, "k": 2, "steps": 20, "train_batch": 32}
    one, same = (train_sae(model, prompts(10), 0, **options) for _ in range(2))
    assert torch.equal(one.sae.W_dec, same.sae.W_dec)
    assert one.report == same.report
    assert one.report.tokens_train == 9 * 39  # nine texts without their first tokens, one held out
    assert one.report.tokens_test == 39
    other = train_sae(model, prompts(10), 0, seed=1, **options)
    assert not torch.equal(one.sae.W_dec, other.sae.W_dec)


@pytest.mark.parametrize("architecture", ["topk", "standard"])
@pytest.mark.parametrize("site", ["head_output", "residual"])
def test_trained_saes_explain_and_are_read_back(planted, tmp_path, architecture, site):
    model = planted[0]
    done = train_sae(
        model, prompts(30), 1, site=site, architecture=architecture, width=96, k=8, steps=300, train_batch=64
    )
    assert done.report.explained_variance > 0.4
    back = load_sae(done.save(tmp_path / "sae"))
    assert place(back) == (site, 1)
    assert back.cfg.metadata.model_fingerprint == model.fingerprint
    x = torch.randn(3, 7, 32)
    assert torch.equal(encode(back, x), encode(done.sae, x))
    assert float(decoder_direction(back, 5).norm()) == pytest.approx(1, abs=1e-4)
    assert sorted(p.name for p in (tmp_path / "sae").iterdir()) == ["cfg.json", "sae_weights.safetensors"]


def test_saelens_itself_reads_a_head_output_sae_at_hook_z(heads, tmp_path):
    sae = sae_lens.SAE.load_from_disk(heads.save(tmp_path))
    assert sae.cfg.metadata.hook_name == "blocks.1.attn.hook_z"
    z = torch.randn(2, 5, 4, 8)  # heads, Dv: as the hook gives it
    assert sae(z).shape == z.shape
    assert torch.equal(sae.encode(z), encode(heads.sae, z.flatten(2)))


ARCHITECTURES = [
    ("standard", "none", {}),
    ("standard", "layer_norm", {}),
    ("standard", "constant_norm_rescale", {}),
    ("topk", "none", {"k": 5}),
    ("topk", "none", {"k": 5, "rescale_acts_by_decoder_norm": True}),
    ("jumprelu", "none", {}),
    ("gated", "none", {}),
]


@pytest.mark.parametrize(("architecture", "normalize", "options"), ARCHITECTURES)
@pytest.mark.parametrize("hook", ["blocks.1.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.1.attn.hook_z"])
def test_clamping_changes_the_feature_and_keeps_the_error(planted, architecture, normalize, options, hook):
    """x' = decode(f') + (x − decode(f)), with f' = f but for one feature."""
    model, text = planted[0], prompts(1)[0]
    sae = made(architecture, normalize, hook, **options)
    site = place(sae)[0]
    want = ask.Residual(layers=[1]) if site == "residual" else ask.HeadOutput(layers=[1])

    def read() -> torch.Tensor:
        x = torch.from_numpy(model.run(text, [want])[want.key].values[0, 0])
        return x if site == "residual" else x.transpose(0, 1).flatten(1)

    x = read()
    shaped = x[:, None] if hook.endswith("hook_z") else x
    with torch.no_grad():
        f = sae.encode(shaped)
        assert (f[:, 7] != 4).all()
        base = sae.decode(f.clone()).reshape(x.shape)
        for mode, value in [("clamp", 4.0), ("clamp", 0.0), ("add", 2.0)]:
            moved = sae.encode(shaped).clone()
            moved[:, 7] = value if mode == "clamp" else moved[:, 7] + value
            expected = x + sae.decode(moved).reshape(x.shape) - base
            with model.edited(SaeFeature(sae, 7, mode, value)):
                assert (read() - expected).abs().max() < 2e-5
            with model.edited(SaeFeature(sae, 7, mode, value, positions="spot")):
                some = read()
            spots = [2, 5]
            assert (some[spots] - expected[spots]).abs().max() < 2e-5
            rest = [i for i in range(len(x)) if i not in spots]
            assert torch.equal(some[rest], x[rest])


def test_features_are_chosen_by_contrast_and_chance_is_filtered(planted, trained):
    model, directions, has = planted
    concept, rng = 3, np.random.default_rng(0)
    with_it = [t for t in range(5, 97) if has[t, concept]]
    without = [t for t in range(5, 97) if not has[t, concept]]
    pairs = []
    for _ in range(40):
        start = rng.integers(5, 97, size=6).tolist()
        pairs.append(tuple(Prompt.from_ids([*start, int(rng.choice(side))]) for side in (with_it, without)))
    table = contrast_features(model, trained.sae, pairs)
    first = int(table["feature"][0])
    written = torch.nn.functional.normalize(trained.sae.W_dec[first].detach(), dim=0)
    assert float(written @ directions[concept]) > 0.9
    assert table["difference"][0] > 0
    assert table["selected"][0]
    assert (table[table["selected"]]["q_value"] <= 0.05).all()
    chance = [(b, a) if rng.random() < 0.5 else (a, b) for a, b in pairs]
    assert contrast_features(model, trained.sae, chance)["selected"].sum() <= 1
    assert not contrast_features(model, trained.sae, [(a, a) for a, _ in pairs])["selected"].any()
    clusters = table.set_index("feature").loc[first]
    assert clusters["positive"] - clusters["negative"] == pytest.approx(clusters["difference"])


def test_steering_a_feature_writes_the_planted_direction(planted, trained):
    model, directions, _ = planted
    found = torch.nn.functional.normalize(trained.sae.W_dec.detach(), dim=-1) @ directions.T
    feature = int(found[:, 3].argmax())
    text, want = prompts(1, seed=4)[0], [ask.Residual(layers=[0])]
    before = model.run(text, want)["residual"].values[0, 0]
    with model.edited(SaeFeature(trained.sae, feature, "add", 5.0)):
        run = model.run(text, want)
    moved = run["residual"].values[0, 0] - before
    assert np.allclose(np.linalg.norm(moved, axis=-1), 5, atol=1e-3)
    assert ((moved / 5) @ directions[3].numpy() > 0.9).all()
    assert (run.logits - model.run(text).logits).abs().max() > 1e-2


@pytest.mark.parametrize("hook", ["blocks.1.hook_resid_pre", "blocks.1.attn.hook_z"])
@pytest.mark.parametrize("positions", [None, ("spot", "generated")])
def test_prefill_equals_decoding_and_padding_changes_nothing(planted, hook, positions):
    model = planted[0]
    method = SaeFeature(made("topk", hook=hook, k=5), 7, "clamp", 3.0, positions=positions)
    short, long = prompts(1, 11, 1)[0], prompts(1, 17, 2)[0]
    with model.edited(method):
        trace = model.trace(short, max_new_tokens=5)
        alone = [model.run(p).logits[0] for p in (short, long)]
        for side in ("left", "right"):
            both = model.run([short, long], side=side).logits
            begin = 6 if side == "left" else 0
            assert (both[0, begin : begin + 11] - alone[0]).abs().max() < 5e-5
            assert (both[1] - alone[1]).abs().max() < 5e-5
    whole = Prompt.from_ids([*short.ids, *trace.tokens[:-1]], {"spot": [2, 5], "new": range(11, 15)})
    forced = SaeFeature(method.sae, 7, "clamp", 3.0, positions=positions and ("spot", "new"))
    with model.edited(forced):
        assert (trace.logits[0] - model.run(whole).logits[0, 10:]).abs().max() < 5e-5


def test_gradients_pass_through(planted):
    model, text = planted[0], prompts(1, 8)[0]
    for hook in ("blocks.1.hook_resid_pre", "blocks.1.attn.hook_z"):
        with model.live(text, SaeFeature(made(hook=hook), 7, "clamp", 3.0)) as tensors:
            embedded = model.hf.get_input_embeddings()(tensors["input_ids"]).detach().requires_grad_()
            model.hf(inputs_embeds=embedded).logits[0, -1].sum().backward()
        assert embedded.grad.abs().max() > 0


def test_neutral_is_bit_equal_and_nothing_is_left_behind(planted):
    model, text = planted[0], prompts(1)[0]
    base = model.run(text).logits
    method = SaeFeature(made(), 7, "clamp", 3.0)
    assert not method.neutral
    assert not SaeFeature(made(), 7, "clamp", 0.0).neutral  # it switches the feature off
    assert method.neutralised().neutral
    with model.edited(method.neutralised()):
        assert torch.equal(model.run(text).logits, base)
    with pytest.raises(KeyError), model.edited(method):  # noqa: PT012
        assert not torch.equal(model.run(text).logits, base)
        raise KeyError
    assert torch.equal(model.run(text).logits, base)


def test_json_round_trip_names_the_folder_and_its_hash(planted, tmp_path):
    model, text = planted[0], prompts(1)[0]
    save_sae(made(), tmp_path / "sae")
    method = SaeFeature(tmp_path / "sae", 7, "clamp", 3.0, positions="spot")
    stored = json.loads(json.dumps(to_json(method)))
    back = from_json(stored)
    assert to_json(back) == stored
    with model.edited(method):
        logits = model.run(text).logits
    with model.edited(back):
        assert torch.equal(model.run(text).logits, logits)
    other = made()
    with torch.no_grad():
        other.W_dec += 1
    save_sae(other, tmp_path / "sae")
    with pytest.raises(WeightsError, match="not the one"):
        from_json(stored)
    with pytest.raises(RequestError, match="cannot be stored"):
        to_json(SaeFeature(made(), 7))


def test_another_models_sae_is_refused(planted, heads):
    with (
        pytest.raises(RequestError, match="other weights"),
        wrap(tiny("llama", seed=5)).edited(SaeFeature(heads.sae, 3, "clamp", 1.0)),
    ):
        pass


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (lambda: SaeFeature(made(), 40, "add", 1.0), "features 0 to 39"),
        (
            lambda: SaeFeature(made(hook="blocks.9.hook_resid_pre"), 0, "add", 1.0),
            "blocks of this model go from 0 to 1",
        ),
        (lambda: SaeFeature(made(hook="blocks.2.attn.hook_z"), 0, "add", 1.0), "layers go from 0 to 1"),
        (lambda: SaeFeature(made(hook="blocks.1.hook_mlp_out"), 0, "add", 1.0), "does not say where"),
        (lambda: SaeFeature(made(d_in=16), 0, "add", 1.0), "reads 16 numbers"),
        (lambda: SaeFeature(made(), 0, "scale", 1.0), "add or clamp"),
        (lambda: SaeFeature(made(), 0, "add", float("nan")), "not finite"),
        (lambda: SaeFeature(made(), 0, "add", 1.0, site="mlp"), "residual or head_output"),
    ],
)
def test_bad_input_is_refused(planted, method, message):
    with pytest.raises(RequestError, match=message), planted[0].edited(method()):
        pass


def test_bad_folders_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"cfg\.json"):
        load_sae(tmp_path)
    folder = save_sae(made(), tmp_path / "sae")
    weights = (folder / "sae_weights.safetensors").read_bytes()
    (folder / "sae_weights.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(WeightsError, match="damaged"):
        load_sae(folder)
    spoilt = made()
    with torch.no_grad():
        spoilt.b_dec[0] = torch.nan
    with pytest.raises(WeightsError, match="not finite"):
        load_sae(save_sae(spoilt, tmp_path / "nan"))
    coder = made("transcoder", d_out=32, apply_b_dec_to_input=False, hook="blocks.1.ln2.hook_normalized")
    with pytest.raises(UnsupportedError, match="transcoder"):
        load_sae(save_sae(coder, tmp_path / "coder"))


def test_bad_training_is_refused(planted):
    model = planted[0]
    for texts, options, kind, message in [
        (prompts(1), {}, DataError, "activations to train and test"),
        (prompts(4), {"k": 500}, RequestError, "k must lie"),
        (prompts(4), {"architecture": "gated"}, RequestError, "topk or standard"),
        (prompts(4), {"site": "mlp"}, RequestError, "residual or head_output"),
        (prompts(4), {"test_share": 1.5}, RequestError, "between 0 and 1"),
        (prompts(4), {"steps": 0}, RequestError, "steps"),
    ]:
        with pytest.raises(kind, match=message):
            train_sae(model, texts, 1, **options)
