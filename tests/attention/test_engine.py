"""The engine inside real families: captures, edits, generation, padding, caches."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch

from headscope.attention import requests as ask
from headscope.attention import session
from headscope.attention.edits import HeadEdit, KnockOut
from headscope.attention.engine import NAME
from headscope.errors import MemoryBudgetError, PromptError, RequestError, UnsupportedError, WeightsError
from headscope.models.families import build_spec
from headscope.models.inputs import random_inputs
from headscope.models.model import Model
from headscope.models.prompt import Prompt
from headscope.models.tiny import FAMILIES, tiny

DECODERS = ["gpt2", "gpt_neox", "opt", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "olmo2"]
DECODERS += ["gpt_oss"]


def make(family: str, dtype: torch.dtype = torch.float32) -> Model:
    hf = tiny(family).eval().to(dtype)
    hf.set_attn_implementation(NAME)
    return Model(hf=hf, tokenizer=None, spec=build_spec(hf, family), source=family, name=family)


@pytest.fixture(scope="module")
def models():
    made: dict[str, Model] = {}

    def get(family: str) -> Model:
        if family not in made:
            made[family] = make(family)
        return made[family]

    return get


def eager(model: Model, inputs, **kwargs):
    model.hf.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            return model.hf(**inputs, **kwargs)
    finally:
        model.hf.set_attn_implementation(NAME)


def prompt(n: int = 24, seed: int = 0, vocabulary: int = 60, **regions) -> Prompt:
    ids = torch.randint(5, vocabulary, (n,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Prompt.from_ids(ids, regions or None)


ATTENTIONS = {"decoder": "decoder_attentions", "encoder": "encoder_attentions", "cross": "cross_attentions"}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_statistics_of_its_eager_attention(models, family):
    model = models(family)
    inputs = random_inputs(model.hf, batch=2, length=40)
    truth = eager(model, inputs, output_attentions=True)
    for stack in model.spec.stacks:
        name = ATTENTIONS.get(stack)
        found = truth[name] if name in truth else truth["attentions"]
        pattern = torch.stack(list(found)).double().numpy()
        kinds = (ask.Pattern, ask.Entropy, ask.Received, ask.TopKeys)
        run = model.run(inputs, [kind(stack=stack) for kind in kinds])
        assert np.abs(run["pattern"].values - pattern).max() < 2e-5
        entropy = -(pattern * np.log(np.where(pattern > 0, pattern, 1))).sum(-1)
        if family != "t5":  # there eager's own entropy is 9e-5 off the truth: the next test asks float64
            assert np.abs(run["entropy"].values - entropy).max() < 5e-5
        assert np.abs(run["received"].values - pattern.sum(-2)).max() < 1e-4
        assert np.abs(run["top_weights"].values[..., 0] - pattern.max(-1)).max() < 2e-5
        if run.logits is not None:
            assert (run.logits - truth.logits).abs().max() < 5e-5


def test_entropy_of_t5_in_double_precision():
    """Without the noise of its layers the entropy is eager's to the precision of the result, float32."""
    model = make("t5", torch.float64)
    inputs = random_inputs(model.hf, batch=2, length=40)
    truth = eager(model, inputs, output_attentions=True)
    for stack in model.spec.stacks:
        name = ATTENTIONS.get(stack)
        pattern = torch.stack(list(truth[name] if name in truth else truth["attentions"]))
        found = model.run(inputs, [ask.Entropy(stack=stack)])["entropy"].values
        assert np.abs(found - torch.special.entr(pattern).sum(-1).numpy()).max() < 1e-6


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "dinov2"])  # dinov2 has no logits to compare
def test_nothing_asked_is_stock_attention(models, family):
    model = models(family)
    inputs = random_inputs(model.hf, batch=2)
    ours = model.run(inputs).logits
    # Families that SDPA cannot serve are held against eager attention: transformers does not offer SDPA for them.
    stock = "eager" if family in ("gemma2", "gpt_oss") else "sdpa"
    model.hf.set_attn_implementation(stock)
    try:
        with torch.no_grad():
            output = model.hf(**inputs)
    finally:
        model.hf.set_attn_implementation(NAME)
    if stock == "sdpa":
        assert torch.equal(ours, output.logits)
    else:
        assert (ours - output.logits).abs().max() < 5e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_head_outputs_and_streams_are_what_modules_pass_on(models, family):
    model = models(family)
    inputs = random_inputs(model.hf)
    hidden = eager(model, inputs, output_hidden_states=True)
    for stack in model.spec.stacks:
        z = model.run(inputs, [ask.HeadOutput(stack=stack)])["head_output"]  # fmt: skip
        assert z.sizes["head"] == model.spec.stacks[stack].layers[0].heads
        assert np.isfinite(z.values).all()
        if stack == "cross":
            continue
        stream = model.run(inputs, [ask.Residual(stack=stack)])["residual"].values
        name = f"{stack}_hidden_states"
        states = hidden[name] if name in hidden else hidden["hidden_states"]
        assert len(stream) == len(states)
        for mine, theirs in zip(stream[:-1], states[:-1], strict=True):  # the last one is after the final norm
            assert np.abs(mine - theirs.numpy()).max() < 5e-5


@pytest.mark.parametrize("family", DECODERS)
def test_the_sum_of_head_outputs_is_the_attention_block(models, family):
    model = models(family)
    inputs = random_inputs(model.hf)
    caught = []
    site = model.sites.stack(None)[1]
    handle = site.output.register_forward_hook(lambda m, a, o: caught.append(o))
    z = torch.tensor(model.run(inputs, [ask.HeadOutput(layers=[1])])["head_output"].values[0])
    handle.remove()
    total = torch.einsum("bhtd,hdm->btm", z, site.output_weight())
    bias = getattr(site.output, "bias", None)
    assert (total + (0 if bias is None else bias) - caught[0]).abs().max() < 1e-5


@pytest.mark.parametrize("family", [f for f in DECODERS if f != "gpt_oss"])
def test_mlp_activation_times_the_down_projection_is_the_mlp(models, family):
    model = models(family)
    inputs = random_inputs(model.hf)
    site, caught = model.sites.stack(None)[0], []
    handle = site.mlp.register_forward_hook(lambda m, a, o: caught.append((a[0], o)))
    run = model.run(inputs, [ask.MlpActivation(layers=[0])])
    handle.remove()
    assert np.array_equal(run["mlp_activation"].values[0].ravel(), caught[0][0].detach().numpy().ravel())


def test_fused_experts_have_no_activation_of_their_own(models):
    with pytest.raises(RequestError, match="Residual"):
        models("gpt_oss").run(random_inputs(models("gpt_oss").hf), [ask.MlpActivation()])


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(models, family, side):
    model = models(family)
    short, long = prompt(11, 1, needle=[3, 4]), prompt(23, 2, needle=[9])
    asks = [
        ask.Entropy(), ask.Mass(["bos", "needle", "rest"]), ask.Received(), ask.Received(mean=True, name="mean"),
        ask.Rows(queries=[-1, 2], name="picked"), ask.TopKeys(queries="last", name="last"), ask.HeadOutput(),
        ask.Received(groups=("needle",), name="grouped"),
    ]  # fmt: skip
    both = model.run([short, long], asks, side=side)
    for row, one in enumerate((short, long)):
        alone = model.run(one, asks)
        start = 23 - len(one) if side == "left" else 0
        real = slice(start, start + len(one))
        for key in ("entropy", "mass", "head_output"):
            got, want = both[key].values[:, row], alone[key].values[:, 0]
            assert np.abs(got[:, :, real] - want).max() < 2e-5, key
            if len(one) < 23:
                blank = slice(0, start) if side == "left" else slice(len(one), None)
                assert np.isnan(got[:, :, blank]).all()
        for key in ("received", "mean", "grouped"):
            assert np.abs(both[key].values[:, row][..., real] - alone[key].values[:, 0]).max() < 1e-4, key
        assert np.abs(both["picked"].values[:, row][..., real] - alone["picked"].values[:, 0]).max() < 2e-5
        assert np.array_equal(both["last"].values[:, row] - start, alone["last"].values[:, 0])
        assert (both.logits[row, real] - alone.logits[0]).abs().max() < 5e-5
    assert np.abs(np.nansum(alone["mass"].values[..., :], -1) - alone["mass"].values.sum(-1)).max() == 0


@pytest.mark.parametrize("family", DECODERS)
def test_a_trace_sees_the_rows_that_a_whole_run_sees(models, family):
    """Prefill equals token-by-token decoding, sliding windows and their caches included."""
    model = models(family)
    start = prompt(20, 3, needle=[4, 5, 6])
    mass = ask.Mass(["bos", "needle", "generated"])
    asks = [ask.Entropy(), mass, ask.TopKeys(2), ask.HeadOutput(), ask.Rows(queries="last")]
    trace = model.trace(start, asks, max_new_tokens=8)
    whole = Prompt.from_ids([*start.ids, *trace.tokens[:-1]], {"needle": [4, 5, 6]})
    steps = len(trace.tokens)
    run = model.run(
        whole, [ask.Entropy(), ask.Mass(["bos", "needle"]), ask.TopKeys(2), ask.HeadOutput(), ask.Pattern()]
    )
    rows = slice(19, 19 + steps)
    assert np.abs(trace["entropy"].values - run["entropy"].values[..., rows]).max() < 5e-5
    assert np.abs(trace["mass"].values[..., :2] - run["mass"].values[..., rows, :]).max() < 5e-5
    assert np.abs(trace["head_output"].values - run["head_output"].values[..., rows, :]).max() < 5e-5
    pattern = run["pattern"].values[..., rows, :]
    got = np.nan_to_num(trace["rows"].values, nan=0.0)
    assert np.abs(got - pattern).max() < 5e-5
    generated = trace["mass"].sel(region="generated").values
    for step in range(steps):
        assert np.abs(generated[..., step] - pattern[..., step, 20:].sum(-1)).max() < 5e-5
    keys = trace["top_keys"].values
    best = np.take_along_axis(pattern, keys.clip(min=0), -1)
    assert np.abs(best[..., 0] - pattern.max(-1)).max() < 5e-5
    greedy = run.logits[0, 19 : 19 + steps].argmax(-1).tolist()
    assert greedy == trace.tokens


def test_a_trace_can_be_taught_and_stopped(models):
    model = models("llama")
    taught = model.trace(prompt(), [ask.Entropy()], teacher=[7, 8, 9])
    assert taught.tokens == [7, 8, 9]
    assert taught["entropy"].sizes["step"] == 3
    assert len(model.trace(prompt(), max_new_tokens=9, stop=lambda text: True).tokens) == 1


@pytest.mark.parametrize("family", DECODERS)
def test_only_the_logits_that_are_wanted(models, family):
    model, p = models(family), prompt(9)
    whole = model.run(p).logits
    torch.testing.assert_close(model.run(p, logits=4).logits, whole[:, -4:], rtol=0, atol=1e-5)
    torch.testing.assert_close(model.run(p, logits="last").logits, whole[:, -1:], rtol=0, atol=1e-5)
    assert model.run(p, logits=False).logits is None


@pytest.mark.parametrize("family", DECODERS)
def test_head_edits(models, family):
    model = models(family)
    inputs = random_inputs(model.hf, length=12)
    base = model.run(inputs, [ask.HeadOutput()])
    z = base["head_output"].values
    layer, heads = 1, model.spec.n_heads
    with model.edited(HeadEdit([(layer, 1)])):
        zeroed = model.run(inputs, [ask.HeadOutput()])
    got = zeroed["head_output"].values
    assert (got[layer, :, 1] == 0).all()
    others = [h for h in range(heads) if h != 1]
    assert np.array_equal(got[layer][:, others], z[layer][:, others])
    assert np.array_equal(got[0], z[0])
    assert (zeroed.logits - base.logits).abs().max() > 1e-7
    with model.edited(HeadEdit([(layer, 1)], mode="scale", factor=1.0)):
        assert torch.equal(model.run(inputs, [ask.HeadOutput()]).logits, base.logits)
    mean = z[layer, 0, 1].mean(0)
    with model.edited(HeadEdit([(layer, 1)], mode="mean", values={(layer, 1): mean})):
        assert np.allclose(model.run(inputs, [ask.HeadOutput()])["head_output"].values[layer, 0, 1], mean)
    assert torch.equal(model.run(inputs, [ask.HeadOutput()]).logits, base.logits)


@pytest.mark.parametrize("family", DECODERS)
def test_edits_hold_in_decoding_as_in_prefill(models, family):
    model = models(family)
    start = prompt(20, 4, needle=[6, 7])
    bank = torch.randn(50, model.run(start, [ask.HeadOutput()])["head_output"].sizes["dim"])
    edits = [
        HeadEdit([(1, 0)]),
        HeadEdit([(0, 1)], mode="resample", values={(0, 1): bank}, seed=5),
        KnockOut([(0, 0), (1, 1)], "needle"),
    ]
    with model.edited(*edits):
        trace = model.trace(start, [ask.HeadOutput(), ask.Rows(queries="last")], max_new_tokens=6)
        whole = Prompt.from_ids([*start.ids, *trace.tokens[:-1]], {"needle": [6, 7]})
        run = model.run(whole, [ask.HeadOutput(), ask.Pattern()])
    rows = slice(19, 19 + len(trace.tokens))
    assert np.abs(trace["head_output"].values - run["head_output"].values[..., rows, :]).max() < 5e-5
    assert np.abs(np.nan_to_num(trace["rows"].values) - run["pattern"].values[..., rows, :]).max() < 5e-5
    assert run.logits[0, rows].argmax(-1).tolist() == trace.tokens


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "gemma2", "gpt_oss"])
def test_knock_out_hides_keys_and_renormalises(models, family):
    model = models(family)
    p = prompt(16, 5, needle=[3, 4, 5])
    base = model.run(p, [ask.Pattern()])["pattern"].values
    with model.edited(KnockOut([(0, 0)], "needle")):
        run = model.run(p, [ask.Pattern(), ask.Mass(["needle"])])
    got, want = run["pattern"].values[0, 0, 0], base[0, 0, 0].copy()
    assert (run["mass"].values[0, 0, 0, 3:] == 0).all()
    if family != "gpt_oss":  # a learned sink takes its share of what is freed
        cut = want.copy()
        cut[:, [3, 4, 5]] = 0
        left = cut.sum(-1, keepdims=True)
        want = np.where(left > 1e-6, cut / np.maximum(left, 1e-30), want)
        assert np.abs(got - want).max() < 2e-5
        assert np.allclose(got.sum(-1), 1, atol=1e-5)
    assert np.abs(run["pattern"].values[0, 0, 1:] - base[0, 0, 1:]).max() < 1e-6
    assert (np.triu(got, 1) == 0).all()


def test_knocking_out_all_that_a_row_sees_leaves_the_row(models):
    model = models("llama")
    p = prompt(8)
    base = model.run(p, [ask.Pattern()])["pattern"].values
    with model.edited(KnockOut([(0, 0)], [0])):
        got = model.run(p, [ask.Pattern()])["pattern"].values
    assert got[0, 0, 0, 0, 0] == 1
    assert (got[0, 0, 0, 1:, 0] == 0).all()
    assert np.abs(got[0, 0, 1] - base[0, 0, 1]).max() < 1e-6


def test_edits_vanish_after_an_exception(models):
    model = models("llama")
    base = model.run(prompt()).logits
    with pytest.raises(ZeroDivisionError), model.edited(HeadEdit([(0, 0)]), KnockOut([(0, 1)], [2])):
        raise ZeroDivisionError
    assert model.edits == ()
    assert torch.equal(model.run(prompt()).logits, base)


def test_edits_reach_a_bare_call_of_the_model(models):
    model = models("llama")
    inputs = random_inputs(model.hf)
    with torch.no_grad():
        base = model.hf(**inputs).logits
        with model.edited(HeadEdit([(0, 0)])):
            assert not torch.equal(model.hf(**inputs).logits, base)
        assert torch.equal(model.hf(**inputs).logits, base)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "vit", "t5", "whisper", "gemma2"])
def test_stored_queries_and_keys_give_exact_tiles(models, family):
    model = models(family)
    inputs = random_inputs(model.hf, batch=2, length=19)
    run = model.run(inputs, [ask.QK(), ask.Pattern()])
    store, pattern = run.qk["qk"], run["pattern"].values
    size = pattern.shape[-2:]
    for head in range(model.spec.n_heads):
        assert np.abs(store.tile(1, head, batch=1).numpy() - pattern[1, 1, head]).max() < 1e-6
    rows, cols = range(2, min(11, size[0])), range(1, min(9, size[1]))
    tile = store.tile(0, 1, rows=rows, cols=cols).numpy()
    assert np.abs(tile - pattern[0, 0, 1, 2 : rows.stop, 1 : cols.stop]).max() < 1e-6
    for reduce in ("mean", "max"):
        pooled = store.tile(0, 0, pool=(4, 3), reduce=reduce).numpy()
        block = pattern[0, 0, 0, 4:8, 3:6]
        assert abs(pooled[1, 1] - (block.mean() if reduce == "mean" else block.max())) < 1e-6
    with pytest.raises(RequestError, match="outside"):
        store.tile(0, 0, rows=range(size[0] + 3))


def test_values_are_let_go_of_while_the_model_runs(models, monkeypatch):
    held = []
    keep = session.bare

    def kept(inp):
        held.append((weakref.ref(inp.v.untyped_storage()), keep(inp)))
        return held[-1][1]

    model = models("llama")
    monkeypatch.setattr(session, "bare", kept)
    model.run(random_inputs(model.hf, length=19), [ask.QK()])
    assert len(held) == model.spec.n_layers
    assert all(inp.v.untyped_storage().nbytes() == 0 and values() is None for values, inp in held)


def test_a_run_knows_what_it_holds(models):
    model = models("llama")
    run = model.run(random_inputs(model.hf), [ask.Entropy()])
    assert "entropy" in run
    assert "mass" not in run
    assert run.get("mass") is None
    with pytest.raises(RequestError, match="Did you mean 'entropy'"):
        run["entrop"]


def test_the_remaining_requests_by_brute_force(models):
    model = models("llama")
    p = prompt(21, 6, needle=[3, 4], question=[15, 16, 17])
    x = torch.randn(21, 3)
    keys = torch.stack([torch.arange(21) - 1, torch.full((21,), 2)], dim=1)
    run = model.run(
        p,
        [
            ask.Pattern(), ask.Weighted(x), ask.Lookup(keys), ask.Pooled(rows=4, cols=5), ask.Logsumexp(),
            ask.Pooled(rows=4, cols=5, reduce="max", name="max"), ask.ValueNorms(), ask.HeadOutput(),
            ask.ValueNorms(through_output=True, name="written"), ask.Received(groups=("needle", "question")),
            ask.Mass({"mine": [0, 20]}, name="mine"), ask.TopKeys(5), ask.Entropy(heads=[(1, 0), (0, 2)], name="two"),
            ask.Rows(queries="question"), ask.Entropy(),
        ],
    )  # fmt: skip
    a = run["pattern"].values.astype(np.float64)
    assert np.abs(run["weighted"].values - a @ x.numpy()).max() < 1e-5
    lookup = run["lookup"].values
    assert np.abs(lookup[..., 1:, 0] - np.diagonal(a, -1, -2, -1)).max() < 1e-6
    assert (lookup[..., 0, 0] == 0).all()
    assert np.abs(lookup[..., 1] - a[..., 2]).max() < 1e-6
    for r in range(4):
        for c in range(5):
            block = a[..., r * 6 : r * 6 + 6, c * 5 : c * 5 + 5]
            assert np.abs(run["pooled"].values[..., r, c] - block.mean((-1, -2))).max() < 1e-6
            assert np.abs(run["max"].values[..., r, c] - block.max((-1, -2))).max() < 1e-6
    assert np.abs(run["received"].sel(group="question").values - a[..., [15, 16, 17], :].sum(-2)).max() < 1e-5
    assert np.abs(run["mine"].values[..., 0] - a[..., 0] - a[..., 20]).max() < 1e-6
    assert np.abs(run["top_weights"].values - -np.sort(-a, -1)[..., :5]).max() < 1e-6
    assert np.abs(run["rows"].values - a[..., [15, 16, 17], :]).max() < 1e-6
    assert run["rows"].coords["query"].values.tolist() == [15, 16, 17]
    e = run["entropy"].values
    assert np.array_equal(run["two"].values, np.stack([e[1, :, 0], e[0, :, 2]]))
    # the first query sees one key, so its z is that key's value
    z = run["head_output"].values[:, 0, :, 0]
    assert np.abs(run["value_norms"].values[:, 0, :, 0] - np.linalg.norm(z, axis=-1)).max() < 1e-5
    weight = np.stack([model.sites.stack(None)[i].output_weight().detach().numpy() for i in range(len(z))])
    written = np.linalg.norm(np.einsum("lhd,lhdm->lhm", z, weight), axis=-1)
    assert np.abs(run["written"].values[:, 0, :, 0] - written).max() < 1e-5


def test_received_mean_counts_only_queries_that_can_look(models):
    model = models("mistral")
    p = prompt(40, 7)
    run = model.run(p, [ask.Pattern(), ask.Received(mean=True)])
    a = run["pattern"].values[:, 0]
    window = model.spec.layers()[0].window
    q, k = np.arange(40)[:, None], np.arange(40)
    sees = ((k <= q) & (k > q - window)).sum(0)
    assert np.abs(run["received"].values[:, 0] - a.sum(-2) / sees).max() < 1e-5


def test_results_know_their_labels(models):
    run = models("llama").run(prompt(9), [ask.Entropy(), ask.Mass(["bos", "rest"]), ask.Rows(queries="last")])
    assert run["entropy"].dims == ("layer", "batch", "head", "query")
    assert run["mass"].coords["region"].values.tolist() == ["bos", "rest"]
    assert np.allclose(run["mass"].sum("region"), 1, atol=1e-5)
    frame = run["rows"].to_frame()
    assert {"layer", "head", "query", "key", "key_token", "rows"} <= set(frame.columns)
    assert len(run["entropy"].mean("query").sel(batch=0).plot().data) == 1
    with pytest.raises(RequestError, match="dimensions"):
        run["entropy"].plot()
    with pytest.raises(RequestError, match="entropy"):
        run["entrpy"]


def test_bad_requests_say_what_is_wrong(models):
    model, p = models("llama"), prompt(9, needle=[2])
    layers, heads = model.spec.n_layers, model.spec.n_heads
    cases = [
        (ask.Entropy(layers=[layers]), f"layer {layers}"),
        (ask.Entropy(heads=[(0, heads)]), "heads 0 to"),
        (ask.Mass(["nedle"]), "needle"),
        (ask.Rows(queries=[9]), "outside"),
        (ask.Rows(queries="nowhere"), "nowhere"),
        (ask.Entropy(stack="vision"), "no vision"),
        (ask.Residual(heads=[(0, 0)]), "head dimension"),
        (ask.Weighted(torch.ones(3, 2)), "shape"),
        ("entropy", "takes requests"),
    ]
    for request, message in cases:
        with pytest.raises(RequestError, match=message):
            model.run(p, [request])
    with pytest.raises(RequestError, match="give one of them a name"):
        model.run(p, [ask.Rows(queries=[1]), ask.Rows(queries=[2])])
    with pytest.raises(RequestError, match="heads 0 to"), model.edited(HeadEdit([(0, 99)])):
        pass
    with pytest.raises(RequestError, match="no region"), model.edited(KnockOut([(0, 0)], "nowhere")):
        model.run(p)
    with pytest.raises(RequestError, match="shape"), model.edited(HeadEdit([(0, 0)], "mean", {(0, 0): torch.zeros(3)})):
        pass
    with pytest.raises(RequestError, match="about keys"):
        model.trace(p, [ask.Received()])
    with pytest.raises(PromptError, match="context"):
        model.run(prompt(model.spec.n_ctx + 1))
    with pytest.raises(PromptError, match="Nothing to run"):
        model.run([])


def test_memory_is_estimated_before_the_run(models, monkeypatch):
    model, p = models("llama"), prompt(64)
    with pytest.raises(MemoryBudgetError, match=r"Pooled\(\)"):
        model.run(p, [ask.Pattern(limit=1000)])
    monkeypatch.setenv("HEADSCOPE_MEMORY_LIMIT", "100000")
    with pytest.raises(MemoryBudgetError, match="queries="):
        model.run(p, [ask.Residual(), ask.MlpActivation(), ask.HeadOutput()])
    monkeypatch.setenv("HEADSCOPE_MEMORY_LIMIT", "1000")
    with pytest.raises(MemoryBudgetError, match="before anything is captured"):
        model.run(p)


def test_weights_that_give_nan_are_named():
    model = make("llama")
    model.hf.lm_head.weight.data[0] = torch.nan
    with pytest.raises(WeightsError, match="not finite"):
        model.run(prompt())
    model = make("llama")
    model.hf.get_input_embeddings().weight.data[:] = torch.nan
    with pytest.raises(WeightsError, match="not finite"):
        model.run(prompt(), [ask.Entropy()], logits=False)


def test_a_model_that_left_the_engine_is_noticed(models):
    model = models("llama")
    model.hf.set_attn_implementation("sdpa")
    try:
        with pytest.raises(UnsupportedError, match="did not go through headscope"):
            model.run(prompt(), [ask.Entropy()])
        with pytest.raises(UnsupportedError, match="layer 1"), model.edited(KnockOut([(1, 0)], [0])):
            model.run(prompt())
    finally:
        model.hf.set_attn_implementation(NAME)


def test_what_is_not_honoured_is_refused_by_name(models):
    model = models("llama")
    with model.edited(HeadEdit([(0, 0)])), pytest.raises(UnsupportedError, match="strange_bias"):
        model.hf(**random_inputs(model.hf), strange_bias=torch.ones(1))
