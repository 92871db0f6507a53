"""Tiles of stored queries and keys against the explicit oracle in float64."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headscope.attention import tiles as stored
from headscope.attention.tiles import QKStore
from headscope.errors import RequestError
from headscope.kernels import dispatch, reference, tiles
from headscope.kernels.edits import Hide, Reweight, Shape
from headscope.kernels.inputs import AttentionInputs
from headscope.kernels.rules import Scale
from tests.kernels.test_rows import CASES, double, inputs

WAYS = {"rows": (1 << 21, 512), "lse": (0, 512), "blocks": (0, 8), "odd blocks": (0, 5)}
"""Cells up to which whole rows are taken, and the side of blocks."""


@pytest.fixture(params=WAYS)
def way(request, monkeypatch) -> Iterator[str]:
    exact, side = WAYS[request.param]
    monkeypatch.setattr(stored, "_EXACT", exact)
    monkeypatch.setattr(stored, "_EXACT_POOLED", exact)
    monkeypatch.setattr(tiles, "_SIDE", side)
    return request.param


def pooled(pattern: torch.Tensor, pool: tuple[int, int] | None, reduce: str) -> torch.Tensor:
    """Pool by brute force."""
    height, width = pool or (1, 1)
    blocks = [list(band.split(width, 1)) for band in pattern.split(height, 0)]
    return torch.stack(
        [torch.stack([block.mean() if reduce == "mean" else block.max() for block in band]) for band in blocks]
    )


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_rectangle_is_that_of_the_oracle(way, case, data) -> None:
    inp = inputs(**CASES[case])
    head, batch = data.draw(st.integers(0, inp.heads - 1)), data.draw(st.integers(0, inp.batch - 1))

    def span(length: int) -> range:
        start = data.draw(st.integers(0, length - 1))
        return range(start, data.draw(st.integers(start + 1, length)))

    rows, cols = span(inp.tq), span(inp.tk)
    pool = data.draw(st.none() | st.tuples(st.integers(1, 12), st.integers(1, 12)))
    reduce = data.draw(st.sampled_from(["mean", "max"]))
    found = QKStore({3: inp}).tile(3, head, rows=rows, cols=cols, batch=batch, pool=pool, reduce=reduce)
    truth = reference.pattern(double(inp))[batch, head, rows.start : rows.stop, cols.start : cols.stop]
    want = pooled(truth, pool, reduce)
    assert found.shape == want.shape
    assert found.dtype == torch.float32
    assert (found - want).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ["causal", "softcap", "sinks", "bias", "mask"])
def test_half_precision_is_accumulated_in_full(way, dtype, case) -> None:
    inp = inputs(dtype=dtype, **CASES[case])
    truth = reference.pattern(double(inp))
    for head in range(inp.heads):
        assert (QKStore({0: inp}).tile(0, head, batch=1) - truth[1, head]).abs().max() < 1e-6


def test_double_precision_stays(way) -> None:
    inp = inputs(dtype=torch.float64)
    found = QKStore({0: inp}).tile(0, 1)
    assert found.dtype == torch.float64
    assert (found - reference.pattern(inp)[0, 1]).abs().max() < 1e-14


@pytest.mark.parametrize("hidden", ["bool", -math.inf, -3e38])
def test_rows_that_see_nothing(way, hidden) -> None:
    """Zero where keys are hidden; where a finite mask hides all of them alike, the softmax of it is uniform."""
    inp = inputs(tq=20, tk=20, batch=1)
    blank = torch.zeros(1, 1, 20, 20, dtype=torch.bool)
    blank[..., 4:9, :] = True
    mask = ~blank if hidden == "bool" else torch.where(blank, float(hidden), 0.0)
    inp = replace(inp, mask=mask, causal=False)
    truth = reference.pattern(double(inp))[0, 2]
    for pool in (None, (4, 4)):
        found = QKStore({0: inp}).tile(0, 2, pool=pool)
        assert (found - pooled(truth, pool, "mean")).abs().max() < 1e-6


def test_masks_and_biases_of_one_row_or_column(way) -> None:
    inp = inputs(tq=20, tk=20, batch=1)
    seen = torch.rand(1, 1, 1, 20) < 0.6
    seen[..., 0] = True
    for extra in ({"mask": seen}, {"bias": torch.randn(1, 1, 1, 20)}, {"bias": torch.randn(1, 4, 20, 1)}):
        one = replace(inp, **extra)
        found = QKStore({0: one}).tile(0, 3, rows=range(3, 18), cols=range(2, 19), pool=(2, 3), reduce="max")
        truth = reference.pattern(double(one))[0, 3, 3:18, 2:19]
        assert (found - pooled(truth, (2, 3), "max")).abs().max() < 1e-6


def edited(inp: AttentionInputs, kind: str, head: int, rows: torch.Tensor | None = None) -> AttentionInputs:
    heads = torch.zeros(inp.heads, dtype=torch.bool)
    heads[head] = True
    keys = torch.zeros(inp.batch, 1, inp.tk, dtype=torch.bool)
    keys[..., 2:6] = True
    edit = {
        "hide": lambda: Hide(heads, keys, rows),
        "shape": lambda: Shape(heads, keys, temperature=1.5, bias=0.7, boost=0.2, rows=rows),
        "reweight": lambda: Reweight(heads, keys.to(torch.uint8), 1, Scale((3.0,)), rows),
    }[kind]()
    return replace(inp, edits=(edit,))


@pytest.mark.parametrize("kind", ["hide", "shape", "reweight"])
def test_edits_are_in_the_tiles_of_their_heads(way, kind) -> None:
    inp = edited(inputs(), kind, 2)
    truth, plain = (reference.pattern(double(x)) for x in (inp, replace(inp, edits=())))
    assert (truth - plain)[0, 2].abs().max() > 1e-2
    store = QKStore({0: inp})
    for head in range(inp.heads):
        found = store.tile(0, head, rows=range(5, 30), cols=range(1, 33), pool=(4, 4), reduce="max", batch=1)
        assert (found - pooled(truth[1, head, 5:30, 1:33], (4, 4), "max")).abs().max() < 1e-6


def test_normalisers_that_are_known_are_not_worked_out_again(monkeypatch) -> None:
    inp = inputs(batch=1)
    monkeypatch.setattr(stored, "_EXACT", 0)
    store, fresh = QKStore({0: inp}), QKStore({0: inp})
    want = [fresh.tile(0, head) for head in range(inp.heads)]
    lse = reference.lse(double(inp))[0].float()
    monkeypatch.setattr(tiles, "normaliser", lambda inp: pytest.fail("worked out again"))
    for head in range(inp.heads):
        store.know(0, head, lse[head])
        assert (store.tile(0, head) - want[head]).abs().max() < 1e-6
        assert torch.equal(fresh.tile(0, head), want[head])
    assert store.nbytes == fresh.nbytes
    with pytest.raises(RequestError, match="Log-normalisers of shape"):
        store.know(0, 0, lse)


def test_normalisers_of_edited_rows_are_not_believed(monkeypatch) -> None:
    inp = edited(inputs(batch=1), "reweight", 2)
    monkeypatch.setattr(stored, "_EXACT", 0)
    store = QKStore({0: inp})
    store.know(0, 2, torch.zeros(inp.tq))
    truth = reference.pattern(double(inp))[0, 2]
    assert (store.tile(0, 2) - truth).abs().max() < 1e-6


def test_the_reference_kernel_can_be_forced() -> None:
    inp = inputs(batch=1)
    with dispatch.using("reference"):
        found = QKStore({0: inp}).tile(0, 1, rows=range(3, 9))
    assert torch.equal(found, reference.pattern(inp)[0, 1, 3:9])


@pytest.mark.parametrize("case", CASES)
def test_pairs_say_why_a_weight_is_what_it_is(case) -> None:
    inp = inputs(**CASES[case])
    exact, plain = double(inp), replace(double(inp), edits=())
    logits, lse, before, after = (f(x) for f, x in (
        (reference.logits, plain), (reference.lse, plain), (reference.pattern, plain), (reference.pattern, exact)
    ))  # fmt: skip
    store = QKStore({1: inp})
    for query, key in ((0, 0), (inp.tq - 1, inp.tk - 1), (inp.tq // 2, 3), (inp.tq // 3, inp.tk - 2)):
        for head in range(inp.heads):
            pair, at = store.pair(1, head, query, key, batch=inp.batch - 1), (inp.batch - 1, head, query, key)
            assert pair.weight == pytest.approx(float(before[at]), abs=1e-9)
            assert pair.lse == pytest.approx(float(lse[at[:3]]), abs=1e-9)
            assert pair.visible == bool(before[at] > 0)
            assert float(pair.q @ pair.k) * pair.scale == pytest.approx(pair.raw, abs=1e-9)
            if pair.visible:
                assert pair.logit == pytest.approx(float(logits[at]), abs=1e-9)
                assert math.exp(pair.logit - pair.lse) == pytest.approx(pair.weight, abs=1e-9)
                capped = pair.raw if pair.softcap is None else pair.softcap * math.tanh(pair.raw / pair.softcap)
                assert capped + pair.bias == pytest.approx(pair.logit, abs=1e-9)
            else:
                assert pair.weight == 0
            if inp.edits:
                assert pair.edited == pytest.approx(float(after[at]), abs=1e-6)
            else:
                assert pair.edited is None


def test_pairs_of_rows_that_an_edit_leaves_alone() -> None:
    rows = torch.zeros(1, 37, dtype=torch.bool)
    rows[0, 30:] = True
    store = QKStore({0: edited(inputs(batch=1), "reweight", 1, rows)})
    assert store.pair(0, 1, 20, 4).edited is None
    assert store.pair(0, 1, 31, 4).edited is not None
    assert store.pair(0, 0, 31, 4).edited is None


def test_values_are_let_go() -> None:
    """Queries, keys and values that lie in one projection do not keep one another."""
    joint = torch.randn(1, 30, 3, 4, 8)
    q, k, v = joint.permute(2, 0, 3, 1, 4)
    store = QKStore({0: AttentionInputs(q, k, v, scale=0.3, causal=True)})
    assert store.nbytes == 2 * 30 * 4 * 8 * 4
    apart = QKStore({0: AttentionInputs(q.clone(), k.clone(), v.clone()[..., :0], scale=0.3, causal=True)})
    assert apart.nbytes == store.nbytes
    assert apart._layers[0].v.untyped_storage().nbytes() == 0
    assert torch.equal(apart.tile(0, 2), store.tile(0, 2))


def test_masks_that_layers_share_count_once() -> None:
    inp = inputs(batch=1, mask="bool")
    one, two = QKStore({0: inp}), QKStore({0: inp, 1: replace(inp, q=inp.q.clone(), k=inp.k.clone())})
    assert two.nbytes - one.nbytes == inp.q.nbytes + inp.k.nbytes


def test_gradients_are_not_kept() -> None:
    inp = inputs(batch=1)
    store = QKStore({0: replace(inp, q=inp.q.clone().requires_grad_() * 1, k=inp.k.clone().requires_grad_())})
    assert not store.tile(0, 0).requires_grad
    assert not store.pair(0, 0, 5, 3).q.requires_grad


def test_threads_get_what_one_alone_gets(way) -> None:
    inp = inputs(batch=1, tq=120, tk=120)
    asked = [(head, start) for head in range(inp.heads) for start in range(0, 120, 17)] * 3
    alone = QKStore({0: inp})
    want = [alone.tile(0, head, rows=range(start, min(start + 20, 120)), pool=(3, 5)) for head, start in asked]
    store, wrong = QKStore({0: inp}), []

    def work(mine: int) -> None:
        for at in range(mine, len(asked), 4):
            head, start = asked[at]
            if not torch.equal(store.tile(0, head, rows=range(start, min(start + 20, 120)), pool=(3, 5)), want[at]):
                wrong.append(at)

    threads = [threading.Thread(target=work, args=(mine,)) for mine in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_is_not_there_is_said() -> None:
    store = QKStore({2: inputs(batch=1)})
    for match, call in {
        "Layer 0 was not kept; layers kept: .2.": lambda: store.tile(0, 0),
        "Head 4 of sample 0: there are 4 heads": lambda: store.tile(2, 4),
        "outside the pattern of 37 × 37": lambda: store.tile(2, 0, cols=range(30, 38)),
        "Query 37 and key 0 are outside": lambda: store.pair(2, 0, 37, 0),
    }.items():
        with pytest.raises(RequestError, match=match):
            call()
