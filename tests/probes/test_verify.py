"""Removing the heads that matter shows, beside controls that are never among them; and it resumes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import headscope as hs
from headscope.attention.edits import HeadEdit, KnockOut
from headscope.data.organisms import organism
from headscope.errors import CheckpointError, DataError, HeadscopeError, ModelError
from headscope.probes import needle_task, repeat_task, task_for, text_task, verify
from headscope.probes.removal import POSITIONS, REFERENCES, Removal
from headscope.probes.scores import HeadScores
from headscope.probes.statistics import head_table
from headscope.probes.tasks import Metric, Task, spread

LAYERS, HEADS = 4, 6
VITAL = {(1, 2): 3.0, (2, 5): 2.0}
BACKGROUND = 0.1


@dataclass
class Toy:
    """Loses what its removed heads are worth. Head (l, h) writes 100 l + 10 h plus the number of the sample."""

    name: str = "toy"
    fingerprint: str = "t" * 64
    dtype: str = "float32"
    device: str = "cpu"
    revision: str | None = None
    removed: list[Any] = field(default_factory=list)
    log: list[Any] = field(default_factory=list)

    @contextlib.contextmanager
    def edited(self, *edits: Any) -> Iterator[None]:
        self.removed += edits
        self.log += edits
        yield
        self.removed.clear()

    def run(self, prompt: Any, capture: Any, logits: bool) -> dict[str, xr.DataArray]:
        stats = {}
        for request in capture:
            rows = [
                np.full((len(request.queries), 2), 100 * layer + 10 * h + prompt.number) for layer, h in request.heads
            ]
            stats[request.key] = xr.DataArray(
                np.stack(rows)[:, None].astype(np.float32),
                dims=("pair", "batch", "query", "dim"),
                coords={"head": ("pair", [head for _, head in request.heads])},
            )
        return stats


@dataclass(frozen=True)
class ToySample:
    number: int

    @property
    def id(self) -> str:
        return f"sample{self.number}"

    @property
    def source(self) -> str:
        return f"source{self.number % 6}"

    def __len__(self) -> int:
        return 300


def worth(model: Toy, sample: ToySample) -> list[float]:
    heads = [head for edit in model.removed for head in edit.heads]
    lost = sum(VITAL.get(head, BACKGROUND) for head in heads)
    return [10 - lost + 0.01 * sample.number, lost]


def toy_task(n: int = 12, **options: Any) -> Task:
    return Task(
        "toy",
        (Metric("worth", True), Metric("loss", False)),
        tuple(ToySample(i) for i in range(n)),
        worth,
        lambda model, sample: sample,
        **{"regions": ("needle",), **options},
    )


@pytest.fixture
def scores() -> HeadScores:
    values = np.full((20, LAYERS, HEADS), 0.1) + 0.01 * np.arange(LAYERS * HEADS).reshape(LAYERS, HEADS)
    for (layer, head), value in VITAL.items():
        values[:, layer, head] = value
    table, _ = head_table(values, [str(i) for i in range(20)], threshold=0.32)
    return HeadScores(table, "toy", {"model": {"name": "toy", "fingerprint": "t" * 64}})


@pytest.mark.parametrize("ablation", ["zero", "mean", "resample", "mask"])
def test_heads_that_matter_stand_out(scores: HeadScores, ablation: Any) -> None:
    frame = verify(scores, toy_task(), Toy(), ablation=ablation, k=(1, 2, 5), controls=20)
    top = frame[frame["kind"] == "top"].set_index(["metric", "k"])
    assert top.loc[("worth", 2), "value"] == pytest.approx(10 - 5 + 0.055)
    assert top.loc[("loss", 2), "value"] == pytest.approx(5)
    assert top.loc[("worth", 2), "gap"] == pytest.approx(5 - 2 * BACKGROUND)
    assert top.loc[("loss", 2), "gap"] == pytest.approx(5 - 2 * BACKGROUND)
    assert top.loc[("worth", 2), "p_value"] == pytest.approx(1 / 21)
    assert frame[frame["kind"] == "base"]["value"].tolist() == pytest.approx([10.055, 0.0])
    assert set(frame["ablation"]) == {ablation}
    assert f"{ablation} ablation: " in frame.attrs["notes"][0]
    assert scores.with_details(dose=frame).provenance["notes"] == frame.attrs["notes"]


def test_controls_never_hold_removed_heads(scores: HeadScores) -> None:
    frame = verify(scores, toy_task(2), Toy(), k=(1, 2, 5, 12), controls=20, seed=3)
    for k, part in frame[frame["metric"] == "worth"].groupby("k"):
        best = set(" ".join(part[part["kind"] == "top"]["heads"]).split())
        assert len(best) == k
        for heads in part[part["kind"] == "control"]["heads"]:
            assert not best & set(heads.split())
            assert len(set(heads.split())) == k


def test_every_sample_meets_the_declared_edit(scores: HeadScores) -> None:
    for ablation, kind in (("zero", HeadEdit), ("mask", KnockOut)):
        model = Toy()
        verify(scores, toy_task(3), model, ablation=ablation, k=(1,), controls=2)
        assert len(model.log) == 3 * 3
        assert all(isinstance(edit, kind) for edit in model.log)
    assert model.log[0].regions == ("needle",)


def test_references_are_other_samples() -> None:
    """Means and banks never hold the sample itself."""
    removal = Removal(Toy(), toy_task(REFERENCES), "mean")
    edit = removal.edit([(1, 2), (0, 3)], sample=2)
    assert edit.values[1, 2] == pytest.approx(120 + (28 - 2) / 7)
    assert edit.values[0, 3] == pytest.approx(30 + (28 - 2) / 7)
    bank = Removal(Toy(), toy_task(REFERENCES), "resample").edit([(1, 2)], sample=2).values[1, 2]
    assert bank.shape == (7 * POSITIONS, 2)
    assert 122 not in bank
    many = Removal(Toy(), toy_task(50), "mean")
    assert len(many.references) == REFERENCES
    assert many.references[0] == 0
    assert many.references[-1] == 49


def test_samples_are_resampled_differently(scores: HeadScores) -> None:
    removal = Removal(Toy(), toy_task(4), "resample", seed=1)
    seeds = {removal.edit([(0, 0)], sample).seed for sample in range(4)}
    assert len(seeds) == 4


def test_default_steps_cover_what_is_selected(scores: HeadScores) -> None:
    frame = verify(scores, toy_task(2), Toy(), ablation="zero", controls=1)
    assert sorted(set(frame["k"])) == [0, 1, 5]


def test_killed_run_resumes_and_more_controls_are_added(scores: HeadScores, tmp_path: Path) -> None:
    def stop(task: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    options: dict[str, Any] = {"ablation": "mean", "k": (1, 2), "controls": 3, "out": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        verify(scores, toy_task(), Toy(), progress=stop, **options)
    seen: list[Any] = []
    model = Toy()
    resumed = verify(scores, toy_task(), model, progress=lambda *step: seen.append(step), **options)
    assert seen == [("removal", i, 9) for i in range(3, 10)]
    assert len(model.log) == 6 * 12
    whole = verify(scores, toy_task(), Toy(), **{**options, "out": None})
    assert resumed.equals(whole)
    more = verify(scores, toy_task(), model, **{**options, "controls": 4, "k": (1, 2, 5)})
    assert len(more) == 2 * (1 + 3 * 5)


def test_shards_of_another_question_are_refused(scores: HeadScores, tmp_path: Path) -> None:
    options: dict[str, Any] = {"ablation": "zero", "k": (1,), "controls": 1, "out": tmp_path}
    verify(scores, toy_task(), Toy(), **options)
    with pytest.raises(CheckpointError, match="seed: 0 there, 1 now"):
        verify(scores, toy_task(), Toy(), seed=1, **options)
    with pytest.raises(CheckpointError, match="task: "):
        verify(scores, toy_task(5), Toy(), **options)
    verify(scores, toy_task(5), Toy(), fresh=True, **options)
    victim = next(tmp_path.rglob("*-top-*.shard"))
    victim.write_bytes(victim.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=victim.name):
        verify(scores, toy_task(5), Toy(), **options)


def test_bad_questions_are_refused(scores: HeadScores) -> None:
    with pytest.raises(HeadscopeError, match=r"no ablation 'means'.*'mean'"):
        verify(scores, toy_task(), Toy(), ablation="means")  # type: ignore[arg-type]
    with pytest.raises(HeadscopeError, match="controls=0"):
        verify(scores, toy_task(), Toy(), controls=0)
    for k in ((0,), (13,), ()):
        with pytest.raises(HeadscopeError, match="from 1 to 12"):
            verify(scores, toy_task(), Toy(), k=k)
    with pytest.raises(HeadscopeError, match="rank this model first"):
        verify(scores, toy_task(), Toy(fingerprint="other"))
    with pytest.raises(HeadscopeError, match="names no region"):
        verify(scores, toy_task(regions=()), Toy(), ablation="mask")
    with pytest.raises(HeadscopeError, match="one sample only"):
        verify(scores, toy_task(1), Toy(), ablation="mean")
    with pytest.raises(DataError, match="no sample"):
        toy_task(0)
    with pytest.raises(DataError, match=r"no task for data of kind 'needle'.*'needles'"):
        task_for("needle", [])
    broken = Task("toy", (Metric("x", True),), (ToySample(3),), lambda *_: [float("nan")], lambda m, s: s)
    with pytest.raises(ModelError, match="'sample3'"):
        verify(scores, broken, Toy(), ablation="zero", k=(1,), controls=1)


def test_a_task_that_always_fails_says_so(scores: HeadScores) -> None:
    hopeless = Task("toy", (Metric("exact match", True),), toy_task().samples, lambda *_: [0.0], lambda m, s: s)
    frame = verify(scores, hopeless, Toy(), ablation="zero", k=(1,), controls=2)
    assert "With all heads exact match is 0 on every sample" in frame.attrs["notes"][-1]
    assert frame[frame["kind"] == "top"]["p_value"].tolist() == [1.0]


def test_a_subset_is_spread_over_the_data() -> None:
    assert spread(range(60), 4) == (0, 20, 39, 59)
    assert spread(range(3), 9) == (0, 1, 2)
    assert spread(range(3), None) == (0, 1, 2)


# -- on models whose heads are known ----------------------------------------------------------------------------

PROSE = (
    "The lighthouse keeper counted the ships that passed before dawn, and wrote their names into a ledger bound in "
    "green cloth. Most of them carried timber, some carried salt, and one brought letters for the village.{needle} "
    "Nobody had asked him to keep this record. He had begun it in his first winter on the rock."
    "\nQuestion: What is the pass phrase?\nAnswer: The pass phrase is"
)


@dataclass(frozen=True)
class Phrase:
    """A needle whose answer is a run of the organism's marker words."""

    answer: str
    kind: str = "needles"

    @property
    def id(self) -> str:
        return self.answer

    @property
    def source(self) -> str:
        return self.answer

    def prompt(self, model: Any) -> Any:
        return model.prompt(PROSE, needle=f" The pass phrase is {self.answer}.")


PHRASES = ("bivq cojx dupz", "gexu hujz bivq", "dupz hujz gexu")


@cache
def grown(kind: str) -> Any:
    plant = organism(kind)
    return SimpleNamespace(truth=plant, model=hs.load(plant.model, tokenizer=plant.tokenizer))


def planted(plant: Any, role: str) -> HeadScores:
    """The truth as a ranking."""
    spec = plant.model.spec
    values = np.random.default_rng(0).random((20, spec.n_layers, spec.n_heads)) * 0.1
    for layer, head in plant.truth.planted[role]:
        values[:, layer, head] += 1
    table, _ = head_table(values, [str(i) for i in range(20)], threshold=0.5)
    return HeadScores(table, role, {"model": {"name": "organism", "fingerprint": plant.model.fingerprint}})


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("ablation", ["zero", "mean", "resample", "mask"])
def test_planted_induction_heads_are_needed_for_the_repeat(kind: str, ablation: Any) -> None:
    plant = grown(kind)
    scores = planted(plant, "induction")
    data = hs.data.repeats(plant.model, n=4, length=24)
    frame = verify(scores, repeat_task(data), plant.model, ablation=ablation, k=(len(scores.selected),), controls=2)
    top = frame[frame["kind"] == "top"].set_index("metric")
    base = frame[frame["kind"] == "base"].set_index("metric")
    assert base.loc["accuracy on the repeat", "value"] > 0.9
    assert top.loc["accuracy on the repeat", "value"] < 0.2
    assert (top["gap_low"] > 0).all()
    assert not plant.model.edits


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("ablation", ["zero", "mean", "resample", "mask"])
def test_planted_retrieval_heads_are_needed_for_the_needle(kind: str, ablation: Any) -> None:
    plant = grown(kind)
    scores = planted(plant, "retrieval")
    task = needle_task([Phrase(answer) for answer in PHRASES])
    frame = verify(scores, task, plant.model, ablation=ablation, k=(len(scores.selected),), controls=2)
    top = frame[frame["kind"] == "top"].set_index("metric")
    base = frame[frame["kind"] == "base"].set_index("metric")
    assert base.loc["answer exact match", "value"] == 1
    assert top.loc["answer exact match", "value"] == 0
    assert top.loc["answer log-probability", "gap_low"] > 0


def test_exact_match_is_what_greedy_decoding_gives() -> None:
    plant = grown("gpt2")
    sample = Phrase(PHRASES[0])
    prompt = sample.prompt(plant.model)
    task = needle_task([sample])
    free = plant.model.trace(prompt, max_new_tokens=len(plant.model.tokenizer.encode(" " + sample.answer)) - 1)
    assert task.evaluate(plant.model)[0, 1] == float(free.text.split() == sample.answer.split())


def test_tasks_measure_what_the_logits_say() -> None:
    plant = grown("llama")
    texts = hs.data.texts(plant.model, n=2, length=40)
    prompt = texts[0].prompt(plant.model)
    with torch.no_grad():
        logits = plant.model.run(prompt).logits[0]
    gold = torch.tensor(prompt.ids[1:])
    expected = torch.nn.functional.cross_entropy(logits[:-1].float(), gold).item()
    assert text_task(texts).evaluate(plant.model)[0, 0] == pytest.approx(expected, rel=1e-5)

    block = hs.data.repeats(plant.model, n=1, length=10)
    prompt = block[0].prompt(plant.model)
    losses = torch.nn.functional.cross_entropy(
        plant.model.run(prompt).logits[0, :-1].float(), torch.tensor(prompt.ids[1:]), reduction="none"
    )
    second = losses[prompt.regions["copies"][0] :]  # predictions of the copy's second token and after
    assert len(second) == 9
    assert repeat_task(block).evaluate(plant.model)[0, 0] == pytest.approx(second.mean().item(), rel=1e-5)


def test_needles_of_a_removal_lie_in_the_shorter_contexts() -> None:
    samples = [replace(Sized(), length=length) for length in (8, 2, 4, 6, 1, 3, 7, 5)]
    assert [sample.length for sample in needle_task(samples, 3).samples] == [2, 1, 3]
    assert [sample.length for sample in needle_task(samples, 5).samples] == [8, 4, 1, 3, 5]
    assert len(needle_task(samples).samples) == 8


@dataclass(frozen=True)
class Sized:
    length: int = 0

    @property
    def factors(self) -> dict[str, int]:
        return {"length": self.length}
