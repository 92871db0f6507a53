"""What "removing" a head means, in words and as edits of the model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from headscope.errors import HeadscopeError

if TYPE_CHECKING:
    from headscope.attention.edits import Edit
    from headscope.probes.tasks import Task

Ablation = Literal["zero", "mean", "resample", "mask"]
Head = tuple[int, int]

SEMANTICS: dict[str, str] = {
    "zero": "the head's output before the output projection is set to 0 at every position",
    "mean": "the head's output before the output projection is replaced at every position by its mean over "
    "positions of other samples of the task",
    "resample": "the head's output before the output projection is replaced at every position by its output at "
    "a random position of other samples of the task, drawn anew for each position",
    "mask": "the head's attention to the region is set to 0 at every query and the rest of the row renormalised; "
    "a row that sees nothing else keeps its attention",
}
"""What becomes of a removed head, in prefill and decode alike."""

REFERENCES = 8
POSITIONS = 128


@dataclass
class Removal:
    """Edits that remove heads while a task's samples are run.

    Parameters
    ----------
    model, task
        Where and on what.
    ablation
        One of ``SEMANTICS``.
    seed
        Of the positions drawn from reference samples, and of resampling.

    Reference outputs are those of at most ``REFERENCES`` samples of the task at ``POSITIONS`` positions each; a
    sample never serves as its own reference.
    """

    model: Any
    task: Task
    ablation: Ablation
    seed: int = 0
    _outputs: dict[Head, list[NDArray[np.float32]]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.ablation == "mask" and not self.task.regions:
            raise HeadscopeError(
                f"The task {self.task.name!r} names no region that mask ablation could hide. "
                "Use zero, mean or resample."
            )
        if self.ablation in ("mean", "resample") and len(self.task.samples) < 2:
            raise HeadscopeError(
                f"{self.ablation} ablation takes outputs of other samples, and the task {self.task.name!r} has one "
                "sample only. Give more samples, or use zero or mask."
            )

    @property
    def semantics(self) -> str:
        """What removal means here, as a sentence."""
        told = SEMANTICS[self.ablation]
        if self.ablation == "mask":
            told = told.replace("the region", f"the region {' and '.join(map(repr, self.task.regions))}")
        return f"{self.ablation} ablation: {told}."

    @property
    def references(self) -> list[int]:
        """Samples whose head outputs serve as reference, evenly spread over the task."""
        size = len(self.task.samples)
        spread = np.linspace(0, size - 1, min(size, REFERENCES)).round()
        return sorted({int(place) for place in spread})

    def prepare(self, heads: Iterable[Head]) -> None:
        """Collect the reference outputs of these heads, all at once, if the ablation needs any."""
        wanted = sorted(set(heads) - set(self._outputs))
        if self.ablation not in ("mean", "resample") or not wanted:
            return
        for sample in self.references:
            for head, rows in self._observe(sample, wanted).items():
                self._outputs.setdefault(head, []).append(rows)

    def edit(self, heads: Sequence[Head], sample: int) -> Edit:
        """Return the edit that removes ``heads`` while sample number ``sample`` is run."""
        from headscope.attention.edits import HeadEdit, KnockOut

        if self.ablation == "mask":
            return KnockOut(heads=tuple(heads), regions=self.task.regions)
        if self.ablation == "zero":
            return HeadEdit(heads=tuple(heads), mode="zero")
        self.prepare(heads)
        banks = {head: self._bank(head, sample) for head in heads}
        if self.ablation == "mean":
            means = {head: rows.mean(axis=0, dtype=np.float64) for head, rows in banks.items()}
            return HeadEdit(heads=tuple(heads), mode="mean", values=means)
        return HeadEdit(heads=tuple(heads), mode="resample", values=banks, seed=self.seed * 65_537 + sample)

    def _bank(self, head: Head, sample: int) -> NDArray[np.float32]:
        """Return outputs of a head (N, Dv) on the reference samples other than this one."""
        return np.concatenate(
            [rows for i, rows in zip(self.references, self._outputs[head], strict=True) if i != sample]
        )

    def _observe(self, sample: int, heads: Sequence[Head]) -> dict[Head, NDArray[np.float32]]:
        from headscope.attention.requests import HeadOutput

        prompt = self.task.prompt(self.model, self.task.samples[sample])
        rng = np.random.default_rng([self.seed, sample])
        positions = rng.choice(len(prompt), size=min(POSITIONS, len(prompt)), replace=False)
        layers = sorted({layer for layer, _ in heads})
        # One request per layer: heads of different layers may differ in width.
        requests = [
            HeadOutput(
                queries=tuple(sorted(positions.tolist())),
                heads=[head for head in heads if head[0] == layer],
                name=f"output{layer}",
            )
            for layer in layers
        ]
        run = self.model.run(prompt, requests, logits=False)
        found: dict[Head, NDArray[np.float32]] = {}
        for layer in layers:
            stat = run[f"output{layer}"].isel(batch=0).transpose("pair", "query", "dim")
            for head, rows in zip(stat.coords["head"].values.tolist(), stat.values, strict=True):
                found[layer, head] = np.asarray(rows, dtype=np.float32)
        return found
