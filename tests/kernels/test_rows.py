"""The row sweep and the flash identities against the explicit oracle in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headscope.kernels import compiled, dispatch, reference, sdpa
from headscope.kernels.edits import Hide
from headscope.kernels.inputs import AttentionInputs
from headscope.kernels.rows import Wants, sweep


def inputs(
    *, batch=2, kv_heads=2, group=2, tq=37, tk=37, d=16, causal=True, dtype=torch.float32, seed=0, **options
) -> AttentionInputs:
    g = torch.Generator().manual_seed(seed)

    def new(heads: int, length: int) -> torch.Tensor:
        return torch.randn(batch, heads, length, d, generator=g, dtype=torch.float64).to(dtype)

    h = kv_heads * group
    extra = {}
    if options.get("softcap"):
        extra["softcap"] = 3.0
    if options.get("sinks"):
        extra["sinks"] = torch.randn(h, generator=g).to(dtype)
    if options.get("bias"):
        extra["bias"] = torch.randn(1, h, tq, tk, generator=g).to(dtype)
    if options.get("mask") == "bool":
        mask = torch.rand(batch, 1, tq, tk, generator=g) < 0.7
        mask[..., 0] = True
        extra["mask"] = mask & torch.ones(tq, tk, dtype=torch.bool).tril(tk - tq)
    if options.get("mask") == "float":
        extra["mask"] = torch.where(torch.rand(batch, 1, tq, tk, generator=g) < 0.3, -3e38, 0.0).to(dtype)
        extra["mask"][..., 0] = 0
    if options.get("hidden"):
        every = torch.ones(h, dtype=torch.bool)
        extra["edits"] = (Hide(every, torch.rand(batch, h, tk, generator=g) < 0.3),)
    q, k, v = new(h, tq), new(kv_heads, tk), new(kv_heads, tk)
    return AttentionInputs(q, k, v, scale=d**-0.5, causal=causal and "mask" not in extra, **extra)


def double(inp: AttentionInputs) -> AttentionInputs:
    def up(x):
        return x if x is None or x.dtype == torch.bool else x.double()

    return replace(
        inp, q=up(inp.q), k=up(inp.k), v=up(inp.v), mask=up(inp.mask), bias=up(inp.bias), sinks=up(inp.sinks)
    )


def everything(inp: AttentionInputs) -> Wants:
    project = torch.randn(inp.batch, inp.tk, 3, generator=torch.Generator().manual_seed(1))
    lookup = torch.randint(-1, inp.tk, (inp.batch, inp.tq, 2), generator=torch.Generator().manual_seed(2))
    groups = torch.zeros(inp.batch, 2, inp.tq)
    groups[:, 0, ::2] = 1
    groups[:, 1, 1::2] = 1
    return Wants(
        out=True, lse=True, entropy=True, top=1, received=True, groups=groups, project=project, lookup=lookup,
        pooled_max=(5, 7), rows=True,
    )  # fmt: skip


def check(inp: AttentionInputs) -> None:
    """Every statistic of one sweep: error at most twice that of PyTorch's own explicit arithmetic, plus one ulp-ish."""
    exact, own = double(inp), inp
    wants = everything(inp)
    found = sweep(inp, wants)
    truth, explicit = reference.pattern(exact), reference.pattern(own)
    floor = 4 * torch.finfo(torch.float32).eps

    def close(mine, theirs, want, scale=1.0):
        mine, theirs = mine.double(), theirs.double()
        assert (mine - want).abs().max() <= 2 * (theirs - want).abs().max() + floor * scale

    close(found.rows, explicit, truth)
    close(found.out, reference.attend(own), reference.attend(exact), 8)
    finite = torch.isfinite(reference.lse(exact))
    close(found.lse[finite], reference.lse(own)[finite], reference.lse(exact)[finite], 16)
    close(found.entropy, reference.entropy(own), reference.entropy(exact), 16)
    close(found.received, explicit.sum(2), truth.sum(2), inp.tq)
    for index in range(2):
        weights = wants.groups[:, index, None, :, None].double()
        close(found.grouped[:, :, index], (explicit * weights).sum(2), (truth * weights).sum(2), inp.tq)
    x = wants.project[:, None].double()
    close(found.project, (explicit.double() @ x), truth @ x, 16)
    keys = wants.lookup[:, None].expand(-1, inp.heads, -1, -1)
    want = torch.where(keys >= 0, truth.gather(-1, keys.clamp(min=0)), 0.0)
    assert (found.lookup - want).abs().max() <= 2 * (explicit - truth).abs().max() + floor
    best, weight = found.top_keys[..., 0], found.top_weights[..., 0]
    sees = truth.amax(-1) > 0
    picked = truth.gather(-1, best.clamp(min=0)[..., None])[..., 0]
    assert ((picked - truth.amax(-1)).abs()[sees] < 1e-5).all()
    assert (best[~sees] == -1).all()
    close(weight, explicit.amax(-1), truth.amax(-1))
    height, width = wants.pooled_max
    for r in range(found.pooled_max.shape[2]):
        for c in range(found.pooled_max.shape[3]):
            block = truth[:, :, r * height : (r + 1) * height, c * width : (c + 1) * width].amax((-1, -2))
            assert (found.pooled_max[:, :, r, c] - block).abs().max() < 1e-5


CASES = {
    "causal": {},
    "full": {"causal": False},
    "offset": {"tq": 5, "tk": 37},
    "decode": {"tq": 1, "tk": 37},
    "cross": {"tq": 9, "tk": 21, "causal": False},
    "mha": {"kv_heads": 4, "group": 1},
    "mqa": {"kv_heads": 1, "group": 8},
    "softcap": {"softcap": True},
    "sinks": {"sinks": True},
    "bias": {"bias": True},
    "mask": {"mask": "bool"},
    "float mask": {"mask": "float"},
    "hidden": {"hidden": True},
    "all at once": {"softcap": True, "sinks": True, "bias": True, "mask": "bool", "hidden": True},
    "long": {"tq": 300, "tk": 300, "batch": 1},
}


@pytest.fixture(params=["compiled", "plain"])
def way(request, monkeypatch):
    """Both forms of the softmax of a tile."""
    if request.param == "plain":
        monkeypatch.setattr("headscope.kernels.rows.library", lambda: None)
    elif compiled.library() is None:
        pytest.skip("no C compiler on this machine")
    return request.param


@pytest.mark.parametrize("case", CASES)
def test_sweep_equals_the_oracle(case, way):
    check(inputs(**CASES[case]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_sweep_takes_every_precision(dtype, way):
    inp = inputs(dtype=dtype)
    found = sweep(inp, Wants(out=True, entropy=True, received=True))
    assert found.out.dtype == dtype
    truth = double(inp)
    assert (found.entropy - reference.entropy(truth)).abs().max() < 1e-5
    assert (found.received - reference.received(truth)).abs().max() < 1e-4


@settings(max_examples=40, deadline=None)
@given(
    group=st.sampled_from([1, 3, 4]),
    kv_heads=st.integers(1, 3),
    tk=st.integers(1, 140),
    ahead=st.integers(0, 140),
    d=st.sampled_from([4, 17, 64]),
    options=st.fixed_dictionaries({"softcap": st.booleans(), "sinks": st.booleans(), "hidden": st.booleans()}),
    causal=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_sweep_property(group, kv_heads, tk, ahead, d, options, causal, seed):
    shape = {"batch": 1, "group": group, "kv_heads": kv_heads, "tq": max(1, tk - ahead), "tk": tk, "d": d}
    check(inputs(**shape, causal=causal, seed=seed, **options))


def test_rows_that_see_nothing_are_zero(way):
    inp = inputs(mask="bool")
    inp.mask[0, :, 3] = False
    found = sweep(inp, Wants(out=True, lse=True, entropy=True, top=1, rows=True))
    assert (found.out[0, :, 3] == 0).all()
    assert (found.rows[0, :, 3] == 0).all()
    assert (found.lse[0, :, 3] == -torch.inf).all()
    assert (found.entropy[0, :, 3] == 0).all()
    assert (found.top_keys[0, :, 3] == -1).all()


def test_selected_queries_are_rows_of_the_whole(way):
    inp = inputs()
    queries = torch.tensor([[3, 36, 0], [5, 5, 20]])
    whole, some = sweep(inp, Wants(rows=True, entropy=True)), sweep(inp, Wants(rows=True, entropy=True), queries)
    for sample in range(2):
        torch.testing.assert_close(some.rows[sample], whole.rows[sample][:, queries[sample]])
        torch.testing.assert_close(some.entropy[sample], whole.entropy[sample][:, queries[sample]])


def test_several_top_keys_are_the_largest(way):
    inp = inputs()
    found = sweep(inp, Wants(top=4))
    truth = reference.pattern(double(inp)).topk(4)
    assert (found.top_weights - truth.values).abs().max() < 1e-6
    assert (found.top_keys[0, 0, 1, 2:] == -1).all()  # query 1 sees two keys


def test_nothing_leaks_from_the_future(way):
    inp = inputs()
    changed = replace(inp, k=inp.k.clone(), v=inp.v.clone())
    changed.k[:, :, 20:] += 5
    changed.v[:, :, 20:] += 5
    wants = Wants(out=True, lse=True, entropy=True, rows=True)
    before, after = sweep(inp, wants), sweep(changed, wants)
    for name in ("out", "lse", "entropy", "rows"):
        assert torch.equal(getattr(before, name)[:, :, :20], getattr(after, name)[:, :, :20])


def test_sweep_is_deterministic(way):
    inp = inputs(tq=200, tk=200)
    wants = Wants(out=True, received=True, entropy=True)
    first, second = sweep(inp, wants), sweep(inp, wants)
    assert torch.equal(first.received, second.received)
    assert torch.equal(first.out, second.out)


def test_nan_is_not_hidden(way):
    inp = inputs()
    inp.k[0, 0, 2, 0] = torch.nan
    assert torch.isnan(sweep(inp, Wants(out=True)).out[0, 0, 5:]).all()
    inp.k[:] = torch.nan
    found = sweep(inp, Wants(out=True, lse=True, entropy=True, top=1, received=True))
    for name in ("out", "lse", "entropy", "top_weights", "received"):
        assert torch.isnan(getattr(found, name)).all(), name


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("kv_heads", "group"), [(4, 1), (2, 4), (1, 8)])
@pytest.mark.parametrize("t", [1, 63, 130])
def test_flash_identities(causal, kv_heads, group, t):
    inp = inputs(batch=1, kv_heads=kv_heads, group=group, tq=t, tk=t, d=32, causal=causal)
    assert sdpa.available(inp)
    exact = double(inp)
    out, lse = sdpa.attend(inp)
    assert (out - reference.attend(exact)).abs().max() < 2e-6
    assert (lse - reference.lse(exact)).abs().max() < 2e-6
    assert (sdpa.entropy(inp) - reference.entropy(exact)).abs().max() < 2e-5
    sums = reference.received(exact)
    assert ((sdpa.received(inp, lse) - sums).abs() / sums.clamp(min=1e-3)).max() < 1e-5
    x = torch.randn(1, t, 70)
    assert (sdpa.weighted(inp, x) - reference.pattern(exact) @ x.double()[:, None]).abs().max() < 1e-5


def test_without_a_compiler_dispatch_uses_the_identities(monkeypatch):
    inp = inputs(batch=1, d=32)
    wants = Wants(out=True, lse=True, entropy=True, received=True, project=torch.randn(1, 37, 2))
    swept = dispatch.compute(inp, wants)
    monkeypatch.setattr("headscope.kernels.dispatch.library", lambda: None)
    flashed = dispatch.compute(inp, wants)
    for name in ("out", "lse", "entropy", "received", "project"):
        torch.testing.assert_close(getattr(swept, name).float(), getattr(flashed, name).float(), rtol=1e-4, atol=2e-5)


def test_compilation_can_be_switched_off_and_fails_softly(monkeypatch, tmp_path, caplog):
    compiled.library.cache_clear()
    monkeypatch.setenv("HEADSCOPE_COMPILE", "0")
    assert compiled.library() is None
    compiled.library.cache_clear()
    monkeypatch.setenv("HEADSCOPE_COMPILE", "1")
    monkeypatch.setenv("HEADSCOPE_CACHE", str(tmp_path))
    monkeypatch.setenv("CC", "/nonexistent/cc")
    assert compiled.library() is None
    assert "could not be compiled" in caplog.text
    compiled.library.cache_clear()
