"""What a model answers under a method, item by item: the numbers that head profiles and searches are made of.

An item's candidates are forced token by token, as ``headscope.interventions.answers`` does it: each prompt is read
once, and keys that a method finds in it stay found while answers are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headscope.errors import DataError, RequestError, nearest
from headscope.interventions.answers import Forced, answer
from headscope.interventions.answers import candidates as candidates
from headscope.interventions.training import Example, examples, hashed

if TYPE_CHECKING:
    from pathlib import Path

    from headscope.interventions.base import Method
    from headscope.probes.store import Store

METRICS = ("logprob", "accuracy", "exact", "valid", "entropy")
"""Columns of an outcome.

``logprob``: log-probability of the right answer in nats, among the candidates where an item has some. ``accuracy``:
whether it is the likeliest candidate (label-constrained; ``exact`` where there are no candidates). ``exact``: whether
greedy decoding gives it. ``valid``: whether greedy decoding gives any candidate (NaN without). ``entropy``: of the
first answer token over the whole vocabulary, in nats.
"""

Floats = NDArray[np.float64]


def prepared(model: Any, task: Any, items: Sequence[Any] | None = None) -> list[Example]:
    """Return a task's items as examples, their prompts and answers as tokens.

    Parameters
    ----------
    task
        Has ``items``, and ``answers`` where all items share their candidates.
    items
        Which items; all of the task by default. ``Example`` objects pass through.

    Raises
    ------
    DataError
        If there is none, or two of them share their id.
    """
    chosen = list(task.items if items is None else items)
    if not chosen:
        raise DataError(f"The task {name_of(task)!r} has no item to measure on. Give at least one.")
    if all(isinstance(item, Example) for item in chosen):
        found = chosen
    else:
        found = examples(model, chosen, getattr(task, "answers", None))
    if len({item.id for item in found}) < len(found):
        raise DataError(f"Two items of the task {name_of(task)!r} have the same id. Give each an id of its own.")
    return found


def name_of(task: Any) -> str:
    """Return a task's name."""
    return str(getattr(task, "name", "task"))


def column(metric: str) -> int:
    """Return the place of a metric in an outcome."""
    if metric not in METRICS:
        raise RequestError(f"There is no metric {metric!r}.{nearest(metric, METRICS)}")
    return METRICS.index(metric)


def outcomes(model: Any, data: Sequence[Example], *methods: Method, batch: int = 8) -> Floats:
    """Measure every item under methods; (items, metrics) in the order of ``METRICS``.

    Raises
    ------
    ModelError
        If the model's logits are not finite.
    """
    with model.edited(*methods):
        found, _ = answer(model, data, batch=batch)
    return metrics(found)


def metrics(found: Forced) -> Floats:
    """Return (items, metrics), in the order of ``METRICS``, of what the candidates got."""
    exact = found.greedy[:, 0].astype(np.float64)
    accuracy = np.where(found.alone, exact, found.constrained)
    valid = np.where(found.alone, np.nan, found.greedy.any(1).astype(np.float64))
    return np.column_stack([found.share, accuracy, exact, valid, found.entropy])


def identity_of(model: Any, task: Any, data: Sequence[Example], **parts: Any) -> dict[str, Any]:
    """Return what stored outcomes depend on."""
    from headscope.probes.provenance import identity

    regions = [sorted((name, list(places)) for name, places in item.prompt.regions.items()) for item in data]
    return identity(model, {"task": name_of(task), "items": hashed(data), "regions": _hash(regions), **parts})


def open_outcomes(
    model: Any, task: Any, data: Sequence[Example], out: str | Path | None, fresh: bool, **parts: Any
) -> Store | None:
    """Open the folder of outcomes of one task, items and batch size; None without ``out``."""
    if out is None:
        return None
    from headscope.probes.store import Store

    return Store.open(out, identity_of(model, task, data, **parts), fresh=fresh)


def stored(
    store: Store | None, group: str, name: str, model: Any, data: Sequence[Example], *methods: Method, batch: int
) -> Floats:
    """Return outcomes under methods, from the store where it has them; else measure and store them."""
    shard = None if store is None else store.read(group, name)
    if shard is not None:
        return shard.arrays["outcomes"]
    found = outcomes(model, data, *methods, batch=batch)
    if store is not None:
        store.write(group, name, {"items": len(data)}, {"outcomes": found})
    return found


def encoded(method: Any) -> Any:
    """Return a method as JSON-able data, for the identity of a run."""
    from headscope.interventions.store import encode

    return encode(method)


def provenance_of(model: Any, task: Any, data: Sequence[Example], /, *, seed: int, **parts: Any) -> dict[str, Any]:
    """Return where numbers come from, as every table of heads carries it."""
    from headscope.probes.provenance import now, provenance

    described = _Described(name_of(task), {"items": len(data)}, hashed(data), len(data))
    return provenance(model, described, seed=seed, created=now()) | parts


class _Described:
    """A task in the terms of a data set."""

    def __init__(self, name: str, parameters: Any, digest: str, size: int) -> None:
        self.name, self.parameters, self.hash, self.size = name, parameters, digest, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int, /) -> Any:
        raise IndexError(index)


def split_sources(data: Sequence[Example], share: float = 0.5, seed: int = 0) -> tuple[list[Example], list[Example]]:
    """Split items into two parts that share no source.

    Raises
    ------
    DataError
        If there are fewer than four sources: neither half could say anything.
    """
    names = sorted({item.source for item in data})
    if len(names) < 4:
        raise DataError(f"{len(names)} sources cannot be split into two halves that say anything: give at least 4.")
    if not 0 < share < 1:
        raise RequestError(f"split={share}: give the share of the first part, between 0 and 1.")
    order = np.random.default_rng(seed).permutation(len(names))
    count = min(max(2, round(share * len(names))), len(names) - 2)
    first = {names[i] for i in order[:count]}
    return [item for item in data if item.source in first], [item for item in data if item.source not in first]


def under(item: Example, answer: Sequence[int]) -> Example:
    """Return the item with ``answer``, all but its last token, read behind the prompt."""
    return replace(item, prompt=item.read(answer, drop_last=True))


def _hash(value: Any) -> str:
    from headscope.files import canonical_json, sha256_text

    return sha256_text(canonical_json(value))
