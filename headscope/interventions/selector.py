"""Heads whose keys know whether a text is being asked about: the key-difference selector of SEKA.

A question is read before its context, once a relevant one and once an irrelevant one. Where keys of the answer's tokens
move most, the model marks what matters, and emphasis has something to act on. No answer is generated and no head
steered: two passes for each contrast.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from headscope.attention.engine import active
from headscope.attention.requests import QK
from headscope.attention.session import Session
from headscope.errors import DataError, RequestError, UnsupportedError
from headscope.files import canonical_json, sha256_text
from headscope.interventions.outcomes import provenance_of
from headscope.models.forward import forward, prepare
from headscope.models.prompt import Prompt

if TYPE_CHECKING:
    from headscope.probes.base import Progress
    from headscope.probes.scores import HeadScores

TEMPLATE = "Question: {question}\nContext: {context}"


@dataclass(frozen=True)
class Contrast:
    """A context, the answer in it, a question that the answer belongs to and one that it does not.

    Parameters
    ----------
    id, source
        Unique name, and the cluster that the bootstrap resamples.
    context, answer
        The text, and the part of it whose keys are compared; its first occurrence counts.
    relevant, irrelevant
        The two questions.
    """

    id: str
    source: str
    context: str
    answer: str
    relevant: str
    irrelevant: str

    def prompts(self, model: Any) -> tuple[Prompt, Prompt]:
        """Return the prompts with the relevant and the irrelevant question; the region ``"answer"`` is in both."""
        found = []
        for question in (self.relevant, self.irrelevant):
            prompt = model.prompt(TEMPLATE, question=question, context=self.context)
            found.append(prompt.with_regions({"answer": prompt.find(self.answer, 0, within="context")}))
        return found[0], found[1]


def contrasts(samples: Sequence[Any], seed: int = 0) -> list[Contrast]:
    """Make contrasts of needle samples: each is asked about, and then a question of another source is.

    Parameters
    ----------
    samples
        As ``headscope.data.needles`` makes them.
    seed
        Of the choice of irrelevant questions.

    Raises
    ------
    DataError
        If all samples ask the same question.
    """
    rng = np.random.default_rng(seed)
    made = []
    for sample in samples:
        others = sorted({other.question for other in samples if other.source != sample.source} - {sample.question})
        if not others:
            raise DataError("All samples ask the same question: there is no irrelevant one. Take samples of several.")
        context = f"{sample.before} {sample.needle.strip()} {sample.after}".strip()
        irrelevant = others[int(rng.integers(len(others)))]
        made.append(Contrast(sample.id, sample.source, context, sample.needle.strip(), sample.question, irrelevant))
    return made


def select_by_keys(
    model: Any,
    data: Sequence[Contrast],
    *,
    min_diff: float = 0.1,
    seed: int = 0,
    out: str | Path | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> HeadScores:
    """Score heads by how far keys of the answer move between a relevant and an irrelevant question.

    Keys are read as attention takes them, after the key norm and the rotary embedding: a rotation changes no length,
    since the context stands at the same positions behind either question. Query heads that share a key head share its
    score.

    Parameters
    ----------
    min_diff
        A head is selected where ‖K − K'‖_F / N, the norm of the difference of the keys (N, D) of all N answer tokens
        over their number, is at least this. It falls with the number of tokens, as the published rule does.
    seed, out, fresh, progress
        Of the bootstrap; folder of finished contrasts, from which a killed run goes on; see ``profile_heads``.

    Returns
    -------
    One row per head: ``score`` is the mean over answer tokens of ‖k − k'‖; ``min_diff`` the published statistic;
    ``relative`` the score over the mean norm of k.

    Raises
    ------
    DataError
        If there is no contrast.
    UnsupportedError
        If the model has no decoder, or counts positions in a way that cannot be shifted.
    """
    from headscope.probes.scores import HeadScores
    from headscope.probes.statistics import head_table

    if not data:
        raise DataError("select_by_keys() needs contrasts: see headscope.interventions.selector.contrasts.")
    if model.sites.default != "decoder" or model.hf.config.is_encoder_decoder:
        raise UnsupportedError(f"{model.name} ({model.spec.family}) has no decoder alone, which this selector reads.")
    store = _store(model, data, out, fresh)
    norms, squares, sizes, tokens = [], [], [], 0
    for i, item in enumerate(data):
        if progress is not None:
            progress("keys", i, len(data))
        shard = None if store is None else store.read("keys", f"{i:06d}")
        found = dict(shard.arrays) if shard is not None else _differences(model, item)
        if shard is None and store is not None:
            store.write("keys", f"{i:06d}", {"id": item.id}, found)
        tokens += int(found["tokens"])
        norms.append(found["norm"])
        squares.append(found["square"])
        sizes.append(found["size"])
    if progress is not None:
        progress("keys", len(data), len(data))
    published = np.sqrt(np.sum(squares, axis=0)) / tokens
    score = np.stack(norms)
    lengths = np.mean(sizes, axis=0)
    relative = np.divide(score.mean(0), lengths, out=np.full(published.shape, np.nan), where=lengths > 0)
    sources = [item.source for item in data]
    table, notes = head_table(score, sources, extra={"min_diff": published, "relative": relative}, seed=seed)
    table = table[np.isfinite(table["score"])].reset_index(drop=True)
    table["selected"] = table["min_diff"] >= min_diff
    notes.insert(0, f"Selected where ‖K − K'‖_F / N is at least {min_diff:g} over N = {tokens} answer tokens.")
    task = _Task("contrasts")
    facts = provenance_of(model, task, [], seed=seed, probe="keys", parameters={"min_diff": min_diff}, notes=notes)
    facts["data"] = {"name": "contrasts", "parameters": {}, "hash": _hash(data), "n": len(data)}
    return HeadScores(table, "keys", facts)


@dataclass(frozen=True)
class _Task:
    name: str


def _differences(model: Any, item: Contrast) -> dict[str, NDArray[Any]]:
    """Return per head, over the answer's tokens: mean ‖k − k'‖, sum of squares, mean ‖k‖; and how many tokens."""
    prompts = item.prompts(model)
    spans = [prompt.positions("answer") for prompt in prompts]
    if len(spans[0]) != len(spans[1]) or any(
        prompts[0].ids[a] != prompts[1].ids[b] for a, b in zip(*spans, strict=True)
    ):
        raise DataError(f"The answer of contrast {item.id!r} has other tokens behind another question. Leave it out.")
    # The same positions in both, so that rotations cancel: the shorter prompt begins later.
    last = max(span[0] for span in spans)
    keys = [_keys(model, prompt, span, last - span[0]) for prompt, span in zip(prompts, spans, strict=True)]
    shape = (model.spec.n_layers, model.spec.n_heads)
    found = {name: np.full(shape, np.nan) for name in ("norm", "square", "size")}
    for layer, key in keys[0].items():
        length = (key - keys[1][layer]).norm(dim=-1)  # (heads, tokens)
        heads = slice(0, length.shape[0])
        found["norm"][layer, heads] = length.mean(-1)
        found["square"][layer, heads] = length.square().sum(-1)
        found["size"][layer, heads] = key.norm(dim=-1).mean(-1)
    return {**found, "tokens": np.array(len(spans[0]))}


def _keys(model: Any, prompt: Prompt, span: Sequence[int], shift: int) -> dict[int, torch.Tensor]:
    """Return keys (H, tokens, D) of each layer at ``span``, read with all positions moved on by ``shift``."""
    whole = prepare(model, prompt)
    if shift:
        if "position_ids" not in inspect.signature(model.hf.forward).parameters:
            raise UnsupportedError(
                f"{model.name} ({model.spec.family}) cannot be given positions: use questions of the same length."
            )
        if model.spec.n_ctx is not None and len(prompt) + shift > model.spec.n_ctx:
            raise RequestError(f"A contrast of {len(prompt) + shift} tokens passes the context of {model.spec.n_ctx}.")
        whole.tensors["position_ids"] = torch.arange(shift, shift + len(prompt), device=model.device)[None]
    session = Session(model.sites, [QK()], (), whole.contexts)
    with torch.no_grad(), active(session):
        forward(model, whole.tensors, 1)
    return {
        layer: inp.k[0, :, list(span)].double().cpu().repeat_interleave(inp.q.shape[1] // inp.k.shape[1], dim=0)
        for layer, inp in session.stored["qk"].items()
    }


def _store(model: Any, data: Sequence[Contrast], out: str | Path | None, fresh: bool) -> Any:
    if out is None:
        return None
    from headscope.probes.provenance import identity
    from headscope.probes.store import Store

    return Store.open(out, identity(model, {"contrasts": _hash(data)}), fresh=fresh)


def _hash(data: Sequence[Contrast]) -> str:
    return sha256_text(canonical_json([list(vars(item).values()) for item in data]))
