"""A ranking from its settings to its files: what the command line and the application both do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.commands.results import write

if TYPE_CHECKING:
    from headscope.probes.base import DataSet, Probe, Progress
    from headscope.probes.scores import HeadScores

    Phase = Callable[[str, bool], AbstractContextManager[Progress]]
    """Begins a part of the work: what it is, and whether it counts its steps. Yields what hears of them."""


@dataclass(frozen=True)
class Plan:
    """Everything that a ranking depends on beside the model. What is None is left to the data's own defaults.

    Parameters
    ----------
    probes
        Names of probes.
    n
        Samples of each kind.
    lengths
        Retrieval contexts, in tokens.
    length
        Tokens of a text or block.
    haystack
        Folder of text to hide needles in.
    teacher
        Whether to feed the true answers.
    seed
        Of data, bootstrap and controls.
    verify
        Whether to remove the best heads and measure.
    ablation, controls, k, trials
        Of the removal: what becomes of a head, how many control sets, how many heads, on how many samples.
    """

    probes: tuple[str, ...]
    n: int | None = None
    lengths: tuple[int, ...] | None = None
    length: int | None = None
    haystack: Path | None = None
    teacher: bool = False
    seed: int = 0
    verify: bool = True
    ablation: str = "mean"
    controls: int = 20
    k: tuple[int, ...] | None = None
    trials: int = 8

    def found(self) -> list[Probe]:
        """Return the probes.

        Raises
        ------
        HeadscopeError
            If there is none of a name.
        """
        from headscope.probes import find

        chosen = list({probe.name: probe for probe in map(find, self.probes)}.values())
        if self.teacher:
            chosen = [find(probe.name, teacher=True) if probe.name == "retrieval" else probe for probe in chosen]
        return chosen

    def data(self, model: Any) -> dict[str, DataSet]:
        """Make the data that the probes ask for."""
        from headscope import data

        own: dict[str, dict[str, Any]] = {
            "needles": {"lengths": self.lengths, "haystack": self.haystack},
            "texts": {"length": self.length},
            "repeats": {"length": self.length},
        }
        made: dict[str, DataSet] = {}
        for kind in dict.fromkeys(probe.data for probe in self.found()):
            options = {"n": self.n, **own[kind]}
            given = {key: value for key, value in options.items() if value is not None}
            made[kind] = getattr(data, kind)(model, seed=self.seed, **given)
        if self.teacher and "needles" in made:
            from headscope.probes import TeacherForced

            made["needles"] = TeacherForced(made["needles"])
        return made


def carry_out(
    plan: Plan, model: Any, folder: Path, phase: Phase, *, fresh: bool = False
) -> tuple[dict[str, HeadScores], dict[str, Path]]:
    """Rank, remove, and write tables and a report into ``folder``; goes on where an earlier run of it stopped.

    Parameters
    ----------
    phase
        What shows the progress of each part.
    fresh
        Discard what an earlier run in this folder finished.

    Returns
    -------
    Scores by probe, and the files by probe and ``"report"``.

    Raises
    ------
    CheckpointError
        If the folder belongs to another run, or one of its shards is damaged.
    HeadscopeError
        If a probe is unknown, or the data or the model do not fit.
    """
    from headscope.probes import rank_all

    chosen = plan.found()
    with phase("Making data", False):
        data = plan.data(model)
    if fresh:
        shutil.rmtree(folder / "removal", ignore_errors=True)
    with phase("Ranking", True) as advance:
        scores = rank_all(chosen, model, data, out=folder, progress=advance, fresh=fresh, seed=plan.seed)
    for probe in chosen:
        found = scores[probe.name]
        if plan.verify:
            with phase(f"Removing {probe.name} heads", True) as advance:
                found = removed(
                    found,
                    model,
                    data[probe.data],
                    plan.trials,
                    ablation=plan.ablation,
                    k=plan.k,
                    controls=plan.controls,
                    seed=plan.seed,
                    # Another number of trials is another measurement; it must not cost the finished ranking.
                    out=folder / "removal" / f"{plan.trials}-trials",
                    progress=advance,
                )
        with phase("Reading examples", False):
            scores[probe.name] = explained(found, model, data[probe.data])
    return scores, write(scores, folder)


def removed(scores: HeadScores, model: Any, data: DataSet, trials: int, **options: Any) -> HeadScores:
    """Add what removing the best heads does to the task that goes with the data and, for retrieval, to knowledge."""
    from headscope.probes import task_for, verify, with_claims

    if scores.table["score"].notna().sum() < 2:
        return scores  # no trial counted, as the notes say: there is no ranking to test
    kind = data[0].kind
    scores = scores.with_details(dose=verify(scores, task_for(kind, data, trials), model, **options))
    if scores.probe != "retrieval":
        return scores
    return with_claims(scores, model, **{name: options[name] for name in options if name != "k"})


def explained(scores: HeadScores, model: Any, data: DataSet) -> HeadScores:
    """Add attention rows of the best heads on real samples and, for retrieval, answers to the published claims."""
    from headscope.probes import explain, retrieval_claims

    scores = scores.with_details(samples=explain(model, scores, data))
    if scores.probe == "retrieval" and "claims" not in scores.details:
        scores = scores.with_details(claims=retrieval_claims(scores))
    return scores
