"""Triton's kernels against the explicit oracle in float64, in Triton's interpreter or on a GPU.

Triton decides when a kernel is defined whether it is interpreted, so that this file wants ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("without a GPU these need TRITON_INTERPRET=1", allow_module_level=True)

from headscope.kernels import dispatch, reference, rows  # noqa: E402
from headscope.kernels.edits import Hide, Reweight, Shape  # noqa: E402
from headscope.kernels.gradient import gradient_received  # noqa: E402
from headscope.kernels.inputs import AttentionInputs  # noqa: E402
from headscope.kernels.rows import Stats, Wants  # noqa: E402
from headscope.kernels.rules import Floor, Redistribute, Scale, Transfer  # noqa: E402
from headscope.kernels.triton.call import Call  # noqa: E402
from headscope.kernels.triton.compute import compute, refusal  # noqa: E402
from headscope.kernels.triton.plan import run  # noqa: E402
from headscope.kernels.triton.plan_forward import plan_forward  # noqa: E402
from headscope.kernels.triton.plan_reading import plan_received, plan_tile  # noqa: E402
from tests.kernels.test_rows import double  # noqa: E402
from tests.kernels.test_rows import inputs as any_inputs  # noqa: E402


def inputs(**options) -> AttentionInputs:
    """Return a small call: the interpreter's time goes by programs, one for each head and block."""
    return any_inputs(**{"kv_heads": 1, "group": 2, **options})


def moved(inp: AttentionInputs) -> AttentionInputs:
    """Return a call on the device under test, queries laid out as transformers lays them out."""

    def there(x):
        return x if x is None else x.to(DEVICE)

    def laid(x):
        return x.transpose(1, 2).contiguous().transpose(1, 2).to(DEVICE)

    return replace(
        inp, q=laid(inp.q), k=laid(inp.k), v=laid(inp.v), mask=there(inp.mask), bias=there(inp.bias),
        sinks=there(inp.sinks),
        edits=tuple(replace(e, **{n: there(v) for n, v in vars(e).items() if torch.is_tensor(v)}) for e in inp.edits),
    )  # fmt: skip


def asked(inp: AttentionInputs, *, queries: int | None = None) -> Wants:
    """Return a request for everything at once."""
    g = torch.Generator().manual_seed(1)
    n = inp.tq if queries is None else queries
    groups = torch.stack([torch.arange(n) % 2, 1 - torch.arange(n) % 2])[None].repeat(inp.batch, 1, 1).float()
    whole = queries is None
    return Wants(
        out=True, lse=True, entropy=True, top=1, received=whole, groups=groups.to(DEVICE) if whole else None,
        project=(torch.rand(inp.batch, inp.tk, 5, generator=g) < 0.3).float().to(DEVICE), indicator=True,
        lookup=torch.randint(-1, inp.tk, (inp.batch, n, 2), generator=g).to(DEVICE),
        pooled_max=(-(-n // 2), -(-inp.tk // 3)) if whole else None, rows=True,
    )  # fmt: skip


def compare(inp: AttentionInputs, wants: Wants, queries: torch.Tensor | None = None) -> Stats:
    """Every statistic: error at most twice that of explicit arithmetic in the inputs' precision, and a floor."""
    assert refusal(inp, wants, queries) is None
    found = compute(inp, wants, queries)
    exact = reference.statistics(double(inp), wants, queries)
    own = reference.statistics(inp, wants, queries)
    half = inp.q.dtype != torch.float32
    floor = {torch.float32: 4e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[inp.q.dtype]
    for name in ("out", "lse", "entropy", "project", "received", "grouped", "lookup", "pooled_max", "rows"):
        want, mine, theirs = (getattr(x, name) for x in (exact, found, own))
        if want is None:
            continue
        assert mine.shape == want.shape, name
        assert not mine.isnan().any(), name
        finite = torch.isfinite(want)
        assert (torch.isfinite(mine) == finite).all(), name
        want, mine, theirs = (x.double()[finite] for x in (want, mine, theirs))
        size = max(1.0, float(want.abs().max())) if want.numel() else 1.0
        # A statistic of half-precision inputs is accumulated in single precision: far better than explicit arithmetic.
        allowed = 2 * float((theirs - want).abs().max()) + (floor if name == "out" or not half else 5e-4) * size
        assert float((mine - want).abs().max()) <= allowed, name
    assert found.out.dtype == inp.v.dtype
    if wants.top:
        truth = exact.rows
        sees = truth.amax(-1) > 0
        picked = truth.gather(-1, found.top_keys.clamp(min=0)) * (found.top_keys >= 0)
        best = truth.topk(min(wants.top, inp.tk), -1).values
        n = best.shape[-1]
        assert (
            (picked[..., :n] - best).abs()[sees] <= 1e-3 if half else (picked[..., :n] - best)[sees].abs() < 1e-5
        ).all()
        assert (found.top_keys[..., 0][~sees] == -1).all()
        assert (found.top_weights[..., :n] - picked[..., :n] * (found.top_keys[..., :n] >= 0)).abs().max() <= (
            1e-3 if half else 1e-5
        )
    return found


CASES = {
    "causal": {},
    "full": {"causal": False},
    "offset": {"tq": 20, "tk": 37},
    "few rows": {"tq": 5, "tk": 300},
    "decode": {"tq": 1, "tk": 300},
    "cross": {"tq": 19, "tk": 21, "causal": False},
    "mha": {"kv_heads": 3, "group": 1},
    "mqa": {"kv_heads": 1, "group": 8},
    "softcap": {"softcap": True},
    "sinks": {"sinks": True},
    "bias": {"bias": True},
    "mask": {"mask": "bool"},
    "float mask": {"mask": "float"},
    "hidden": {"hidden": True},
    "decode with sinks": {"tq": 1, "tk": 300, "sinks": True},
    "decode with bias": {"tq": 1, "tk": 300, "bias": True, "softcap": True},
    "decode with mask": {"tq": 1, "tk": 300, "mask": "bool"},
    "decode of one head a key head": {"tq": 1, "tk": 300, "kv_heads": 3, "group": 1},
    "all at once": {"softcap": True, "sinks": True, "bias": True, "mask": "bool", "hidden": True},
    "several blocks": {"tq": 300, "tk": 300, "batch": 1},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_everything_equals_the_oracle(case, dtype):
    inp = moved(inputs(**CASES[case], dtype=dtype))
    compare(inp, asked(inp))


@pytest.mark.parametrize("d", [32, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_every_head_size(d, dtype):
    inp = moved(inputs(d=d, dtype=dtype, batch=1, tq=70, tk=70))
    compare(inp, asked(inp))


@pytest.mark.parametrize("case", ["causal", "offset", "mask", "sinks", "bias", "hidden", "float mask"])
@pytest.mark.parametrize("n", [1, 4, 20])
def test_selected_queries(case, n):
    inp = moved(inputs(**{"tq": 37, "tk": 41, **CASES[case]}))
    queries = torch.stack([torch.randperm(inp.tq)[:n] for _ in range(inp.batch)]).to(DEVICE)
    compare(inp, asked(inp, queries=n), queries)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_any_vectors_of_keys(case, dtype):
    inp = moved(inputs(**CASES[case], dtype=dtype))
    # Positions must not be rounded to half precision.
    x = torch.stack([torch.ones(inp.tk), 4096.0 + torch.arange(inp.tk), torch.randn(inp.tk)], dim=-1)
    wants = replace(asked(inp), project=x.expand(inp.batch, -1, -1).to(DEVICE), indicator=False)
    found = compare(inp, wants).project
    exact = reference.statistics(double(inp), Wants(project=wants.project)).project
    assert ((found - exact).abs() <= 4e-6 * (1 + exact.abs())).all()


@pytest.mark.parametrize("n", [1, 20])
@pytest.mark.parametrize("channels", [1, 70])
def test_any_vectors_of_keys_for_selected_queries(channels, n):
    inp = moved(inputs(tq=37, tk=41))
    queries = torch.stack([torch.randperm(inp.tq)[:n] for _ in range(inp.batch)]).to(DEVICE)
    x = torch.randn(inp.batch, inp.tk, channels, device=DEVICE)
    compare(inp, replace(asked(inp, queries=n), project=x, indicator=False), queries)


@pytest.mark.parametrize("n", [2, 5, 8])
@pytest.mark.parametrize("tq", [3, 150])
def test_largest_keys(n, tq):
    inp = moved(inputs(tq=tq, tk=150))
    found = compare(inp, replace(asked(inp), top=n))
    truth = reference.pattern(double(inp)).topk(n, -1)
    assert (truth.values - found.top_weights).abs().max() < 1e-5
    there = truth.values > 0
    assert (found.top_keys == torch.where(there, truth.indices, -1)).double().mean() > 0.999


def test_of_equal_weights_the_earlier_key():
    inp = moved(inputs(causal=False))
    # Products of whole numbers are exact in any order of summation: equal keys have equal scores, to the bit.
    k = (4 * inp.k[:, :, :1]).round().expand(-1, -1, inp.tk, -1).contiguous()
    inp = replace(inp, q=(4 * inp.q).round(), k=k)
    for n in (1, 3):
        found = compute(inp, Wants(top=n))
        assert (found.top_keys == torch.arange(n, device=DEVICE)).all()


def window(tq, width):
    return torch.ones(tq, tq, dtype=torch.bool).tril().triu(1 - width)


def padding(batch, tq, left):
    mask = torch.ones(tq, tq, dtype=torch.bool).tril().repeat(batch, 1, 1)
    for sample in range(batch):
        mask[sample, :, : left * sample] = False
    return mask[:, None]


def documents(tq, length):
    owner = torch.arange(tq) // length
    return torch.ones(tq, tq, dtype=torch.bool).tril() & (owner[:, None] == owner)


MASKS = {
    "window": window(140, 30)[None, None],
    "wide window": window(140, 110)[None, None],
    "padding": padding(2, 140, 70),
    "packed documents": documents(140, 66)[None, None],
    "keys alone": (torch.arange(140) > 70)[None, None, None],
    "of each head": torch.stack([window(140, 5), window(140, 100)])[None],
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_masks_of_every_kind(name, kind):
    mask = MASKS[name] if kind == "bool" else torch.where(MASKS[name], 0.0, -torch.inf)
    inp = moved(replace(inputs(batch=len(mask), tq=140, tk=140, causal=False), mask=mask))
    compare(inp, asked(inp))


def test_blocks_that_nobody_sees_are_not_visited():
    inp = moved(replace(inputs(tq=256, tk=256, causal=False), mask=window(256, 40)[None, None]))
    (call, *_), _ = plan_forward(inp, out=True)
    visited = call.arguments["FullCount"] + call.arguments["PartCount"]
    full = (256 // call.arguments["BLOCK_M"]) * (256 // call.arguments["BLOCK_N"])
    assert int(visited.sum()) < full
    assert int(call.arguments["PartCount"].sum()) > 0


RULES = {
    "scale": (Scale((0.01,)), 1), "raise": (Scale((5.0,)), 1), "cut": (Scale((0.0,)), 1),
    "floor": (Floor(0.3), 1), "transfer": (Transfer(0.4), 1), "more": (Transfer(1.5), 1),
    "redistribute": (Redistribute(0.5, 0.9, 0.05), 3), "three": (Scale((0.1, 2.0, 0.5), rest=0.7), 3),
}  # fmt: skip


def edited(inp, rule, count, *, per_head=False, some_rows=False, seed=3):
    g = torch.Generator().manual_seed(seed)
    heads = torch.arange(inp.heads) % 3 != 1
    groups = torch.randint(0, count + 1, (inp.batch, inp.heads if per_head else 1, inp.tk), generator=g)
    chosen = (torch.rand(inp.batch, inp.tq, generator=g) < 0.6) if some_rows else None
    return moved(replace(inp, edits=(*inp.edits, Reweight(heads, groups.to(torch.uint8), count, rule, chosen))))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", ["causal", "sinks", "mask", "few rows", "decode"])
def test_edits_with_statistics(rule, case):
    inp = edited(inputs(**CASES[case]), *RULES[rule], per_head=True, some_rows=True)
    compare(inp, asked(inp))


@pytest.mark.parametrize("rule", ["transfer", "three"])
@pytest.mark.parametrize("case", ["causal", "sinks", "decode"])
def test_edits_with_any_vectors_of_keys(rule, case):
    inp = edited(inputs(**CASES[case]), *RULES[rule], per_head=True, some_rows=True)
    x = torch.randn(inp.batch, inp.tk, 3, device=DEVICE)
    compare(inp, replace(asked(inp), project=x, indicator=False))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_edits_alone(rule, dtype):
    inp = edited(inputs(tq=150, tk=150, dtype=dtype), *RULES[rule])
    compare(inp, Wants(out=True))


def test_one_group_takes_one_pass(monkeypatch):
    seen = []
    monkeypatch.setattr(Call, "run", lambda call, run=Call.run: (seen.append(call), run(call))[1])
    inp = edited(inputs(tq=150, tk=150), *RULES["scale"])
    compute(inp, Wants(out=True))
    assert len(seen) == 1
    compute(edited(inputs(tq=150, tk=150), *RULES["three"]), Wants(out=True))
    assert len(seen) == 3


def test_edits_compose():
    inp = inputs(tq=70, tk=70)
    inp = edited(edited(inp, *RULES["three"]), *RULES["transfer"], per_head=True, seed=5)
    g = torch.Generator().manual_seed(8)
    heads = torch.tensor([False, True])
    hide = Hide(heads, torch.rand(2, 2, 70, generator=g) < 0.4, torch.rand(2, 70, generator=g) < 0.5)
    shape = Shape(heads, torch.rand(2, 1, 70, generator=g) < 0.4, 1.7, 0.3, 0.2, torch.rand(2, 70, generator=g) < 0.5)
    inp = moved(replace(inp, edits=(hide, shape, *inp.edits)))
    compare(inp, asked(inp))


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_temperature_of_a_head(temperature):
    heads = torch.tensor([False, True])
    shape = Shape(heads, torch.zeros(2, 1, 37, dtype=torch.bool), temperature)
    inp = moved(replace(inputs(), edits=(shape,)))
    found = compare(inp, asked(inp))
    bare = compute(replace(inp, edits=()), Wants(out=True))
    assert (found.out[:, 0] == bare.out[:, 0]).all()


def test_a_row_that_would_see_nothing_keeps_its_attention():
    every = torch.ones(2, dtype=torch.bool)
    hidden = torch.zeros(2, 1, 37, dtype=torch.bool)
    hidden[..., :5] = True
    inp = moved(replace(inputs(), edits=(Hide(every, hidden),)))
    found = compare(inp, asked(inp))
    bare = compute(replace(inp, edits=()), Wants(rows=True))
    assert (found.rows[:, :, :5] == bare.rows[:, :, :5]).all()
    assert (found.rows[:, :, 5:, :5] == 0).all()


def test_rows_that_see_nothing_are_zero():
    inp = inputs(mask="bool")
    inp.mask[0, :, 3] = False
    inp = moved(inp)
    found = compute(inp, asked(inp))
    assert (found.out[0, :, 3] == 0).all()
    assert (found.rows[0, :, 3] == 0).all()
    assert (found.lse[0, :, 3] == -torch.inf).all()
    assert (found.entropy[0, :, 3] == 0).all()
    assert (found.top_keys[0, :, 3] == -1).all()


def test_the_future_changes_nothing():
    inp = moved(inputs(tq=100, tk=100))
    other = replace(inp, k=inp.k.clone(), v=inp.v.clone())
    other.k[:, :, 61:] += 5
    other.v[:, :, 61:] = 7
    wants = Wants(out=True, lse=True, entropy=True, top=1)
    one, two = compute(inp, wants), compute(other, wants)
    for name in ("out", "lse", "entropy", "top_keys", "top_weights"):
        assert (getattr(one, name)[:, :, :61] == getattr(two, name)[:, :, :61]).all(), name


def test_beyond_the_end_is_nothing():
    """What lies behind a tensor in memory never counts."""
    inp = moved(inputs(tq=37, tk=37))
    k, v = (torch.full((*x.shape[:2], 256, x.shape[3]), torch.nan, device=DEVICE) for x in (inp.k, inp.v))
    k[:, :, :37], v[:, :, :37] = inp.k, inp.v
    spoilt = replace(inp, k=k[:, :, :37], v=v[:, :, :37])
    wants = asked(inp)
    one, two = compute(inp, wants), compute(spoilt, wants)
    for name in ("out", "lse", "entropy", "project", "received", "rows", "top_keys"):
        assert (getattr(one, name) == getattr(two, name)).all(), name


def test_masks_and_regions_that_were_written_into_are_read_again():
    inp = moved(replace(inputs(tq=140, tk=140, causal=False), mask=MASKS["window"].clone()))
    wants = asked(inp)
    compare(inp, wants)
    inp.mask[..., 100:] = False
    wants.project[:, :70] = 1 - wants.project[:, :70]
    compare(inp, wants)


def test_it_runs_in_inference_mode():
    with torch.inference_mode():
        inp = moved(replace(inputs(tq=140, tk=140, causal=False), mask=MASKS["window"]))
        compare(inp, asked(inp))


def test_the_same_every_time():
    inp = moved(inputs(tq=150, tk=150))
    wants = asked(inp)
    one, two = compute(inp, wants), compute(inp, wants)
    for name in ("out", "lse", "entropy", "project", "received", "grouped", "lookup", "pooled_max", "rows"):
        assert (getattr(one, name) == getattr(two, name)).all(), name


def test_gradient_weighted_received():
    inp = moved(inputs(tq=90, tk=90))
    exact = double(inp)
    v = exact.v.clone()
    cotangent = torch.randn(exact.q.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64).to(DEVICE)
    pattern = reference.pattern(exact).requires_grad_()
    (pattern @ v.repeat_interleave(inp.group, 1)).backward(cotangent)
    want = (pattern.detach() * pattern.grad).sum(2)
    lse = compute(inp, Wants(lse=True)).lse
    found = run(plan_received(inp, lse, cotangent=cotangent.float()))
    assert (found - want).abs().max() < 2e-4 * want.abs().max()


@pytest.mark.parametrize("bins", [None, (16, 32), (13, 50)])
@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_rectangles_and_their_pools(bins, reduce):
    inp = moved(inputs(tq=120, tk=120))
    truth = reference.pattern(double(inp))[:, :, 17:101, 9:88]
    lse = compute(inp, Wants(lse=True)).lse
    found = run(plan_tile(inp, lse, span=(17, 101), cols=(9, 88), bins=bins, reduce=reduce))
    if bins is None:
        assert (found - truth).abs().max() < 1e-5
        return
    for r, part in enumerate(truth.split(bins[0], 2)):
        for c, block in enumerate(part.split(bins[1], 3)):
            want = block.mean((2, 3)) if reduce == "mean" else block.amax((2, 3))
            assert (found[:, :, r, c] - want).abs().max() < 1e-5


@settings(max_examples=10, deadline=None)
@given(
    group=st.sampled_from([1, 3, 4]),
    kv_heads=st.integers(1, 2),
    tk=st.integers(1, 140),
    ahead=st.integers(0, 140),
    d=st.sampled_from([16, 24, 64]),
    options=st.fixed_dictionaries(
        {"softcap": st.booleans(), "sinks": st.booleans(), "hidden": st.booleans(), "bias": st.booleans()}
    ),
    mask=st.sampled_from([None, "bool", "float"]),
    causal=st.booleans(),
    rule=st.sampled_from([None, *RULES]),
    seed=st.integers(0, 1000),
)
def test_property(group, kv_heads, tk, ahead, d, options, mask, causal, rule, seed):
    if mask is not None:
        options = {**options, "mask": mask}
    shape = {"batch": 1, "group": group, "kv_heads": kv_heads, "tq": max(1, tk - ahead), "tk": tk, "d": d}
    inp = inputs(**shape, causal=causal, seed=seed, **options)
    inp = moved(inp) if rule is None else edited(inp, *RULES[rule], some_rows=True)
    compare(inp, asked(inp))


def test_what_the_kernels_do_not_serve_is_named():
    inp = inputs()
    assert "float64" in refusal(double(inp), Wants(out=True))
    assert "column sums" in refusal(inp, Wants(received=True), torch.zeros(2, 1, dtype=torch.long))
    hide = Hide(torch.ones(2, dtype=torch.bool), torch.zeros(2, 1, 37, dtype=torch.bool))
    assert "knock-outs" in refusal(replace(inp, edits=(hide, hide)), Wants(out=True))
    many = Reweight(torch.ones(2, dtype=torch.bool), torch.zeros(2, 1, 37, dtype=torch.uint8), 3, RULES["three"][0])
    assert "groups" in refusal(replace(inp, edits=(many, many, many)), Wants(out=True))


def test_dispatch_takes_what_is_forced(monkeypatch):
    inp = moved(inputs())
    calls = []
    monkeypatch.setattr("headscope.kernels.triton.compute.compute", lambda *a: (calls.append(1), compute(*a))[1])
    wants = Wants(out=True, entropy=True)
    with dispatch.using("triton"):
        mine = dispatch.compute(inp, wants)
        assert dispatch.engine(inp.q.device) == "triton"
    assert calls
    with dispatch.using("sdpa"):
        theirs = dispatch.compute(inp, wants)
    assert len(calls) == 1
    assert (mine.entropy - theirs.entropy).abs().max() < 1e-5
    # What the kernels do not serve, others do.
    with dispatch.using("triton"):
        found = dispatch.compute(double(inp), wants).entropy
    assert (found - rows.sweep(double(inp), wants).entropy).abs().max() < 1e-12
    assert len(calls) == 1


def test_a_kernel_that_does_not_compile_is_told_once_and_replaced(monkeypatch):
    from triton.runtime.errors import OutOfResources

    def broken(*_):
        raise OutOfResources(300000, 200000, "shared memory")

    monkeypatch.setattr("headscope.kernels.triton.compute.compute", broken)
    monkeypatch.setattr(dispatch, "_FAILED", set())
    inp = moved(inputs())
    wants = Wants(out=True, entropy=True)
    with dispatch.using("triton"):
        with pytest.warns(UserWarning, match="shared memory"):
            found = dispatch.compute(inp, wants)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            dispatch.compute(inp, wants)
    assert (found.entropy - reference.entropy(double(inp))).abs().max() < 1e-5


def test_tiles_and_gradients_have_the_same_way_out(monkeypatch):
    from triton.runtime.errors import OutOfResources

    def broken(*_):
        raise OutOfResources(300000, 200000, "shared memory")

    inp = moved(inputs())
    cotangent = torch.ones_like(inp.q)
    with dispatch.using("triton"):
        want = gradient_received(inp, cotangent)
    for name in ("rectangle", "gradient_received"):
        monkeypatch.setattr(f"headscope.kernels.triton.compute.{name}", broken)
    monkeypatch.setattr(dispatch, "_FAILED", set())
    with dispatch.using("triton"):
        with pytest.warns(UserWarning, match="shared memory"):
            assert dispatch.fused_tile(inp, (0, 5), (0, 5), None, "mean", None) is None
        assert (gradient_received(inp, cotangent) - want).abs().max() < 1e-5
