"""Attention rows of the best heads on real samples, for a reader to look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headscope.attention.requests import Rows
from headscope.data.needles import recall

if TYPE_CHECKING:
    import pandas as pd

    from headscope.probes.base import DataSet
    from headscope.probes.scores import HeadScores

PEAKS = 8
AROUND = 6
LEAST = 0.002
COLUMNS = ("sample", "layer", "head", "query", "query_token", "key", "key_token", "weight")

Row = tuple[int, str, NDArray[np.float64], Sequence[str]]
"""Query position, its token, weights by key, and the tokens of the keys."""


def explain(model: Any, scores: HeadScores, data: DataSet, *, k: int = 5, samples: int = 4) -> pd.DataFrame:
    """Run the best heads once more on a few samples and keep the attention rows that show what they do.

    For needles the row that produced the retrieved token; for repeated blocks a row in the last copy; for texts the
    last row. Of each row the largest weights and their neighbourhood are kept. Costs one forward pass a sample.

    Parameters
    ----------
    k
        Heads: the selected ones first, best first.
    samples
        Samples, spread evenly over the data set; of needles only those that the model answered, if there are any.

    Returns
    -------
    One row per key: sample, layer, head, query, query_token, key, key_token, weight. Goes into
    ``scores.with_details(samples=…)``.
    """
    import pandas as pd

    scored = scores.table.dropna(subset=["score"])
    if scored.empty or k < 1 or samples < 1:
        return pd.DataFrame({name: pd.Series(dtype="object") for name in COLUMNS})
    heads = (scores.selected or scores.top(k))[:k]
    kept: list[tuple[Any, Any]] = []
    spare: list[tuple[Any, Any]] = []
    for sample in _spread(data, samples):
        queries = {"needles": None, "repeats": (-3,), "texts": (-1,)}.get(sample.kind, (-1,))
        run = sample.forward(model, [Rows(heads=heads, queries="last" if queries is None else queries)])
        answered = (
            sample.kind != "needles" or getattr(sample, "forced", False) or recall(str(run.text), sample.answer) > 0.5
        )
        (kept if answered else spare).append((sample, run))
        if len(kept) == samples:
            break
    records = [
        record
        for sample, run in (kept or spare)[:samples]
        for pair, head in enumerate(heads)
        for record in _records(sample, head, _row(run, pair, sample))
    ]
    return pd.DataFrame.from_records(records, columns=list(COLUMNS))


def _answered(sample: Any, run: Any) -> bool:
    if sample.kind != "needles" or getattr(sample, "forced", False):
        return True
    return recall(str(run.text), sample.answer) > 0.5


def _spread(data: DataSet, samples: int) -> Iterator[Any]:
    """Yield evenly spaced samples; of needles twice as many and more, since some are not answered."""
    tries = min(len(data), 3 * samples if data[0].kind == "needles" else samples)
    for i in range(tries):
        yield data[(i * len(data)) // tries]


def _row(run: Any, pair: int, sample: Any) -> Row:
    stat = run["rows"].isel(pair=pair)
    stat = stat.isel(batch=0) if "batch" in stat.dims else stat
    prompt = run.prompt
    tokens = [str(token) for token in prompt.tokens]
    if "step" not in stat.dims:
        at = int(stat.coords["query"].values[0])
        return at, tokens[at], np.asarray(stat.values[0], dtype=np.float64)[: at + 1], tokens
    rows = np.nan_to_num(np.asarray(stat.transpose("step", "key").values, dtype=np.float64))
    generated = [int(token) for token in run.tokens]
    tokens += [str(text) for text in stat.coords["step_token"].values] if "step_token" in stat.coords else []
    ids = [*prompt.ids, *generated]
    span = set(prompt.regions.get("answer", ()))
    top = rows.argmax(axis=1)
    retrieved = [step for step, key in enumerate(top[: len(generated)]) if key in span and ids[key] == generated[step]]
    step = retrieved[0] if retrieved else 0
    at = len(prompt.ids) - 1 + step
    return at, tokens[at] if at < len(tokens) else "", rows[step, : at + 1], tokens


def _records(sample: Any, head: tuple[int, int], row: Row) -> Iterator[tuple[Any, ...]]:
    at, token, weights, tokens = row
    peaks = np.argsort(-weights, kind="stable")[:PEAKS]
    near = (np.abs(np.arange(len(weights))[:, None] - peaks) <= AROUND).any(axis=1)
    for key in np.flatnonzero(near | (weights >= LEAST)).tolist():
        text = tokens[key] if key < len(tokens) else ""
        yield str(sample.id), head[0], head[1], at, token, key, text, float(weights[key])
