"""The five claims about retrieval heads, and its two consequences, each answered from the numbers.

Wu et al. 2024, "Retrieval Head Mechanistically Explains Long-Context Factuality": retrieval heads are universal,
sparse, intrinsic, dynamically activated and causal; removing them hurts chain of thought, and intrinsic knowledge
less. An answer says: same direction, different, inconclusive, or not testable and why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headscope.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from headscope.probes.base import Progress
    from headscope.probes.removal import Ablation
    from headscope.probes.scores import HeadScores

SAME, DIFFERENT, OPEN, UNTESTED = "same direction", "different", "inconclusive", "not testable"
SPARSE = 0.05
"""Published upper bound of the share of retrieval heads."""
LEAST_SHARE = 0.05


@dataclass(frozen=True)
class Removal:
    """What removing heads did to one metric under one ablation.

    Attributes
    ----------
    k
        Heads removed.
    base, top, controls
        Value with all heads, without the best k, and without k control heads.
    gap
        Damage beyond the mean control's, in units of the metric, positive when there is more.
    p
        Share of controls that do at least as much damage, with +1.
    """

    metric: str
    ablation: str
    k: int
    base: float
    top: float
    controls: tuple[float, ...]
    gap: float
    p: float

    @property
    def is_share(self) -> bool:
        """Whether the metric is a share of right answers."""
        return "match" in self.metric or "accuracy" in self.metric

    @property
    def usable(self) -> bool:
        """Whether there is anything to lose: a share of right answers near 0 cannot fall."""
        return not self.is_share or self.base > LEAST_SHARE

    def __str__(self) -> str:
        return (
            f"{self.metric}: {self.base:.3g} with all heads, {self.top:.3g} without the top {self.k}, "
            f"{np.mean(self.controls):.3g} without {self.k} controls ({min(self.controls):.3g} to "
            f"{max(self.controls):.3g} over {len(self.controls)}; {self.ablation} ablation, p = {self.p:.2g})"
        )


def removals(dose: pd.DataFrame | None, selected: int) -> list[Removal]:
    """Read the table of ``verify``: for each metric and ablation one k, the least that covers the selected heads.

    Raises
    ------
    DataError
        If it is not such a table.
    """
    if dose is None or dose.empty:
        return []
    missing = {"k", "kind", "value", "metric", "ablation", "gap", "p_value"} - set(dose.columns)
    if missing:
        raise DataError(f"The removal table lacks {', '.join(sorted(missing))}: use the table that verify() returns.")
    found = []
    for (metric, ablation), part in dose.groupby(["metric", "ablation"], sort=False):
        values = {kind: part[part["kind"] == kind] for kind in ("base", "top", "control")}
        steps = sorted(set(values["top"]["k"]) & set(values["control"]["k"]))
        if not steps or values["base"].empty:
            continue
        k = next((step for step in steps if step >= selected), steps[-1])
        top = values["top"].loc[values["top"]["k"] == k].iloc[0]
        controls = values["control"].loc[values["control"]["k"] == k, "value"]
        found.append(
            Removal(
                metric=str(metric),
                ablation=str(ablation),
                k=int(k),
                base=float(values["base"]["value"].iloc[0]),
                top=float(top["value"]),
                controls=tuple(float(value) for value in controls),
                gap=float(top["gap"]),
                p=float(top["p_value"]),
            )
        )
    return found


def retrieval_claims(
    scores: HeadScores,
    dose: pd.DataFrame | None = None,
    *,
    knowledge: pd.DataFrame | None = None,
    reasoning: pd.DataFrame | None = None,
    others: Sequence[HeadScores] = (),
    extended: HeadScores | None = None,
) -> pd.DataFrame:
    """Answer the published claims about retrieval heads from this model's scores.

    Parameters
    ----------
    scores
        Of ``RetrievalHeads``.
    dose
        Table of ``verify`` on retrieval; by default ``scores.details["dose"]``.
    knowledge, reasoning
        Tables of ``verify`` for the same heads on a task of intrinsic knowledge and on one of chain of thought.
    others
        Retrieval scores of other models, for universality.
    extended
        Retrieval scores of a model trained on from this one (longer context, chat), for intrinsic.

    Returns
    -------
    Columns claim, answer, evidence, verdict.
    """
    import pandas as pd

    dose = scores.details.get("dose") if dose is None else dose
    scored, selected = int(scores.table["n"].max()), len(scores.selected)
    makers: list[tuple[str, Callable[[], tuple[str, str, str]]]] = [
        ("Universal: every model that can use long context has retrieval heads.", lambda: _universal(scores, others)),
        ("Sparse: less than 5 % of the heads are retrieval heads.", lambda: _sparse(scores)),
        ("Intrinsic: they are there before a model is trained on.", lambda: _intrinsic(scores, extended)),
        ("Dynamic: the same few are always active, the rest by context.", lambda: _dynamic(scores)),
        ("Causal: removing them breaks retrieval; removing random heads does not.", lambda: _causal(dose, selected)),
        ("Consequence: chain of thought depends on them.", lambda: _reasoning(reasoning, selected)),
        ("Consequence: intrinsic knowledge depends on them less.", lambda: _knowledge(dose, knowledge, selected)),
    ]
    rows = []
    for claim, make in makers:
        if scored == 0:
            verdict, answer, evidence = UNTESTED, "The model answered no question, so no head has a score.", "0 trials"
        else:
            verdict, answer, evidence = make()
        rows.append({"claim": claim, "answer": answer, "evidence": evidence, "verdict": verdict})
    return pd.DataFrame(rows)


def _share(scores: HeadScores) -> str:
    return f"{len(scores.selected)} of {len(scores)} heads ({len(scores.selected) / len(scores):.1%})"


def _universal(scores: HeadScores, others: Sequence[HeadScores]) -> tuple[str, str, str]:
    everyone = [scores, *others]
    evidence = "; ".join(f"{s.provenance.get('model', {}).get('name', 'model')}: {_share(s)}" for s in everyone)
    without = sum(not s.selected for s in everyone)
    if without:
        return DIFFERENT, f"{without} of {len(everyone)} models have none above threshold and null.", evidence
    if not others:
        return UNTESTED, "This model has retrieval heads; one model cannot show that every model has.", evidence
    return SAME, f"All {len(everyone)} models have retrieval heads.", evidence


def _sparse(scores: HeadScores) -> tuple[str, str, str]:
    share = len(scores.selected) / len(scores)
    above = scores.table[scores.table["selected"]]
    sure = int((above["ci_low"] > scores.provenance.get("parameters", {}).get("threshold", 0.1)).sum())
    evidence = f"{_share(scores)}; for {sure} of them the whole 95 % interval lies above the threshold"
    if not share:
        return OPEN, "No head passes threshold and null.", evidence
    few = len(scores) * SPARSE < 1
    if few:
        return UNTESTED, f"{len(scores)} heads are too few: a single one is more than 5 %.", evidence
    return (
        (SAME, "Retrieval heads are few.", evidence)
        if share < SPARSE
        else (
            DIFFERENT,
            "More heads pass than published.",
            evidence,
        )
    )


def _intrinsic(scores: HeadScores, extended: HeadScores | None) -> tuple[str, str, str]:
    if extended is None:
        return (
            UNTESTED,
            "Needs a second model trained on from this one: pass extended=, its retrieval scores.",
            "one model",
        )
    ours, theirs = set(scores.selected), set(extended.selected)
    if scores.shape != extended.shape or not ours or not theirs:
        return UNTESTED, "The two models have no heads to match.", f"{scores.shape} and {extended.shape}"
    shared, chance = len(ours & theirs), len(ours) * len(theirs) / len(scores)
    # Hypergeometric tail: how often random sets of these sizes share as many.
    from scipy import stats

    p = float(stats.hypergeom.sf(shared - 1, len(scores), len(ours), len(theirs)))
    evidence = f"{shared} shared of {len(ours)} and {len(theirs)}; chance {chance:.2g}, p = {p:.2g}"
    if p < 0.05:
        return SAME, "The trained-on model uses the same heads.", evidence
    return DIFFERENT, "The trained-on model uses other heads.", evidence


def _dynamic(scores: HeadScores) -> tuple[str, str, str]:
    activation = scores.details.get("activation")
    if activation is None or activation.empty:
        return UNTESTED, "There is no activation by context.", "no context counted"
    chosen = activation[activation["selected"]]
    contexts = int(activation["contexts"].max())
    always, rest = int((chosen["kind"] == "always").sum()), int((chosen["kind"] != "always").sum())
    evidence = f"{always} always active, {rest} by context, over {contexts} contexts"
    if len(chosen):
        evidence += f"; active shares {chosen['active'].min():.0%} to {chosen['active'].max():.0%}"
    if contexts < 10 or not len(chosen):
        return UNTESTED, "Too few contexts or heads to tell.", evidence
    if always and rest:
        return SAME, "Some retrieve in nearly every context, others in some.", evidence
    missing = "No head retrieves in nearly every context." if not always else "All retrieve in nearly every context."
    return DIFFERENT, missing, evidence


def _causal(dose: pd.DataFrame | None, selected: int) -> tuple[str, str, str]:
    found = removals(dose, selected)
    if not found:
        return UNTESTED, "Heads were not removed: run verify().", "no removal"
    evidence = "; ".join(map(str, found))
    usable = [one for one in found if one.usable]
    if not usable:
        return UNTESTED, "The model hardly succeeds with all its heads: there is nothing to break.", evidence
    if min(len(one.controls) for one in usable) < 19:
        return UNTESTED, "Too few controls for a test at 5 %: use controls=19 or more.", evidence
    hurt = [one for one in usable if one.p <= 0.05 and one.gap > 0]
    if len(hurt) == len(usable):
        return SAME, "Removing them does more damage than every matched control or all but few.", evidence
    if hurt:
        return OPEN, f"It shows in {len(hurt)} of {len(usable)} combinations of metric and ablation.", evidence
    if all(one.gap <= 0 for one in usable):
        return DIFFERENT, "Removing them does no more damage than removing controls.", evidence
    return OPEN, "They do more damage than the mean control, but within the range of the controls.", evidence


def _reasoning(reasoning: pd.DataFrame | None, selected: int) -> tuple[str, str, str]:
    if not removals(reasoning, selected):
        return (
            UNTESTED,
            "Needs a model that solves multi-step problems by chain of thought and fails them without; base models "
            "of some hundred million parameters do neither. Pass reasoning=, a table of verify() on such a task.",
            "not measured",
        )
    return _causal(reasoning, selected)


def _knowledge(dose: pd.DataFrame | None, knowledge: pd.DataFrame | None, selected: int) -> tuple[str, str, str]:
    known = {(one.metric, one.ablation, one.k): one for one in removals(knowledge, selected)}
    pairs = [
        (one, known[key])
        for one in removals(dose, selected)
        if (key := (one.metric, one.ablation, one.k)) in known and one.usable and known[key].usable
    ]
    if not pairs:
        return UNTESTED, "Needs verify() on retrieval and on knowledge_task(), with one ablation and k.", "not measured"
    evidence = "; ".join(f"retrieval {task}; knowledge {facts}" for task, facts in pairs)
    task, facts = max(pairs, key=lambda pair: pair[0].is_share)
    if task.gap <= 0:
        return OPEN, "Retrieval itself is not hurt beyond controls, so there is nothing to compare.", evidence
    unit = "of the base value" if task.is_share else "nats per token"
    lost = [one.gap / one.base if one.is_share else one.gap for one in (task, facts)]
    said = f"Beyond controls, retrieval loses {lost[0]:.2g} and knowledge {lost[1]:.2g} {unit}."
    return (SAME if lost[1] < lost[0] else DIFFERENT), said, evidence


def with_claims(
    scores: HeadScores,
    model: Any,
    *,
    ablation: Ablation = "mean",
    controls: int = 20,
    seed: int = 0,
    progress: Progress | None = None,
    out: str | Path | None = None,
    **related: Any,
) -> HeadScores:
    """Measure knowledge under the removal of the heads that ``scores.details["dose"]`` removed, and answer the claims.

    Costs controls + 2 evaluations of two dozen short prompts. ``related`` goes on to ``retrieval_claims``.

    Returns
    -------
    The scores with ``details["claims"]``, and ``details["knowledge"]`` where it was measured.
    """
    from headscope.probes.knowledge import knowledge_task
    from headscope.probes.verify import verify

    dose = scores.details.get("dose")
    used = removals(dose, len(scores.selected))
    details: dict[str, pd.DataFrame] = {}
    if used and model.tokenizer is not None:
        details["knowledge"] = verify(
            scores,
            knowledge_task(),
            model,
            ablation=ablation,
            k=[used[0].k],
            controls=controls,
            seed=seed,
            progress=progress,
            out=out,
        )
    claims = retrieval_claims(scores, dose, knowledge=details.get("knowledge"), **related)
    return scores.with_details(**details, claims=claims)
