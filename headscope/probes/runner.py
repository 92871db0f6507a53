"""Run samples once for all probes that want them, keep what was observed, and summarise.

Every sample's observations are one shard. A run that was interrupted, by Ctrl-C or without warning, goes on after
the last finished sample; observations are merged in sample order, so the result does not know how it came about.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headscope.errors import CheckpointError, DataError, HeadscopeError, ModelError, RequestError, nearest
from headscope.probes.base import Context, DataSet, Observation, Probe, Progress, SampleMeta
from headscope.probes.provenance import identity, now, provenance
from headscope.probes.store import Shard, Store

if TYPE_CHECKING:
    from headscope.attention.requests import Request
    from headscope.probes.scores import HeadScores

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Group:
    """Probes that share a data set, and the union of what they capture."""

    name: str
    data: DataSet
    probes: tuple[Probe, ...]
    requests: tuple[Request, ...]


def rank_all(
    probes: Sequence[Probe],
    model: Any,
    datasets: Mapping[str, DataSet],
    *,
    out: str | Path | None = None,
    progress: Progress | None = None,
    fresh: bool = False,
    seed: int = 0,
    worker: tuple[int, int] = (0, 1),
) -> dict[str, HeadScores]:
    """Score every head with every probe; each sample is run once for all probes of its kind.

    Parameters
    ----------
    datasets
        Data sets by kind (``probe.data``), or by the name of a probe that has its own.
    out
        Folder for shards. Without it nothing is written, and nothing can be resumed.
    progress
        Called with (data set, samples done, samples in all).
    fresh
        Discard the shards that an earlier run left in ``out``.
    seed
        Of the bootstrap and the permutations; shards do not depend on it.
    worker
        ``(i, n)``: run only samples i, i + n, …, for n processes that share ``out``. The worker that finds all
        samples finished returns the scores, the same as one worker alone would; the others return nothing.

    Returns
    -------
    Scores by name of the probe, in the order of ``probes``.

    Raises
    ------
    DataError
        If data is missing, empty, of another kind, or gives an observation that is not finite.
    ModelError
        If the model's logits are not finite.
    RequestError
        If two probes capture different things under one name.
    CheckpointError
        If ``out`` belongs to another run, or one of its shards is damaged.
    """
    index, workers = worker
    if not 0 <= index < workers:
        raise HeadscopeError(f"worker={worker}: give (i, n) with 0 <= i < n.")
    if workers > 1 and out is None:
        raise HeadscopeError("Several workers meet in a folder: pass out=.")
    groups = group(probes, model, datasets)
    store = None if out is None else Store.open(out, _identity(groups, model), fresh=fresh and index == 0)
    observed = {part.name: _observe(part, model, store, progress, worker) for part in groups}
    unfinished = {part.name: len(part.data) - len(observed[part.name]) for part in groups}
    if any(unfinished.values()):
        log.info("Worker %d of %d is done; others still have %s samples.", index, workers, unfinished)
        return {}
    return _summarise(probes, groups, observed, model, seed)


def group(probes: Sequence[Probe], model: Any, datasets: Mapping[str, DataSet]) -> list[Group]:
    """Sort probes by the data that they share, and unite their requests."""
    if not probes:
        raise HeadscopeError("There is no probe to rank by. Name at least one.")
    names = [probe.name for probe in probes]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise HeadscopeError(f"The probe {min(twice)!r} is given twice: rank its variants in separate runs.")
    members: dict[str, list[Probe]] = {}
    for probe in probes:
        key = probe.name if probe.name in datasets else probe.data
        if key not in datasets:
            raise DataError(f"The probe {probe.name!r} needs data of kind {probe.data!r}.{nearest(key, datasets)}")
        members.setdefault(key, []).append(probe)
    return [
        Group(name, _checked(datasets[name], name), tuple(part), unite(part, model.spec))
        for name, part in members.items()
    ]


def unite(probes: Sequence[Probe], spec: Any) -> tuple[Request, ...]:
    """Collect the requests of all probes, equal ones once.

    Raises
    ------
    RequestError
        If two different requests have one key.
    """
    owners: dict[str, tuple[Request, str]] = {}
    for probe in probes:
        for request in probe.requests(spec):
            if request.key not in owners:
                owners[request.key] = request, probe.name
            elif not _same(owners[request.key][0], request):
                raise RequestError(
                    f"The probes {owners[request.key][1]!r} and {probe.name!r} capture different things as "
                    f"{request.key!r}: give one of the requests another name=."
                )
    return tuple(request for request, _ in owners.values())


def _same(a: Request, b: Request) -> bool:
    # Tensors take no part in a request's equality; only the very same one counts as shared.
    return a == b and all(getattr(a, f.name) is getattr(b, f.name) for f in fields(a) if not f.compare)


def _checked(data: DataSet, name: str) -> DataSet:
    if not len(data):
        raise DataError(f"The data set {name!r} is empty: give it at least one sample.")
    ids = [str(data[i].id) for i in range(len(data))]
    if len(set(ids)) < len(ids):
        raise DataError(
            f"Sample {max(ids, key=ids.count)!r} occurs twice in the data set {name!r}: ids must be unique."
        )
    return data


def _identity(groups: Sequence[Group], model: Any) -> dict[str, Any]:
    return identity(
        model,
        {
            "probes": {probe.name: probe.parameters() for part in groups for probe in part.probes},
            "data": {part.name: str(part.data.hash) for part in groups},
        },
    )


Observed = dict[int, tuple[SampleMeta, dict[str, Observation]]]
"""By place in the data set: the sample, and each probe's observation of it."""


def _observe(
    part: Group, model: Any, store: Store | None, progress: Progress | None, worker: tuple[int, int]
) -> Observed:
    index, workers = worker
    total = len(part.data)
    metas = [SampleMeta.of(part.data[i], i) for i in range(total)]
    # All finished shards are read before anything is run: damage shows in seconds, not after hours.
    done = {i: found for i in range(total) if (found := _stored(store, part, metas[i])) is not None}
    if done:
        log.info("%s: %d of %d samples were finished before.", part.name, len(done), total)
    if progress is not None:
        progress(part.name, len(done), total)
    for i in range(index, total, workers):
        if i in done:
            continue
        seen = _run(part, model, part.data[i], metas[i])
        if store is not None:
            flat = {f"{probe}/{key}": value for probe, item in seen.items() for key, value in item.items()}
            store.write(part.name, _name(metas[i]), {"sample": metas[i].id}, flat)
        done[i] = metas[i], seen
        if progress is not None:
            progress(part.name, len(done), total)
    if workers > 1:
        late = {i: _stored(store, part, metas[i]) for i in range(total) if i not in done}
        done |= {i: found for i, found in late.items() if found is not None}
    return done


def _name(meta: SampleMeta) -> str:
    return f"{meta.index:06d}"


def _stored(store: Store | None, part: Group, meta: SampleMeta) -> tuple[SampleMeta, dict[str, Observation]] | None:
    shard: Shard | None = None if store is None else store.read(part.name, _name(meta))
    if shard is None:
        return None
    seen: dict[str, dict[str, np.ndarray]] = {probe.name: {} for probe in part.probes}
    for name, value in shard.arrays.items():
        probe, _, key = name.partition("/")
        if probe in seen:
            seen[probe][key] = value
    if shard.meta.get("sample") != meta.id:
        assert store is not None
        raise CheckpointError(
            f"The shard {store.path(part.name, _name(meta))} is of sample {shard.meta.get('sample')!r}, not of "
            f"{meta.id!r}. Delete that file, or start over with --fresh (fresh=True)."
        )
    return meta, dict(seen)


def _run(part: Group, model: Any, sample: Any, meta: SampleMeta) -> dict[str, Observation]:
    """Run one sample and let every probe look at it."""
    where = f"sample {meta.id!r} of {part.name!r}"
    wrong = next((probe for probe in part.probes if probe.data != meta.kind), None)
    if wrong is not None:
        raise DataError(
            f"The probe {wrong.name!r} needs data of kind {wrong.data!r}; {where} is of kind {meta.kind!r}."
        )
    run = sample.forward(model, list(part.requests))
    _finite_logits(getattr(run, "logits", None), model, where)
    seen: dict[str, Observation] = {}
    for probe in part.probes:
        arrays = {key: np.asarray(value) for key, value in probe.observe(run, sample).items()}
        for key, value in arrays.items():
            if value.dtype.kind == "f" and key not in probe.may_be_nan and not np.isfinite(value).all():
                raise DataError(
                    f"{probe.name}: {key!r} is not finite on {where}. The model's activations overflow or are NaN "
                    "there: load it in float32 or float64, or leave the sample out."
                )
        seen[probe.name] = arrays
    return seen


def _finite_logits(logits: Any, model: Any, where: str) -> None:
    """Raise ModelError on NaN or +inf; −inf is how some models rule tokens out."""
    import torch

    if logits is None or not torch.is_tensor(logits) or not logits.numel():
        return
    # Extremes carry NaN along, and need no copy as large as the logits.
    low, high = (float(value) for value in torch.aminmax(logits))
    if low != low or high != high or high in (float("inf"), float("-inf")):
        raise ModelError(
            f"{model.name} gives logits that are NaN or infinite on {where}. Its weights are damaged, or overflow in "
            f"{getattr(model, 'dtype', 'this precision')}: check them, and load the model in float32."
        )


def _summarise(
    probes: Sequence[Probe], groups: Sequence[Group], observed: Mapping[str, Observed], model: Any, seed: int
) -> dict[str, HeadScores]:
    created = now()
    scores: dict[str, HeadScores] = {}
    for part in groups:
        context = Context(
            n_layers=int(model.spec.n_layers),
            n_heads=int(model.spec.n_heads),
            provenance=provenance(model, part.data, seed=seed, created=created),
            seed=seed,
            spec=model.spec,
        )
        merged = sorted(observed[part.name].items())
        for probe in part.probes:
            scores[probe.name] = probe.summarise([(meta, seen[probe.name]) for _, (meta, seen) in merged], context)
    return {probe.name: scores[probe.name] for probe in probes}
