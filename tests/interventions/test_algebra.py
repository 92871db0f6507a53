"""One algebra: each method after the softmax, as a bias of logits, and as weights of key groups, on random rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from headscope.kernels.rules import Floor, Redistribute, Rule, Scale, Transfer
from tests.interventions import eager
from tests.interventions.eager import Place

CLOSE = 1e-11


@dataclass
class Rows:
    """A head's causal logits (T, T), where its regions lie, and its learned sink if it has one."""

    logits: Tensor
    place: Place
    a: Tensor

    def masses(self, *groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return masses (T, 1 + G) of rest and groups, what a learned sink takes (T,), and the group of each key."""
        member = torch.zeros(len(self.place.k), dtype=torch.int64)
        for number, keys in enumerate(groups, start=1):
            member[keys] = number
        masses = torch.stack([self.a[:, member == g].sum(-1) for g in range(len(groups) + 1)], dim=-1)
        return masses, (1 - masses.sum(-1)).clamp(min=0) * (self.place.sink is not None), member

    def by_rule(self, rule: Rule, *groups: Tensor) -> Tensor:
        masses, other, member = self.masses(*groups)
        return self.a * rule.weights(masses, other)[:, member]

    def by_bias(self, bias: Tensor) -> Tensor:
        return eager.softmax(self.logits + bias, self.place.sink)


@st.composite
def rows(draw: st.DrawFn, sinks: bool = True) -> Rows:
    length = draw(st.integers(2, 24))
    g = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    sharp = draw(st.sampled_from([0.3, 1.0, 3.0]))
    logits = torch.randn(length, length, generator=g, dtype=torch.float64) * sharp
    logits = logits.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -torch.inf)
    sink = torch.randn((), generator=g, dtype=torch.float64) if sinks and draw(st.booleans()) else None
    keys = st.sets(st.integers(0, length - 1), min_size=1, max_size=max(1, length - 1))
    prompt = draw(st.integers(1, length))
    regions = {"span": draw(keys), "other": draw(keys), "sinks": draw(keys)}
    positions = torch.arange(length)
    place = Place(0, 0, positions, positions, prompt, regions, set(range(length)), logits, sink)
    return Rows(logits, place, eager.softmax(logits, sink))


def strengths(most: float) -> st.SearchStrategy[float]:
    return st.just(0.0) | st.floats(1e-4, most)


def close(one: Tensor, other: Tensor, rows: Tensor | None = None) -> None:
    difference = (one - other).abs()
    picked = difference if rows is None else difference[rows]
    assert picked.numel() == 0 or float(picked.max()) < CLOSE


@settings(max_examples=60, deadline=None)
@given(rows(), st.floats(0.001, 100.0), st.sampled_from(["exclude", "include", "generation"]))
def test_pasta(r: Rows, alpha: float, mode: str) -> None:
    span, prompt = r.place.keys("span", "other"), r.place.k < r.place.prompt
    bias = torch.zeros(len(prompt), dtype=torch.float64)
    if mode == "exclude":
        bias[prompt & ~span] = math.log(alpha)
        scales = (1.0, 1.0, alpha)
    elif mode == "include":
        bias[span] += math.log(alpha)
        bias[prompt] -= math.log(alpha)
        scales = None  # a span outside the prompt would be a fourth group
    else:
        bias[prompt] = math.log(alpha)
        scales = (1.0, alpha, alpha)
    published = eager.pasta(("span", "other"), alpha, mode)(r.a, r.place)
    close(published, r.by_bias(bias))
    if scales is not None:
        rule = Scale(scales[1:], rest=scales[0])
        close(published, r.by_rule(rule, prompt & span, prompt & ~span))


@settings(max_examples=60, deadline=None)
@given(rows(), strengths(10.0))
def test_zerotuning(r: Rows, gamma: float) -> None:
    first = r.place.among({0})
    published = eager.zerotuning(gamma)(r.a, r.place)
    close(published, r.by_rule(Scale((gamma,)), first))
    some = torch.arange(len(r.a)) > 0 if gamma == 0 and r.place.sink is None else torch.ones(len(r.a), dtype=torch.bool)
    bias = torch.zeros_like(r.a[0]).masked_fill(first, math.log(gamma) if gamma else -math.inf)
    close(published, r.by_bias(bias), some)
    if r.place.sink is None:
        a0 = r.a[:, 0]
        expected = gamma * a0 / ((gamma - 1) * a0 + 1)
        close(published[:, 0], expected, some)


@settings(max_examples=60, deadline=None)
@given(rows(), strengths(1.0))
def test_spotlight(r: Rows, target: float) -> None:
    span = r.place.keys("span")
    published = eager.spotlight(("span",), target)(r.a, r.place)
    close(published, r.by_rule(Floor(target), span))
    mass = r.a[:, span].sum(-1)
    lift = torch.where((mass > 0) & (mass < target), target / mass.clamp(min=1e-300), 1.0).log()
    close(published, r.by_bias(lift[:, None] * span))
    # A row brought up from psi to the target and renormalised holds target / (1 - psi + target) of what keys hold.
    if r.place.sink is None:
        low = (mass > 0) & (mass < target)
        close(published[:, span].sum(-1), target / (1 - mass + target), low)


@settings(max_examples=80, deadline=None)
@given(rows(), strengths(1.0))
def test_act(r: Rows, beta: float) -> None:
    sinks = r.place.keys("sinks")
    r.place.memory["sinks"] = r.place.regions["sinks"]
    published = eager.act(1.0, beta)(r.a, r.place)
    close(published, r.by_rule(Transfer(beta), sinks))
    close(published.sum(-1), r.a.sum(-1))
    if r.place.sink is None and beta > 0:
        mass = r.a[:, sinks].sum(-1)
        able = r.a[:, ~sinks].sum(-1) > 0
        bias = (beta * (1 - mass) / (1 - beta * mass)).clamp(min=1e-300).log()
        close(published, r.by_bias(bias[:, None] * sinks), able)
    # The published code sets the first entry to 1, whatever was done to it; so does keeping a row with nowhere to give.
    if r.place.sink is None:
        assert published[0, 0] == 1


@settings(max_examples=80, deadline=None)
@given(rows(sinks=False), strengths(1.0), strengths(1.0), strengths(1.0))
def test_var(r: Rows, keep: float, portion: float, total: float) -> None:
    region, sinks = r.place.regions["span"], r.place.regions["sinks"]
    r.place.memory["peaks"] = sinks
    text, visual, others = (r.place.among(s) for s in (sinks - region, sinks & region, region - sinks))
    published = eager.var("span", (0,), 1.0, keep, portion, total)(r.a, r.place)
    after = torch.arange(len(r.a)) > max(region)
    seen = r.a[:, visual | others].sum(-1)
    # Rows on the edge of a condition may fall on either side of it by rounding.
    sure = (seen - total).abs() > 1e-12
    sure &= (r.a[:, visual].sum(-1) - portion * seen).abs() > 1e-12
    by_rule = r.by_rule(Redistribute(keep, portion, total), text, visual, others)
    close(published, torch.where(after[:, None], by_rule, r.a), sure)
    close(published.sum(-1), r.a.sum(-1))
    if keep > 0:
        share = published / torch.where(r.a > 0, r.a, 1)
        close(published, r.by_bias(share.clamp(min=1e-300).log().masked_fill(r.a == 0, 0.0)))


@settings(max_examples=60, deadline=None)
@given(rows())
def test_knockout(r: Rows) -> None:
    source, target = r.place.keys("span"), r.place.rows("other")
    published = eager.knockout(("span",), ("other",))(r.a, r.place)
    able = r.a[:, ~source].sum(-1) > 0
    blocked = target[:, None] & source & able[:, None]
    close(published, r.by_bias(torch.zeros(()).double().expand_as(r.a).masked_fill(blocked, -torch.inf)))
    assert (published[blocked] == 0).all()
    close(published[target], r.by_rule(Scale((0.0,)), source)[target], able[target])


@pytest.mark.parametrize("length", [1, 2])
def test_the_shortest_rows(length: int) -> None:
    """A row with one key keeps it, whatever the method asks."""
    logits = torch.zeros(length, length, dtype=torch.float64).masked_fill(
        torch.ones(length, length).triu(1) > 0, -torch.inf
    )
    at = Place(0, 0, torch.arange(length), torch.arange(length), length, {"span": {0}}, set(range(length)), logits)
    at.memory["sinks"] = {0}
    a = eager.softmax(logits)
    for formula in (
        eager.zerotuning(0),
        eager.act(0.1, 0.4),
        eager.knockout(("span",)),
        eager.spotlight(("span",), 0.5),
    ):
        assert formula(a, at)[0, 0] == 1
