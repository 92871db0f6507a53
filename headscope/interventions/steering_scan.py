"""Which layer to steer, how strongly, and what it does to answers: vectors held against pairs they have not seen."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from headscope.errors import DataError, RequestError
from headscope.interventions.lofit import Tuned
from headscope.interventions.steering import (
    ContrastPair,
    Fit,
    Floats,
    Site,
    SteeringVector,
    activations,
    as_pairs,
    chunks,
    heads_of,
    prompts_of,
)
from headscope.interventions.training import Example, examples

if TYPE_CHECKING:
    import pandas as pd

    from headscope.models.model import Model
    from headscope.models.prompt import Prompt
    from headscope.probes.base import Progress


@dataclass(frozen=True, eq=False)
class LayerScan:
    """Vectors of several layers, held against pairs that they were not fitted on.

    Attributes
    ----------
    table
        One row per layer: ``separation``, the share of validation pairs whose positive lies further along v;
        ``effect``, the mean rise in log p(positive answer) − log p(negative answer) under steering, with ``ci_low``
        and ``ci_high``; ``control``, the same for random directions of equal norm.
    vectors
        The vector of each layer.
    """

    table: pd.DataFrame
    vectors: dict[int, SteeringVector]

    def best(self) -> SteeringVector:
        """Return the vector of the largest effect above that of its control."""
        gain = (self.table["effect"] - self.table["control"]).to_numpy()
        return self.vectors[int(self.table["layer"].iloc[int(gain.argmax())])]


def scan_layers(
    model: Model,
    train: Sequence[ContrastPair | tuple[Any, Any]],
    validation: Sequence[ContrastPair | tuple[Any, Any]],
    layers: Sequence[int] | None = None,
    *,
    method: Fit = "mean",
    site: Site = "residual",
    controls: int = 3,
    batch_size: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> LayerScan:
    """Fit one vector per layer and measure each on the validation pairs.

    Parameters
    ----------
    layers
        Layers to try; by default all, but for the stream of the first, which is the embedding.
    controls
        Random directions per layer.
    progress
        Called with (``"layers"``, layers done, layers in all).
    options
        Further fields of ``SteeringVector``: coefficient, units, positions.

    Raises
    ------
    DataError
        If a validation pair is also in the training pairs.
    """
    import pandas as pd

    from headscope.probes.statistics import bootstrap

    held_out = as_pairs(validation)
    if {_key(pair) for pair in held_out} & {_key(pair) for pair in as_pairs(train)}:
        raise DataError(
            "Some validation pairs are training pairs: the scan would flatter its vectors. Split them first."
        )
    chosen = list(layers) if layers is not None else list(range(int(site == "residual"), model.spec.n_layers))
    fitted = activations(model, train, chosen, site=site, batch_size=batch_size)
    tested = activations(model, held_out, chosen, site=site, batch_size=batch_size)
    base = margins(model, held_out, batch_size=batch_size)
    sources = [pair.source or str(i) for i, pair in enumerate(held_out)]
    rows, vectors = [], {}
    for done, layer in enumerate(chosen):
        if progress is not None:
            progress("layers", done, len(chosen))
        heads = heads_of(model, layer, None) if site == "head" else ()
        vector = SteeringVector._from_activations(fitted[layer], layer, method, site, heads, options)
        along = tested[layer].reshape(len(held_out), 2, -1) @ vector.vector.reshape(-1)
        with model.edited(vector):
            gain = margins(model, held_out, batch_size=batch_size) - base
        random = []
        for number in range(controls):
            with model.edited(vector.control(seed + number)):
                random.append(margins(model, held_out, batch_size=batch_size) - base)
        interval = bootstrap(gain[:, None], sources, seed=seed)
        rows.append(
            {
                "layer": layer,
                "separation": float((along[:, 0] > along[:, 1]).mean()),
                "effect": float(interval.mean[0]),
                "ci_low": float(interval.low[0]),
                "ci_high": float(interval.high[0]),
                "control": float(np.mean(random)) if random else 0.0,
                "share": vector.share,
                "norm": vector.norm,
                "n": len(held_out),
            }
        )
        vectors[layer] = vector
    if progress is not None:
        progress("layers", len(chosen), len(chosen))
    return LayerScan(pd.DataFrame(rows), vectors)


def fit_steering(
    model: Model,
    train: Sequence[Example],
    validation: Sequence[Example],
    *,
    layers: Sequence[int] | None = None,
    pairs: int = 40,
    batch: int = 8,
    seed: int = 42,
    progress: Progress | None = None,
) -> Tuned:
    """Fit a vector from wrong answers to right ones, in the layer where it moves validation answers most.

    Parameters
    ----------
    layers
        Layers to try; by default ten at most, spread evenly over the model.
    pairs
        Most validation pairs that a layer is measured on.
    batch, seed
        Prompts of one pass; seed of the wrong answer that each example is paired with, and of random directions.

    Raises
    ------
    DataError
        If an example has no wrong answer, or right and wrong answers differ in no common direction.
    """
    start = time.monotonic()
    depth = model.spec.n_layers
    chosen = (
        list(layers) if layers is not None else sorted({round(x) for x in np.linspace(1, depth - 1, min(10, depth))})
    )
    held_out = answer_pairs(validation, seed)[:pairs]
    scan = scan_layers(
        model,
        answer_pairs(train, seed),
        held_out,
        chosen,
        controls=1,
        batch_size=batch,
        seed=seed,
        progress=progress,
    )
    best = scan.best()
    row = scan.table.set_index("layer").loc[best.layer]
    note = (
        f"Layer {best.layer} of {len(chosen)} tried: right answers gain {row['effect']:.3f} nats on wrong ones in "
        f"{len(held_out)} validation pairs, and {row['control']:.3f} under a random direction of equal norm."
    )
    return Tuned(best, int(best.vector.size), seconds=time.monotonic() - start, notes=(note,))


def answer_pairs(data: Sequence[Example], seed: int = 0) -> list[ContrastPair]:
    """Return each example's prompt with its right answer, and with one of the wrong ones."""
    rng = np.random.default_rng(seed)
    pairs = []
    for example in data:
        if not example.wrong:
            raise DataError(f"Example {example.id!r} has no wrong answer to set against the right one.")
        wrong = example.wrong[int(rng.integers(len(example.wrong)))]
        pairs.append(ContrastPair(example.read(example.answer), example.read(wrong), example.source))
    return pairs


def margins(model: Model, pairs: Sequence[ContrastPair | tuple[Any, Any]], *, batch_size: int = 8) -> Floats:
    """Return log p(positive's ending) − log p(negative's ending) after their common beginning, (pairs,), in nats.

    Raises
    ------
    DataError
        If the prompts of a pair have no common beginning, or one is the beginning of the other.
    """
    import torch

    prompts = prompts_of(model, [p for pair in as_pairs(pairs) for p in (pair.positive, pair.negative)])
    shared = [
        common for one, other in zip(prompts[::2], prompts[1::2], strict=True) for common in [_common(one, other)] * 2
    ]
    scores = []
    for chunk, begins in zip(chunks(prompts, batch_size), chunks(shared, batch_size), strict=True):
        endings = [len(prompt) - begin for prompt, begin in zip(chunk, begins, strict=True)]
        logits = model.run(chunk, logits=max(endings) + 1, side="left").logits
        if logits is None:
            raise RequestError(f"{model.name} has no language-model head: a vector's effect cannot be measured.")
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        for row, (prompt, ending) in enumerate(zip(chunk, endings, strict=True)):
            ids = torch.tensor(prompt.ids[-ending:], device=logprobs.device)
            scores.append(float(logprobs[row, -ending - 1 : -1].gather(-1, ids[:, None]).sum()))
    values = np.array(scores).reshape(-1, 2)
    return np.asarray(values[:, 0] - values[:, 1], dtype=np.float64)


def contrast_pairs(model: Model, items: Sequence[Any], *, seed: int = 0) -> list[ContrastPair]:
    """Return pairs from items of an evaluation task: each prompt with its gold answer, and with a wrong one.

    Parameters
    ----------
    items
        With ``id``, ``source``, ``prompt(model)``, ``gold`` and ``answers``, from which the wrong answer is drawn.
    """
    return answer_pairs(examples(model, items), seed)


def _common(one: Prompt, other: Prompt) -> int:
    shared = next((i for i, (a, b) in enumerate(zip(one.ids, other.ids, strict=False)) if a != b), None)
    if not shared:
        raise DataError(
            "The prompts of a pair must begin alike and then differ, so that their endings can be compared: "
            f"{one.text[:60]!r} and {other.text[:60]!r} do not."
        )
    return shared


def _key(pair: ContrastPair) -> tuple[Any, Any]:
    return tuple(p if isinstance(p, str) else p.ids for p in (pair.positive, pair.negative))  # type: ignore[return-value]
