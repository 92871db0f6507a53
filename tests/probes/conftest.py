"""A model, data and a probe that need no transformer: what the protocol promises can be tested in milliseconds."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from headscope.attention.requests import Entropy, Mass, Request
from headscope.probes.base import Context, Observation, Probe, SampleMeta
from headscope.probes.scores import HeadScores
from headscope.probes.statistics import head_table


@dataclass
class FakeModel:
    """Answers a request with numbers that depend on the sample alone."""

    layers: int = 3
    heads: int = 4
    fingerprint: str = "f" * 64
    dtype: str = "float32"
    runs: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    nan_on: str | None = None
    logits_nan_on: str | None = None
    name: str = "fake"
    source: str = "nowhere"
    revision: str | None = None
    device: str = "cpu"

    @property
    def spec(self) -> Any:
        return SimpleNamespace(family="fake", n_layers=self.layers, n_heads=self.heads)


@dataclass(frozen=True)
class FakeRun:
    stats: dict[str, np.ndarray]
    logits: Any = None

    def __getitem__(self, key: str) -> np.ndarray:
        return self.stats[key]


@dataclass(frozen=True)
class FakeSample:
    id: str
    source: str
    kind: str = "fakes"
    factors: dict[str, Any] = field(default_factory=dict)

    def forward(self, model: FakeModel, capture: list[Request]) -> FakeRun:
        model.runs.append((self.id, tuple(request.key for request in capture)))
        stats = {}
        for request in capture:
            seed = int.from_bytes(hashlib.sha256(f"{self.id}/{request.key}".encode()).digest()[:4], "little")
            values = np.random.default_rng(seed).random((model.layers, model.heads))
            values[1, 2] += 1
            stats[request.key] = np.full_like(values, np.nan) if model.nan_on == self.id else values
        logits = torch.zeros(2, 5)
        logits[0, 3] = -torch.inf
        if model.logits_nan_on == self.id:
            logits[1, 1] = torch.nan
        return FakeRun(stats, logits)


@dataclass(frozen=True)
class FakeData:
    samples: tuple[FakeSample, ...]
    name: str = "fakes"
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        return hashlib.sha256(repr(self.samples).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> FakeSample:
        return self.samples[index]


@dataclass(frozen=True)
class MassProbe(Probe):
    name: ClassVar[str] = "mass-probe"
    data: ClassVar[str] = "fakes"
    threshold: float = 0.9

    def requests(self, spec: Any) -> list[Request]:
        return [Mass(["bos"])]

    def observe(self, run: Any, sample: Any) -> Observation:
        return {"mass": run["mass"].astype(np.float32), "n": np.array(3), "token": np.array(["é", "bc"])}

    def summarise(self, observations: list[tuple[SampleMeta, Observation]], context: Context) -> HeadScores:
        values = np.stack([seen["mass"] for _, seen in observations])
        null = values[:, ::-1, ::-1]
        table, notes = head_table(
            values, [meta.source for meta, _ in observations], null=null, threshold=self.threshold, seed=context.seed
        )
        assert [str(t) for t in observations[0][1]["token"]] == ["é", "bc"]
        return context.scores(self, table, notes=notes)


@dataclass(frozen=True)
class BothProbe(MassProbe):
    name: ClassVar[str] = "both-probe"

    def requests(self, spec: Any) -> list[Request]:
        return [Mass(["bos"]), Entropy()]

    def observe(self, run: Any, sample: Any) -> Observation:
        return {**super().observe(run, sample), "entropy": run["entropy"]}


@dataclass(frozen=True)
class ClashingProbe(MassProbe):
    name: ClassVar[str] = "clashing-probe"

    def requests(self, spec: Any) -> list[Request]:
        return [Mass(["needle"])]


@pytest.fixture
def fakes() -> SimpleNamespace:
    return SimpleNamespace(
        Model=FakeModel,
        Sample=FakeSample,
        Data=FakeData,
        Mass=MassProbe,
        Both=BothProbe,
        Clashing=ClashingProbe,
        data=lambda n=8, sources=4, **options: FakeData(
            tuple(FakeSample(f"s{i}", f"source{i % sources}", factors={"length": i}) for i in range(n)), **options
        ),
    )
