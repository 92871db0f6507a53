"""Shapes and precisions that docstrings and docs/requests.md promise, checked by jaxtyping.

Each ``…_shapes`` function is a signature: one letter means one size in all of its arguments, and a call checks them.
"""

from __future__ import annotations

import pytest
import torch
from beartype import beartype
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float, Float32, Float64, Int64, TypeCheckError, jaxtyped
from numpy import ndarray
from torch import Tensor

import headscope as hs
from headscope.kernels import dispatch, reference, sdpa
from headscope.kernels.inputs import AttentionInputs
from headscope.kernels.rows import Wants, sweep
from headscope.models.tiny import tiny

checked = jaxtyped(typechecker=beartype)


@checked
def oracle_shapes(
    q: Float[Tensor, "B H Tq D"],
    k: Float[Tensor, "B Hkv Tk D"],
    v: Float[Tensor, "B Hkv Tk Dv"],
    x: Float[Tensor, "B Tk G"],
    *,
    logits: Float[Tensor, "B H Tq Tk"],
    lse: Float[Tensor, "B H Tq"],
    pattern: Float[Tensor, "B H Tq Tk"],
    out: Float[Tensor, "B H Tq Dv"],
    entropy: Float[Tensor, "B H Tq"],
    mass: Float[Tensor, "B H Tq G"],
    received: Float[Tensor, "B H Tk"],
) -> None: ...


@checked
def sweep_shapes(
    q: Float[Tensor, "B H Tq D"],
    k: Float[Tensor, "B Hkv Tk D"],
    v: Float[Tensor, "B Hkv Tk Dv"],
    x: Float[Tensor, "B Tk C"],
    groups: Float[Tensor, "B N Tq"],
    lookup: Int64[Tensor, "B Tq m"],
    *,
    out: Float[Tensor, "B H Tq Dv"],
    lse: Float32[Tensor, "B H Tq"],
    entropy: Float32[Tensor, "B H Tq"],
    top_keys: Int64[Tensor, "B H Tq n"],
    top_weights: Float32[Tensor, "B H Tq n"],
    received: Float64[Tensor, "B H Tk"],
    grouped: Float64[Tensor, "B H N Tk"],
    project: Float32[Tensor, "B H Tq C"],
    looked_up: Float32[Tensor, "B H Tq m"],
    rows: Float32[Tensor, "B H Tq Tk"],
) -> None: ...


@checked
def fused_shapes(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B Hkv T D"],
    x: Float[Tensor, "B T C"],
    *,
    out: Float[Tensor, "B H T D"],
    lse: Float[Tensor, "B H T"],
    weighted: Float32[Tensor, "B H T C"],
    entropy: Float32[Tensor, "B H T"],
    received: Float32[Tensor, "B H T"],
) -> None: ...


@checked
def run_shapes(
    ids: Int64[Tensor, "B T"],
    *,
    logits: Float[Tensor, "B T V"],
    logsumexp: Float[ndarray, "L B H T"],
    mass: Float[ndarray, "L B H T G"],
    received: Float[ndarray, "L B H T"],
    entropy: Float[ndarray, "L B H T"],
    top_keys: Int64[ndarray, "L B H T n"],
    top_weights: Float[ndarray, "L B H T n"],
    pooled: Float[ndarray, "L B H rows cols"],
    weighted: Float[ndarray, "L B H T C"],
    value_norms: Float[ndarray, "L B H T"],
    pattern: Float[ndarray, "L B H T T"],
    head_output: Float[ndarray, "L B H T Dv"],
    residual: Float[ndarray, "L+1 B T D"],
    mlp_activation: Float[ndarray, "L B T units"],
) -> None: ...


sizes = st.integers(1, 5)


@st.composite
def calls(draw: st.DrawFn, *, square: bool = False) -> AttentionInputs:
    batch, kv_heads, group, d = (draw(sizes) for _ in range(4))
    tk = draw(st.integers(1, 40))
    tq = tk if square else draw(st.integers(1, tk))
    dv = d if square else draw(sizes)
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    q = torch.randn(batch, kv_heads * group, tq, d, dtype=dtype)
    k, v = torch.randn(batch, kv_heads, tk, d, dtype=dtype), torch.randn(batch, kv_heads, tk, dv, dtype=dtype)
    return AttentionInputs(q, k, v, scale=d**-0.5, causal=draw(st.booleans()))


@settings(max_examples=20, deadline=None)
@given(calls())
def test_oracle(inp: AttentionInputs) -> None:
    x = torch.rand(inp.batch, inp.tk, 3).to(inp.q.dtype)
    names = ("logits", "lse", "pattern", "entropy", "received")
    found = {name: getattr(reference, name)(inp) for name in names}
    oracle_shapes(inp.q, inp.k, inp.v, x, out=reference.attend(inp), mass=reference.mass(inp, x), **found)


@settings(max_examples=20, deadline=None)
@given(calls(), sizes, sizes, sizes)
def test_sweep(inp: AttentionInputs, channels: int, groups: int, slots: int) -> None:
    x, weights = torch.rand(inp.batch, inp.tk, channels), torch.rand(inp.batch, groups, inp.tq)
    lookup = torch.randint(-1, inp.tk, (inp.batch, inp.tq, slots))
    stats = sweep(
        inp,
        Wants(
            out=True, lse=True, entropy=True, top=2, received=True, groups=weights, project=x, lookup=lookup, rows=True
        ),
    )
    found = {name: value for name, value in vars(stats).items() if name not in ("lookup", "pooled_max")}
    sweep_shapes(inp.q, inp.k, inp.v, x, weights, lookup, looked_up=stats.lookup, **found)
    assert stats.out is not None
    assert stats.out.dtype == inp.v.dtype


@settings(max_examples=20, deadline=None)
@given(calls(square=True), sizes)
def test_identities_on_fused_kernels(inp: AttentionInputs, channels: int) -> None:
    x = torch.rand(inp.batch, inp.tk, channels)
    out, lse = sdpa.attend(inp)
    fused_shapes(
        inp.q,
        inp.k,
        x,
        out=out,
        lse=lse,
        weighted=sdpa.weighted(inp, x),
        entropy=sdpa.entropy(inp),
        received=sdpa.received(inp, dispatch.sweep_lse(inp)),
    )


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_oss"])
def test_requests(family: str) -> None:
    model = hs.load(tiny(family))
    ids = torch.randint(5, 90, (2, 11))
    run = model.run(
        {"input_ids": ids},
        [
            hs.Logsumexp(),
            hs.Mass({"first": range(2), "second": range(2, 5)}),
            hs.Received(),
            hs.Entropy(),
            hs.TopKeys(3),
            hs.Pooled(4, 5, "mean"),
            hs.Weighted(torch.rand(11, 6)),
            hs.ValueNorms(),
            hs.Pattern(),
            hs.HeadOutput(),
            hs.Residual(),
            *([hs.MlpActivation()] if model.sites.stack(None)[0].mlp is not None else []),
        ],
    )
    found = {key: run[key].values for key in run}
    found.setdefault("mlp_activation", found["residual"][:-1])  # experts fused into one module have no such place
    run_shapes(ids, logits=run.logits, **found)


def test_a_wrong_shape_is_seen() -> None:
    q, k = torch.rand(1, 2, 3, 4), torch.rand(1, 1, 3, 4)
    right = {"out": q, "lse": q[..., 0], "weighted": q, "entropy": q[..., 0], "received": q[..., 0]}
    fused_shapes(q, k, torch.rand(1, 3, 4), **right)
    with pytest.raises(TypeCheckError, match="entropy"):
        fused_shapes(q, k, torch.rand(1, 3, 4), **{**right, "entropy": q[..., 0, :]})
