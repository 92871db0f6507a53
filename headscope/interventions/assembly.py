"""From measurements to an evaluation: rows, what they say, and what limits them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from headscope.files import sha256_text
from headscope.interventions import findings, summary
from headscope.interventions.evaluation import Evaluation
from headscope.interventions.summary import MEASURES, Gain, Judged

if TYPE_CHECKING:
    from headscope.interventions.drift import Neutral
    from headscope.interventions.measurements import Measurements
    from headscope.interventions.variants import Variant

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What an evaluation runs.

    Parameters
    ----------
    base, methods, neutral, controls
        The variants; neutral strengths and controls by the method's name, controls with a note on them.
    wanted, subset
        Controls asked for, and the places of the items that they are measured on.
    generate, write_controls
        Who writes answers.
    texts, why
        Neutral texts, or why there are none; empty both where drift is not asked for.
    seed, created
        Of controls, bootstrap and texts; and when the run began.
    """

    base: Variant
    methods: Sequence[Variant]
    neutral: Mapping[str, Variant | None]
    controls: Mapping[str, tuple[list[Variant], str]]
    wanted: int
    subset: tuple[int, ...]
    generate: bool
    write_controls: bool
    texts: Sequence[Neutral]
    why: str
    seed: int
    created: str

    def rows(self) -> list[Variant]:
        """Return what has a row: the base, then each method and its neutral strength."""
        pairs = [(method, self.neutral[method.name]) for method in self.methods]
        return [self.base, *(variant for pair in pairs for variant in pair if variant is not None)]


_LABELS = ["method", "label", "gold", "constrained", "written", "constrained_recall", "written_recall"]
_CONTROLS = ["method", "replicate", "what", *MEASURES, *(f"{name}_gain" for name in MEASURES)]
_FIRST = ["method", "kind", "n", *MEASURES[:4], "constrained_baseline"]
_SHIFTS = ("prior_constrained_gold", "prior_constrained_base", "prior_written_gold", "prior_written_base")
_DRIFT = ("perplexity", "perplexity_ratio", "drift", "drift_low", "drift_high")


def assemble(model: Any, task: Any, measured: Measurements, part: Measurements, plan: Plan) -> Evaluation:
    """Turn measurements, those of controls in ``part``, into an evaluation; see ``evaluate``."""
    judge = _Judge(model, task, measured, part, plan)
    rows: list[dict[str, Any]] = []
    items: list[dict[str, Any]] = []
    labels: list[dict[str, Any]] = []
    controls: list[dict[str, Any]] = []
    said: list[str] = []
    aside: list[str] = []
    for variant in plan.rows():
        found = judge.judged(variant, plan.generate)
        gains = summary.gains(found, judge.base, judge.sources, plan.seed)
        change = judge.drift(variant)
        row = {"method": variant.title, "kind": variant.kind, "n": len(judge.sources)}
        row |= judge.row(found, gains, variant.kind, change)
        if variant.kind == "method":
            drawn, _ = plan.controls[variant.name]
            others = [judge.control(control) for control in drawn]
            controls += [judge.control_row(control, other) for control, other in zip(drawn, others, strict=True)]
            row |= judge.against(found, others)
            facts = findings.Found(variant.name, judge.primary, row, rows[0], gains, change)
            said += findings.sentences(facts)
            if judge.labels and (note := findings.collapse(variant.name, found, judge.base)):
                said.append(note)
            aside += _aside(variant, found, judge)
        rows.append(row)
        items += summary.item_rows(variant.title, variant.kind, found)
        labels += summary.label_rows(variant.title, found, judge.labels) if judge.labels else []
    notes = [*said, *aside, *_caveats(judge, plan)]
    for note in notes:
        log.info("%s", note)
    return Evaluation(
        _arranged(pd.DataFrame(rows)),
        pd.DataFrame(items),
        pd.DataFrame(labels, columns=_LABELS),
        pd.DataFrame(controls, columns=_CONTROLS),
        tuple(notes),
        _provenance(model, task, measured, plan),
    )


class _Judge:
    """Everything that rows are held against."""

    def __init__(self, model: Any, task: Any, measured: Measurements, part: Measurements, plan: Plan) -> None:
        self.measured, self.part, self.plan = measured, part, plan
        self.sources = [str(item.source) for item in measured.items]
        self.names = candidate_names(model, task, measured)
        self.labels = shared_labels(task, measured.items)
        self.base = self.judged(plan.base, plan.generate)
        self.choice = bool(np.isfinite(self.base.values["constrained"]).any())
        self.primary = "accuracy" if plan.generate else "constrained" if self.choice else "logprob"
        self.losses = {
            variant.key: loss
            for variant, loss in zip(
                [plan.base, *plan.methods],
                measured.drift([plan.base, *plan.methods], plan.texts) if plan.texts else (),
                strict=bool(plan.texts),
            )
        }

    def judged(self, variant: Variant, write: bool) -> Judged:
        (found,) = self.measured.answers([variant], write=write)
        return Judged(found, self.measured.items, self.measured.data, self.names)

    def control(self, variant: Variant) -> Judged:
        """Return a control's answers to the items that controls are measured on."""
        (found,) = self.part.answers([variant], write=self.plan.write_controls)
        return Judged(found, self.part.items, self.part.data, [self.names[i] for i in self.plan.subset])

    def drift(self, variant: Variant) -> Gain | None:
        """Return how much less likely neutral text becomes; None where it is not measured."""
        from headscope.probes.statistics import bootstrap

        if variant.kind == "neutral" or variant.key not in self.losses:
            return None
        change = self.losses[variant.key] - self.losses[self.plan.base.key]
        found = bootstrap(change[:, None], [text.id for text in self.plan.texts], seed=self.plan.seed)
        return Gain(float(found.mean[0]), float(found.low[0]), float(found.high[0]))

    def row(self, found: Judged, gains: Mapping[str, Gain], kind: str, change: Gain | None) -> dict[str, Any]:
        row: dict[str, Any] = summary.means(found, self.sources, self.plan.seed)
        base = self.base.values["constrained"]
        row["constrained_baseline"] = float(np.nanmean(base)) if self.choice else np.nan
        row |= summary.columns(gains)
        row |= {"controls": 0, "control_gain": np.nan, "p_value": np.nan, "p_measure": ""}
        row |= summary.shifts(found, self.base) if self.labels else dict.fromkeys(_SHIFTS, np.nan)
        row |= dict.fromkeys(_DRIFT, np.nan)
        if change is not None:
            before = self.losses[self.plan.base.key].mean()
            row |= {"perplexity": float(np.exp(before + change.mean)), "perplexity_ratio": float(np.exp(change.mean))}
            row |= {"drift": change.mean, "drift_low": change.low, "drift_high": change.high}
        return row

    def control_row(self, control: Variant, found: Judged) -> dict[str, Any]:
        row: dict[str, Any] = {"method": control.name, "replicate": control.replicate, "what": control.what}
        for name in MEASURES:
            # Among valid answers a gain is a difference of two means: which answers are valid differs.
            value, before = _mean(found.values[name]), self.there(self.base, name)
            row |= {name: value, f"{name}_gain": value - before}
        return row

    def there(self, found: Judged, measure: str) -> float:
        """Return a mean over the items that controls are measured on."""
        return _mean(found.values[measure][list(self.plan.subset)])

    def against(self, found: Judged, others: Sequence[Judged]) -> dict[str, Any]:
        """Set a method against its controls, on their items, in the measure that counts or the nearest they have."""
        for measure in (self.primary, "constrained", "logprob"):
            before = self.there(self.base, measure)
            gained = [_mean(other.values[measure]) - before for other in others]
            if gained and np.isfinite(gained).all():
                return {
                    "controls": len(gained),
                    "control_gain": float(np.mean(gained)),
                    "p_value": summary.p_value(self.there(found, measure) - before, gained),
                    "p_measure": measure,
                }
        return {}


def candidate_names(model: Any, task: Any, measured: Measurements) -> list[list[str]]:
    """Return the text of each item's candidates, in the order of its tokens: the right one first."""
    from headscope.interventions.answers import candidates
    from headscope.probes.teacher import answer_ids

    out = []
    for item, example in zip(measured.items, measured.data, strict=True):
        known: dict[tuple[int, ...], str] = {}
        for text in (item.gold, *(item.answers or getattr(task, "answers", None) or ())):
            known.setdefault(tuple(answer_ids(model, example.prompt, text)), text)
        out.append([known.get(ids) or str(model.tokenizer.decode(list(ids))).strip() for ids in candidates(example)])
    return out


def shared_labels(task: Any, items: Sequence[Any]) -> tuple[str, ...]:
    """Return the candidates that all items share; none where they differ, and shares of labels mean nothing."""
    told = getattr(task, "answers", None)
    if told:
        return tuple(told)
    sets = {frozenset(item.answers) for item in items}
    return tuple(items[0].answers) if len(sets) == 1 else ()


def _mean(values: Any) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def _aside(variant: Variant, found: Judged, judge: _Judge) -> list[str]:
    """Say so where a method did nothing, everywhere or in places."""
    if found.answered.difference(judge.base.answered, judge.measured.data) is None:
        return [f"{variant.name} changed no number and no text of any item: it did nothing."]
    nothing, batches = found.answered.forced.idle
    if not nothing:
        return []
    return [
        f"{variant.name} looked for keys and found none in {nothing} of {batches} batches: it changed nothing there."
    ]


def _caveats(judge: _Judge, plan: Plan) -> list[str]:
    """Say what limits the numbers."""
    from headscope.probes.statistics import cautions

    values, methods = judge.base.values, plan.methods
    notes = [
        f"{len(judge.sources)} items of {len(set(judge.sources))} sources. Intervals are 95 % bootstrap intervals over "
        "sources, differences are paired. A gain whose interval holds 0 is no gain."
    ]
    notes += cautions(judge.sources, 1, tested=False)
    if judge.primary == "accuracy" and judge.choice:
        notes.append(
            f"The untouched model is right on {values['accuracy'].mean():.3f} of the items when it writes, and on "
            f"{np.nanmean(values['constrained']):.3f} when it is constrained to the candidates."
        )
    if len(methods) > 1:
        notes.append(f"{len(methods)} methods, each with its own interval and p: none is corrected for the others.")
    notes += [note for _, note in plan.controls.values() if note]
    bare = [method.name for method in methods if plan.neutral[method.name] is None]
    if bare:
        notes.append(f"Bare edits know no neutral strength, so there is no neutral row of {', '.join(bare)}.")
    if len(bare) < len(methods):
        notes.append("Neutral rows equal the base in every bit, as they must.")
    if any(drawn for drawn, _ in plan.controls.values()):
        there = "" if len(plan.subset) == len(judge.sources) else f", on {len(plan.subset)} of the items"
        how = "wrote answers too" if plan.write_controls else "had their candidates forced, and wrote nothing"
        notes.append(
            f"Controls {how}{there}. p is the share of controls, the method among them, that gain at least as much: "
            f"with {plan.wanted} it cannot fall below {1 / (1 + plan.wanted):.2g}."
        )
    if not judge.labels:
        notes.append("Items do not share their labels: shares of labels, and their shift, are left out.")
    if plan.why:
        notes.append(f"Drift on neutral text is left out: {plan.why}.")
    return notes


def _provenance(model: Any, task: Any, measured: Measurements, plan: Plan) -> dict[str, Any]:
    from headscope.interventions.outcomes import name_of, provenance_of

    parameters = dict(getattr(task, "parameters", None) or {})
    settings = {"batch": measured.batch, "max_new_tokens": measured.limit}
    settings |= {
        "controls": plan.wanted,
        "control_items": len(plan.subset),
        "generate": plan.generate,
        "write_controls": plan.write_controls,
    }
    return provenance_of(
        model,
        task,
        measured.data,
        seed=plan.seed,
        task={"name": name_of(task), "parameters": parameters, "hash": str(getattr(task, "hash", ""))},
        methods={method.name: [_described(part) for part in method.parts] for method in plan.methods},
        settings=settings,
        created=plan.created,
    )


def _described(part: Any) -> Any:
    """Return a method's fields without the numbers that it was trained to."""
    from headscope.interventions.store import encode

    return _short(encode(part))


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        if "array" in value:
            digest = sha256_text(str(value["array"]))[:12]
            return f"{'×'.join(map(str, value['shape']))} {value['dtype']} {digest}"
        return {str(key): _short(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_short(item) for item in value]
    return value


def _arranged(table: pd.DataFrame) -> pd.DataFrame:
    """Put the base first, then methods, then neutral rows; columns of the first questions first."""
    order = {"base": 0, "method": 1, "neutral": 2}
    table = table.iloc[sorted(range(len(table)), key=lambda i: order[table["kind"].iloc[i]])].reset_index(drop=True)
    return table[[*_FIRST, *(name for name in table.columns if name not in _FIRST)]]
