"""Edited rows: the sweep equals the oracle, and the oracle equals the formula of each rule, written out."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headscope.errors import RequestError
from headscope.kernels import dispatch, reference
from headscope.kernels.edits import Hide, Reweight, Shape
from headscope.kernels.inputs import AttentionInputs
from headscope.kernels.rows import Wants, sweep
from headscope.kernels.rules import Floor, Redistribute, Scale, Transfer

RULES = {
    "scale": Scale((3.0,), rest=0.5),
    "two groups": Scale((0.0, 2.0), rest=1.0),
    "floor": Floor(0.4),
    "transfer": Transfer(0.3),
    "redistribute": Redistribute(0.6, max_portion=0.8, min_total=0.1),
}


def inputs(*, heads=4, kv_heads=2, tq=13, tk=13, batch=2, d=8, seed=0, dtype=torch.float32, **extra) -> AttentionInputs:
    g = torch.Generator().manual_seed(seed)

    def new(h, t):
        return (torch.randn(batch, h, t, d, generator=g) * 1.5).to(dtype)

    return AttentionInputs(new(heads, tq), new(kv_heads, tk), new(kv_heads, tk), scale=d**-0.5, causal=True, **extra)


def edit(rule, inp: AttentionInputs, seed=0, rows=None, heads=None) -> Reweight:
    g = torch.Generator().manual_seed(seed)
    groups = torch.randint(0, rule.groups + 1, (inp.batch, inp.heads, inp.tk), generator=g).to(torch.uint8)
    active = torch.rand(inp.heads, generator=g) < 0.7 if heads is None else heads
    return Reweight(active, groups, rule.groups, rule, rows)


def everything() -> Wants:
    return Wants(out=True, entropy=True, received=True, rows=True, top=1)


def check(inp: AttentionInputs, tolerance: float = 2e-6) -> None:
    truth = replace(inp, q=inp.q.double(), k=inp.k.double(), v=inp.v.double())
    pattern = reference.pattern(truth)
    found = sweep(inp, everything())
    assert (found.rows - pattern).abs().max() < tolerance
    assert (found.out - reference.attend(truth)).abs().max() < 10 * tolerance
    assert (found.entropy - torch.special.entr(pattern).sum(-1)).abs().max() < 1e-5
    assert (found.received - pattern.sum(2)).abs().max() < 1e-5
    weight = pattern.gather(-1, found.top_keys.clamp(min=0))
    assert (weight[..., 0] - pattern.max(-1).values).abs().max() < tolerance


@pytest.mark.parametrize("way", ["compiled", "plain"])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("shape", [{}, {"tq": 1, "tk": 29}, {"tq": 5, "tk": 29}, {"heads": 8, "kv_heads": 1}])
def test_the_sweep_equals_the_oracle(rule, shape, way, monkeypatch) -> None:
    if way == "plain":
        monkeypatch.setattr("headscope.kernels.rows.library", lambda: None)
    inp = inputs(**shape)
    check(replace(inp, edits=(edit(rule, inp),)))


STEPS = {
    **{name: partial(edit, rule) for name, rule in RULES.items()},
    "hide": lambda inp: Hide(*keys(inp)),
    "shape": lambda inp: Shape(*keys(inp), 1.3, 0.5, 0.2),
}


def keys(inp: AttentionInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Some heads, and some keys, the same for all heads."""
    g = torch.Generator().manual_seed(1)
    return torch.tensor([True, False, True, True] * 3)[: inp.heads], torch.rand(inp.batch, 1, inp.tk, generator=g) < 0.3


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("kv_heads", [1, 2, 8])
@pytest.mark.parametrize("other", ["alone", "mask", "additive mask", "sinks", "two edits", "no compiler"])
def test_a_step_equals_the_oracle(name, kv_heads, other, monkeypatch) -> None:
    inp = inputs(heads=8, kv_heads=kv_heads, tq=1, tk=291, d=20)
    found = (STEPS[name](inp),)
    g = torch.Generator().manual_seed(2)
    if other == "mask":
        inp = replace(inp, mask=torch.rand(inp.batch, 1, 1, inp.tk, generator=g) < 0.8)
    if other == "additive mask":
        inp = replace(inp, mask=torch.randn(inp.batch, 1, 1, inp.tk, generator=g))
    if other == "sinks":
        inp = replace(inp, sinks=torch.randn(inp.heads, generator=g))
    if other == "two edits":
        found = (*found, edit(RULES["scale"], inp, heads=found[0].heads))
    if other == "no compiler":
        monkeypatch.setattr("headscope.kernels.dispatch.library", lambda: None)
    inp = replace(inp, edits=found, causal=False)
    heads = found[0].heads.nonzero().flatten()
    out = dispatch.step(inp, heads)
    truth = replace(inp, q=inp.q.double(), k=inp.k.double(), v=inp.v.double())
    assert (out - reference.attend(truth)[:, heads]).abs().max() < 1e-5


@settings(max_examples=30, deadline=None)
@given(
    rules=st.lists(st.sampled_from(list(RULES.values())), min_size=1, max_size=3),
    hide=st.booleans(),
    shape=st.booleans(),
    rows=st.booleans(),
    sinks=st.booleans(),
    group=st.sampled_from([1, 2, 4]),
    tk=st.integers(1, 60),
    ahead=st.integers(0, 60),
    seed=st.integers(0, 1000),
)
def test_edits_compose_in_order(rules, hide, shape, rows, sinks, group, tk, ahead, seed) -> None:
    g = torch.Generator().manual_seed(seed)
    inp = inputs(kv_heads=2, heads=2 * group, tq=max(1, tk - ahead), tk=tk, seed=seed)
    chosen = torch.rand(inp.batch, inp.tq, generator=g) < 0.5 if rows else None
    edits = [edit(rule, inp, seed + i, chosen) for i, rule in enumerate(rules)]
    keys = torch.rand(inp.batch, 1, tk, generator=g) < 0.3
    if hide:
        edits.insert(0, Hide(torch.ones(inp.heads, dtype=torch.bool), keys, chosen))
    if shape:
        edits.append(Shape(torch.ones(inp.heads, dtype=torch.bool), keys, 1.3, 0.5, 0.2, chosen))
    check(
        replace(inp, edits=tuple(edits), sinks=torch.randn(inp.heads, generator=g) if sinks else None), tolerance=5e-6
    )


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_selected_heads_are_the_heads_of_the_whole(rule) -> None:
    inp = inputs(heads=6, kv_heads=2)
    inp = replace(inp, edits=(edit(rule, inp),))
    heads = torch.tensor([0, 2, 5])
    whole = dispatch.compute(inp, Wants(out=True)).out
    part = dispatch.compute(inp.select(heads), Wants(out=True)).out
    assert (part - whole[:, heads]).abs().max() < 1e-6


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_heads_and_rows_not_named_are_untouched(rule) -> None:
    inp = inputs(dtype=torch.float64)
    rows = torch.zeros(inp.batch, inp.tq, dtype=torch.bool)
    rows[0, 7:] = True
    heads = torch.tensor([True, False, True, False])
    plain = sweep(inp, Wants(rows=True)).rows
    edited = sweep(replace(inp, edits=(edit(rule, inp, rows=rows, heads=heads),)), Wants(rows=True)).rows
    assert torch.equal(plain[:, ~heads], edited[:, ~heads])
    assert torch.equal(plain[1], edited[1])
    assert torch.equal(plain[0, :, :7], edited[0, :, :7])
    assert not torch.allclose(plain[0, heads, 7:], edited[0, heads, 7:])


def rows_of(rule, masses: list[float]) -> list[float]:
    """Weights for one row without learned sink: rest first."""
    return rule.weights(torch.tensor(masses, dtype=torch.float64), torch.tensor(0.0)).tolist()


def test_scale_is_a_bias_of_logits() -> None:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(9, generator=g, dtype=torch.float64)
    member = torch.tensor([0, 0, 1, 1, 2, 0, 2, 1, 0])
    rule = Scale((0.01, 4.0), rest=2.0)
    a = logits.softmax(-1)
    masses = torch.stack([a[member == i].sum() for i in range(3)])
    found = a * rule.weights(masses, torch.tensor(0.0))[member]
    expected = (logits + torch.tensor([2.0, 0.01, 4.0], dtype=torch.float64).log()[member]).softmax(-1)
    assert (found - expected).abs().max() < 1e-15


def test_rules_keep_the_mass_of_a_row() -> None:
    masses = [0.5, 0.3, 0.2]
    for weights in (rows_of(Scale((2.0, 0.1), 0.7), masses), rows_of(Transfer(0.4), [0.7, 0.3])):
        held = masses if len(weights) == 3 else [0.7, 0.3]
        assert sum(w * m for w, m in zip(weights, held, strict=True)) == pytest.approx(1, abs=1e-14)


def test_floor_raises_and_renormalises() -> None:
    # 0.1 is lifted by 0.3 / 0.1, and the row of 0.9 + 0.3 is brought back to 1.
    assert rows_of(Floor(0.3), [0.9, 0.1]) == pytest.approx([1 / 1.2, 3 / 1.2])
    assert rows_of(Floor(0.3), [0.6, 0.4]) == [1, 1]
    assert rows_of(Floor(0.3), [1.0, 0.0]) == [1, 1]


def test_transfer_gives_what_it_takes() -> None:
    assert rows_of(Transfer(0.4), [0.5, 0.5]) == pytest.approx([1.6, 0.4])
    assert rows_of(Transfer(0.4), [0.0, 1.0]) == [1, 1]


def test_redistribute_follows_its_conditions() -> None:
    rule = Redistribute(0.5, max_portion=0.5, min_total=0.2)
    assert rows_of(rule, [0.4, 0.2, 0.1, 0.3]) == pytest.approx([1, 0.5, 0.5, 1.5])
    assert rows_of(rule, [0.4, 0.2, 0.3, 0.1]) == [1, 1, 1, 1]
    assert rows_of(rule, [0.6, 0.3, 0.05, 0.05]) == [1, 1, 1, 1]
    assert rows_of(rule, [0.4, 0.2, 0.0, 0.4]) == [1, 1, 1, 1]


def test_a_row_left_with_nothing_is_kept() -> None:
    assert rows_of(Scale((0.0,), 1.0), [0.0, 1.0]) == [1, 1]
    inp = inputs(dtype=torch.float64)
    groups = torch.zeros(inp.batch, 1, inp.tk, dtype=torch.uint8)
    groups[..., 0] = 1
    cut = Reweight(torch.ones(4, dtype=torch.bool), groups, 1, Scale((0.0,)))
    rows = sweep(replace(inp, edits=(cut,)), Wants(rows=True)).rows
    assert (rows[:, :, 0, 0] == 1).all()
    assert (rows[:, :, 1:, 0] == 0).all()
    assert (rows.sum(-1) - 1).abs().max() < 1e-12


def test_nearly_all_mass_can_go_without_loss_of_precision() -> None:
    inp = inputs(batch=1)
    k = inp.k.clone()
    k[:, :, 0] = inp.q[:, ::2].mean(2) * 60  # nearly all attention on key 0
    inp = replace(inp, k=k)
    groups = torch.zeros(1, 1, inp.tk, dtype=torch.uint8)
    groups[..., 0] = 1
    everyone = torch.ones(4, dtype=torch.bool)
    hidden = replace(inp, edits=(Hide(everyone, groups.bool()),))
    truth = replace(hidden, q=hidden.q.double(), k=hidden.k.double(), v=hidden.v.double())
    assert (sweep(hidden, Wants(out=True)).out - reference.attend(truth)).abs().max() < 1e-5


def test_gradients_flow_through_the_oracle() -> None:
    inp = inputs()
    q = inp.q.clone().requires_grad_()
    out = reference.attend(replace(inp, q=q, edits=(edit(RULES["floor"], inp),)))
    out.sum().backward()
    assert bool(torch.isfinite(q.grad).all())
    assert q.grad.abs().sum() > 0


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_neutral_rules_say_so(rule) -> None:
    assert not rule.neutral


def test_neutral_strengths() -> None:
    assert Scale((1.0, 1.0)).neutral
    assert Scale((3.0,), rest=3.0).neutral
    assert Floor(0).neutral
    assert Transfer(1).neutral
    assert Redistribute(1, 0.5, 0.2).neutral


@pytest.mark.parametrize(
    "make",
    [
        lambda: Scale((-1.0,)),
        lambda: Scale((float("nan"),)),
        lambda: Floor(1.5),
        lambda: Transfer(float("inf")),
        lambda: Redistribute(1.2, 0.5, 0.5),
    ],
)
def test_senseless_strengths_are_refused(make) -> None:
    with pytest.raises(RequestError, match="finite number"):
        make()
