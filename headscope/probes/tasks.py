"""Tasks on which the removal of heads is measured: one forward pass per sample, with the right answer given.

The answer is forced token by token. Greedy decoding gives the answer exactly if the likeliest token is the right
one at every forced step, so accuracy needs no free generation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headscope.errors import DataError, ModelError, nearest
from headscope.files import canonical_json
from headscope.probes.teacher import answer_ids

if TYPE_CHECKING:
    from headscope.attention.edits import Edit
    from headscope.models.prompt import Prompt


@dataclass(frozen=True)
class Metric:
    """One number per sample; ``higher_is_better`` says which way damage shows."""

    name: str
    higher_is_better: bool


@dataclass(frozen=True)
class Task:
    """What a model is asked to do, and how well it does it.

    Parameters
    ----------
    name
        Short name, for files and tables.
    metrics
        What ``score`` measures.
    samples
        Each with ``id`` and ``source``.
    score
        ``score(model, sample)``: one number per metric.
    prompt
        ``prompt(model, sample)``: the tokens that are read, for reference outputs of heads.
    regions
        Names of the regions of the prompt that mask ablation hides.
    """

    name: str
    metrics: tuple[Metric, ...]
    samples: tuple[Any, ...]
    score: Callable[[Any, Any], Sequence[float]]
    prompt: Callable[[Any, Any], Prompt]
    regions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.samples:
            raise DataError(f"The task {self.name!r} has no sample: give it at least one.")

    @property
    def sources(self) -> list[str]:
        """Cluster of every sample."""
        return [str(sample.source) for sample in self.samples]

    @property
    def hash(self) -> str:
        """SHA-256 over what is measured and on what."""
        facts = [self.name, [m.name for m in self.metrics], self.regions, [repr(sample) for sample in self.samples]]
        return hashlib.sha256(canonical_json(facts).encode()).hexdigest()

    def evaluate(self, model: Any, edit: Callable[[int], Edit] | None = None) -> NDArray[np.float64]:
        """Values (samples, metrics), under ``edit(i)`` on sample i.

        Raises
        ------
        ModelError
            If a value is not finite.
        """
        rows = []
        for i, sample in enumerate(self.samples):
            with nullcontext() if edit is None else model.edited(edit(i)):
                row = np.asarray(self.score(model, sample), dtype=np.float64)
            if row.shape != (len(self.metrics),) or not np.isfinite(row).all():
                raise ModelError(
                    f"The task {self.name!r} gives {row.tolist()} on sample {sample.id!r}: "
                    f"expected {len(self.metrics)} finite numbers. The model's logits are NaN or infinite there."
                )
            rows.append(row)
        return np.stack(rows)


ANSWER = (Metric("answer log-probability", True), Metric("answer exact match", True))
LOSS = (Metric("next-token loss", False),)
REPEAT = (Metric("loss on the repeat", False), Metric("accuracy on the repeat", True))


def needle_task(data: Any, n: int | None = None) -> Task:
    """Answer the question about the needle: mean log-probability of the answer's tokens, and exact match.

    Parameters
    ----------
    data
        Samples of kind ``"needles"``.
    n
        Use this many, evenly spread over the shorter half of the contexts: a removal is measured for dozens of
        sets of heads, and short contexts let it be measured on more sources.
    """
    return Task("needles", ANSWER, spread(_shorter(data, n), n), _answer, _prompt, ("needle",))


def repeat_task(data: Any, n: int | None = None) -> Task:
    """Predict a block of random tokens when it comes again: loss in nats per token, and accuracy.

    Mask ablation hides the first copy of the block.
    """
    return Task("repeats", REPEAT, spread(data, n), _repeat, _prompt, ("first",))


def text_task(data: Any, n: int | None = None) -> Task:
    """Predict text: next-token loss in nats per token. Mask ablation hides the first token, where sinks are."""
    return Task("texts", LOSS, spread(data, n), _text, _prompt, ("bos",))


TASKS: dict[str, Callable[[Any, int | None], Task]] = {
    "needles": needle_task,
    "repeats": repeat_task,
    "texts": text_task,
}


def task_for(kind: str, data: Any, n: int | None = None) -> Task:
    """Return the task that goes with a kind of data, and so with the probes that use it.

    Raises
    ------
    DataError
        If there is none.
    """
    if kind not in TASKS:
        raise DataError(f"There is no task for data of kind {kind!r}.{nearest(kind, TASKS)}")
    return TASKS[kind](data, n)


def spread(data: Any, n: int | None) -> tuple[Any, ...]:
    """``n`` samples evenly spread over the data, or all of them."""
    size = len(data)
    if n is None or n >= size:
        return tuple(data[i] for i in range(size))
    return tuple(data[i] for i in np.unique(np.linspace(0, size - 1, n).round().astype(int)).tolist())


def _shorter(data: Any, n: int | None) -> Any:
    """Return the half of the samples with the shorter contexts, in the data's order; all where ``n`` needs them."""
    if n is None or n > len(data) // 2:
        return data
    sizes = [sample.factors.get("length", 0) for sample in data]
    kept = sorted(sorted(range(len(data)), key=lambda i: sizes[i])[: len(data) // 2])
    return [data[i] for i in kept]


def _prompt(model: Any, sample: Any) -> Prompt:
    prompt: Prompt = sample.prompt(model)
    return prompt


def _answer(model: Any, sample: Any) -> list[float]:
    import torch

    prompt = sample.prompt(model)
    ids = answer_ids(model, prompt, sample.answer)
    # One pass over prompt and answer; only the rows that predict the answer are unembedded.
    forced = model.prompt_from_ids([*prompt.ids, *ids[:-1]], {"needle": prompt.regions["needle"]})
    logits = model.run(forced, logits=len(ids)).logits[0].cpu().double()
    gold = torch.tensor(ids)
    right = torch.log_softmax(logits, dim=-1).gather(1, gold[:, None])
    return [float(right.mean()), float((logits.argmax(dim=-1) == gold).all())]


def _losses(model: Any, prompt: Prompt, start: int = 1) -> tuple[Any, Any]:
    """Loss and success of predicting tokens ``start`` and on of the prompt: (T − start,) each."""
    import torch

    gold = torch.tensor(prompt.ids[start:])
    logits = model.run(prompt, logits=len(gold) + 1).logits[0, :-1].cpu()
    loss = torch.nn.functional.cross_entropy(logits.float(), gold, reduction="none").double()
    return loss, (logits.argmax(dim=-1) == gold).double()


def _text(model: Any, sample: Any) -> list[float]:
    prompt = sample.prompt(model)
    if len(prompt) < 2:
        raise DataError(f"Sample {sample.id!r} has {len(prompt)} token: next-token loss needs at least two.")
    return [float(_losses(model, prompt)[0].mean())]


def _repeat(model: Any, sample: Any) -> list[float]:
    prompt = sample.prompt(model)
    # The first token of the second block comes as a surprise.
    loss, hit = _losses(model, prompt, len(prompt) - sample.block * (sample.times - 1) + 1)
    return [float(loss.mean()), float(hit.mean())]
