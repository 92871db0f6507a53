"""Retrieval heads: heads that copy the answer out of a long context (Wu et al. 2024, arXiv 2404.15574).

A needle is hidden in a haystack and asked for. At every decode step the head's most attended key is looked at: the
head *retrieves* needle token k when that key is k and the token at k is the token that the model generated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from headscope.attention.requests import Request, TopKeys
from headscope.data.needles import recall
from headscope.errors import DataError
from headscope.probes.base import Context, DataSet, Observation, Probe, SampleMeta
from headscope.probes.statistics import Floats, head_table
from headscope.probes.tables import by_factor, layers_of, mean_map, some, sources_of, stack, take
from headscope.probes.teacher import TeacherForced

if TYPE_CHECKING:
    import pandas as pd

    from headscope.probes.scores import HeadScores

FEW_TRIALS = 20
"""Fewer counted trials than this leave more than a tenth of the top heads to chance (methods, repeatability)."""


def copy_scores(
    top: NDArray[np.integer[Any]], ids: Sequence[int], generated: Sequence[int], span: Sequence[int]
) -> dict[str, Floats]:
    """Copy scores of all heads on one trial.

    Parameters
    ----------
    top
        (L, H, S) most attended key of each of S decode steps; −1 where there is none.
    ids
        Tokens by absolute position: prompt, then generated.
    generated
        (S,) token that each step produced.
    span
        Positions to be copied.

    Returns
    -------
    dict of (L, H)
        ``score``: share of the *distinct* span positions that were retrieved, in [0, 1]. ``historical``: retrievals
        over span length, as published; a position retrieved at two steps counts twice, so it can pass 1.
        ``attended``: as ``score`` without asking that the token was generated.
    """
    found, matches = _retrieved(top, ids, generated)
    inside = np.isin(top, span)
    size = max(len(span), 1)
    return {
        "score": _distinct(top, matches & inside, len(ids))[..., list(span)].sum(axis=-1) / size,
        "historical": (matches & inside).sum(axis=-1) / size,
        "attended": _distinct(top, found & inside, len(ids))[..., list(span)].sum(axis=-1) / size,
    }


def shifted_scores(
    top: NDArray[np.integer[Any]],
    ids: Sequence[int],
    generated: Sequence[int],
    size: int,
    allowed: Sequence[int],
) -> dict[str, Floats]:
    """Null of ``copy_scores``: the same rules for a span of the same size at a random place.

    All spans of ``size`` consecutive positions within ``allowed`` are averaged, so the null is the exact expectation
    over the random place. ``null`` and ``null_attended`` are (L, H); both 0 if no such span exists.
    """
    found, matches = _retrieved(top, ids, generated)
    places = np.array(sorted(set(allowed)), dtype=np.int64)
    starts = places[: len(places) - size + 1] if size else places[:0]
    starts = starts[places[size - 1 :] - starts == size - 1] if len(starts) else starts
    nulls = {}
    for name, hits in (("null", matches), ("null_attended", found)):
        running = np.cumsum(_distinct(top, hits, len(ids)), axis=-1)
        before = np.concatenate([np.zeros_like(running[..., :1]), running], axis=-1)
        windows = before[..., starts + size] - before[..., starts]
        nulls[name] = windows.mean(axis=-1) / size if len(starts) else np.zeros(top.shape[:2])
    return nulls


def _retrieved(
    top: NDArray[np.integer[Any]], ids: Sequence[int], generated: Sequence[int]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether each step has a top key, and whether the token there is the token that the step produced."""
    if top.shape[-1] != len(generated):
        raise DataError(f"There are {top.shape[-1]} captured steps and {len(generated)} generated tokens.")
    found = top >= 0
    tokens = np.asarray(ids, dtype=np.int64)[np.where(found, top, 0)]
    return found, found & (tokens == np.asarray(generated, dtype=np.int64))


def _distinct(top: NDArray[np.integer[Any]], hits: NDArray[np.bool_], length: int) -> NDArray[np.int32]:
    """Map (L, H, length) of positions hit at any step."""
    hit = np.zeros((*top.shape[:2], length), dtype=np.int32)
    layer, head, step = np.nonzero(hits)
    hit[layer, head, top[layer, head, step]] = 1
    return hit


@dataclass(frozen=True)
class RetrievalHeads(Probe):
    """Heads that copy the answer from the needle, by the share of distinct answer tokens that they retrieve.

    Parameters
    ----------
    span
        What is to be copied. ``"answer"``, the default: the words inside the needle that answer the question. The
        paper's needles are sentences that the model repeats nearly whole, and it divides by the needle's length;
        where the answer is a few words of the needle, that bounds every score far below 1 and makes it depend on
        how wordy the needle is. ``"needle"`` is the paper's denominator.
    threshold
        Least score of a retrieval head (paper: 0.1); it must also pass the null.
    recall
        A trial counts only above this ROUGE-1 recall of the answer in the generated text (paper: 0.5).
    always
        A head that retrieves in at least this share of contexts is always active.
    teacher
        For models that do not answer: feed the true answer instead of decoding freely, and count every trial. The data
        must be ``TeacherForced``, which ``rank`` sees to. Such scores say what a head *would* copy; they are not
        comparable with free decoding, and a note says so.

    Notes
    -----
    The null is the same rule for a span of the same size at a random place of the haystack.
    A *context* is one needle at one length and depth.
    """

    name: ClassVar[str] = "retrieval"
    data: ClassVar[str] = "needles"

    span: Literal["answer", "needle"] = "answer"
    threshold: float = 0.1
    recall: float = 0.5
    always: float = 0.9
    teacher: bool = False

    def requests(self, spec: Any) -> list[Request]:
        """Ask for the most attended key of every decode step."""
        return [TopKeys(n=1)]

    def observe(self, run: Any, sample: Any) -> Observation:
        """Scores of one trial: arrays (L, H), with whether the trial counts."""
        if self.teacher != bool(getattr(sample, "forced", False)):
            raise DataError(
                f"RetrievalHeads(teacher={self.teacher}) and sample {sample.id!r} do not agree on whether the answer "
                "is forced. Wrap needles in hs.probes.TeacherForced(data) for teacher=True, and only then."
            )
        top = take(run["top_keys"], "layer", "head", "step", "rank")[..., 0].astype(np.int64)
        prompt, generated = run.prompt, list(run.tokens)
        top = top[..., : len(generated)]
        ids = [*prompt.ids, *generated]
        span = sorted(prompt.regions[self.span])
        needle = {*prompt.regions["needle"], *span}
        allowed = [at for at in prompt.regions.get("haystack", range(1, len(prompt.ids))) if at and at not in needle]
        answered = recall(str(run.text), sample.answer)
        return {
            "layers": layers_of(run["top_keys"]),
            **copy_scores(top, ids, generated, span),
            **shifted_scores(top, ids, generated, len(span), allowed),
            "recall": np.asarray(answered),
            "counted": np.asarray(self.teacher or answered > self.recall),
        }

    def dataset(self, model: Any) -> DataSet:
        """Return needles sized to the model, with the answers forced if ``teacher``."""
        made = super().dataset(model)
        return TeacherForced(made) if self.teacher else made

    def rank(self, model: Any, data: DataSet | None = None, **options: Any) -> HeadScores:
        """Score every head; see ``Probe.rank``. With ``teacher``, plain needles are wrapped in ``TeacherForced``."""
        if self.teacher and data is not None and not isinstance(data, TeacherForced):
            data = TeacherForced(data)
        return super().rank(model, data, **options)

    def summarise(self, observations: list[tuple[SampleMeta, Observation]], context: Context) -> HeadScores:
        """Mean over counted trials, per-context activation, and scores by length and depth."""
        some(observations, self.name)
        counted = np.array([bool(observation["counted"]) for _, observation in observations])
        recalled = np.array([float(observation["recall"]) for _, observation in observations])

        def counted_only(key: str) -> Floats:
            return np.where(counted[:, None, None], stack(observations, key, context), np.nan)

        values, null = counted_only("score"), counted_only("null")
        activation, contexts = self._activation(observations, values)
        # Only trials that count give evidence, and only their needles are independent sources.
        kept = counted if counted.any() else ~counted
        table, notes = head_table(
            values[kept],
            [source for source, keep in zip(sources_of(observations), kept, strict=True) if keep],
            null=null[kept],
            threshold=self.threshold,
            extra={
                "historical": mean_map(counted_only("historical")),
                "attended": mean_map(counted_only("attended")),
                "null_attended": mean_map(counted_only("null_attended")),
                "active": activation,
            },
            seed=context.seed,
        )
        chosen = table["selected"].to_numpy(dtype=bool).reshape(activation.shape)
        details = {
            "activation": self._activation_table(table, contexts),
            "by_factor": by_factor(
                observations, values, chosen, ("length", "depth"), recall=recalled, counted=counted.astype(np.float64)
            ),
        }
        return context.scores(self, table, details, [*self._notes(counted), *notes])

    def _activation(self, observations: list[tuple[SampleMeta, Observation]], values: Floats) -> tuple[Floats, int]:
        """Share of contexts in which each head's score passes the threshold (L, H), and the number of contexts."""
        groups: dict[tuple[str, ...], list[int]] = {}
        for i, (meta, _) in enumerate(observations):
            if np.isfinite(values[i]).any():
                key = (meta.source, str(meta.factors.get("length")), str(meta.factors.get("depth")))
                groups.setdefault(key, []).append(i)
        if not groups:
            return np.full(values.shape[1:], np.nan), 0
        cells = np.stack([mean_map(values[members]) for members in groups.values()])
        active = mean_map(np.where(np.isfinite(cells), cells > self.threshold, np.nan))
        return active, len(groups)

    def _activation_table(self, table: pd.DataFrame, contexts: int) -> pd.DataFrame:
        """Heads that are active in any context, the steadiest first."""
        import pandas as pd

        found = table.loc[table["active"] > 0, ["layer", "head", "score", "selected", "active"]]
        found = found.sort_values(["active", "score", "layer", "head"], ascending=[False, False, True, True])
        kind = pd.Series(np.where(found["active"] >= self.always, "always", "by context"), index=found.index)
        return found.assign(contexts=contexts, kind=kind).reset_index(drop=True)

    def _notes(self, counted: NDArray[np.bool_]) -> list[str]:
        total, n = int(counted.sum()), len(counted)
        if self.teacher:
            return [
                f"Teacher-forced: the true answer was fed in all {n} trials, so scores say what heads would copy. "
                "They are not comparable with free decoding."
            ]
        notes = [f"{total} of {n} trials counted (ROUGE-1 recall of the answer above {self.recall:g})."]
        if total == 0:
            notes.append(
                "The model retrieved no answer, so no head has a score. Use shorter contexts, a stronger model, "
                "or RetrievalHeads(teacher=True)."
            )
        elif total < FEW_TRIALS:
            notes.append(
                f"Only {total} trials counted: rankings below the first few heads will not repeat. Use more samples, "
                "shorter contexts, or RetrievalHeads(teacher=True)."
            )
        return notes
