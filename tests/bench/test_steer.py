"""The bench of steering: its jobs and table, and both ways of every method giving the same logits."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from rich.console import Console

import headscope as hs
from headscope.bench import cell, steer, steer_variants
from headscope.bench.jobs import ratio


def result(method: str | None, *, eager: bool = False, seconds: float = 1.2, **more):
    job = next(j for j in steer.cells([64], peers=True) if j["method"] == method and j["eager"] == eager)
    found = {"seconds": [seconds] * 2, "sdpa": [] if method is None else [1.0] * 2, "peak_bytes": 2e9}
    steps = {} if method is None else {"step_seconds": [0.044] * 2, "step_sdpa": [0.04] * 2}
    return {**job, "fits": True, "check": {"prefill": 3e-5, "step": 1e-5}, **found, **steps, **more}


def test_jobs_cover_every_method_both_ways():
    jobs = steer.cells([512, 8192], peers=True)
    for length in (512, 8192):
        for eager in (False, True):
            found = [j["method"] for j in jobs if j["length"] == length and j["eager"] == eager]
            assert [m for m in found if m is not None] == list(steer_variants.METHODS)
    assert all(bool(j["memory_limit"]) == j["eager"] for j in jobs)
    assert {j["layers"] for j in jobs if not j["eager"] or j["length"] == 512} == {None}
    assert not any(j["eager"] for j in steer.cells([512], peers=False))


def test_the_table_holds_ratios_side_by_side():
    shown = [
        result(None, seconds=1.0),
        result("pasta"),
        result("pasta", eager=True, seconds=6.0),
        result("act", seconds=1.5),
        {**result("act", eager=True), "fits": False, "limit": 20e9},
    ]
    console = Console(file=io.StringIO(), width=250)
    console.print(steer.table(shown, 64))
    lines = {line.split("│")[1].strip(): line for line in console.file.getvalue().splitlines() if line.count("│") > 5}
    for text in ("1.20 s", "1.20", "44 ms", "1.10", "6.00", "5.0×", "3e-05"):
        assert text in lines["pasta"]
    assert "does not fit in 20.0 GB" in lines["act"]


def test_ratios_are_medians_of_pairs():
    assert ratio([1.0, 4.0, 3.0], [1.0, 2.0, 1.0]) == 2


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A small Llama of several layers with a tokenizer."""
    from headscope.models.tiny import tiny

    folder = tmp_path_factory.mktemp("model")
    made = hs.data.organism("llama", seed=0)
    tiny("llama", num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, vocab_size=1024).save_pretrained(
        folder
    )
    made.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("method", steer_variants.METHODS)
def test_both_ways_give_the_same_logits_and_change_them(method, source, monkeypatch):
    prompt = torch.randint(10, 200, (1, 48), generator=torch.Generator().manual_seed(0))
    regions = {"span": list(range(12, 15)), "image": list(range(12, 18))}
    monkeypatch.setattr(steer_variants, "_prompt", lambda model, length: (prompt, regions))
    if method == "var":  # random weights have no massive dimensions, so lower what counts as one
        made = steer_variants.make
        monkeypatch.setattr(steer_variants, "make", lambda *a: replace(made(*a), tau=1.5, min_total=0.05))
    job = {**result(method, eager=True), "source": source, "runs": 1, "steps": 1, "threads": 1, "memory_limit": None}
    pair = steer_variants.prepare(job)
    state = pair.call()
    assert (state.logits - pair.plain().logits).abs().max() > 1e-5
    assert all(difference < 1e-5 for difference in pair.check(state).values())


def test_a_cell_measures_prefill_and_steps(source, monkeypatch):
    prompt = torch.randint(10, 200, (1, 32))
    monkeypatch.setattr(steer_variants, "_prompt", lambda model, length: (prompt, {"span": [4, 5], "image": [4, 5, 6]}))
    job = {**result("pasta", eager=True), "source": source, "runs": 1, "steps": 2, "threads": 1, "memory_limit": None}
    found = cell.measure({**job, "layers": 2})
    assert len(found["seconds"]) == len(found["sdpa"]) == 1
    assert len(found["step_seconds"]) == len(found["step_sdpa"]) == 2
    assert found["check"].keys() == {"prefill", "step"}
