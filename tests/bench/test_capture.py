"""The bookkeeping of the bench: jobs, ratios, the table, and going on after an interruption."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from headscope.bench import capture, jobs
from headscope.bench.cell import measure
from headscope.errors import HeadscopeError


def result(variant: str, four: bool = False, seconds: float = 2.0, sdpa: float | None = 1.0, **more):
    job = next(j for j in capture.cells([64], peers=True) if j["variant"] == variant and j["four"] == four)
    pairs = [] if sdpa is None else [sdpa] * 2
    return {**job, "fits": True, "seconds": [seconds] * 2, "sdpa": pairs, "peak_bytes": 2e9, **more}


def test_jobs_cover_every_variant_and_length():
    found = capture.cells([64, 8192], peers=True)
    assert len(found) == 2 * (4 + 2 * len(capture.PEERS))
    assert len(capture.cells([64], peers=False)) == 4
    assert all(job["memory_limit"] for job in found if job["variant"] in capture.PEERS)


def test_ratios_are_to_sdpa_beside_it_or_to_its_cell():
    base = result("SDPA", seconds=4.0, sdpa=None)
    assert capture.ratios(result("headscope"), base) == 2
    assert capture.ratios(result("TransformerLens", sdpa=None), base) == 0.5
    assert capture.ratios({"fits": False}, base) is None


def test_the_table_says_what_did_not_fit():
    shown = [
        result("SDPA", seconds=1.0, sdpa=None),
        result("headscope", seconds=1.2),
        result("nnsight", seconds=6.0),
        {**result("TransformerLens"), "fits": False, "limit": 20e9},
    ]
    console = Console(file=io.StringIO(), width=200)
    console.print(capture.table(shown, 64))
    text = console.file.getvalue()
    assert "5.0×" in text
    assert "does not fit in 20.0 GB" in text


def test_finished_cells_are_not_measured_again(tmp_path, monkeypatch):
    calls = []

    def cell(job):
        calls.append(job["variant"])
        return {**job, "fits": True, "seconds": [1.0], "sdpa": [1.0], "peak_bytes": 1e9}

    monkeypatch.setattr(jobs, "run_cell", cell)
    monkeypatch.setattr("headscope.models.carried.fetch", lambda name: None)
    path = tmp_path / "bench.json"
    capture.main([64], peers=False, json_path=path)
    assert len(calls) == 4
    capture.main([64], peers=False, json_path=path)
    assert len(calls) == 4
    assert len(json.loads(path.read_text())["results"]) == 4
    path.write_text("{")
    with pytest.raises(HeadscopeError, match="does not hold measurements"):
        capture.main([64], peers=False, json_path=path)


def test_a_cell_measures_a_real_model(tmp_path, monkeypatch):
    from headscope.models.tiny import tiny

    tiny("llama").save_pretrained(tmp_path)
    job = {"bench": "capture", "variant": "headscope", "four": True, "length": 16, "runs": 1, "threads": 1}
    found = measure({**job, "source": str(tmp_path), "compare": True, "memory_limit": None})
    assert found["fits"]
    assert len(found["seconds"]) == len(found["sdpa"]) == 1
    assert found["check"]["received"] == pytest.approx(1, abs=1e-6)
