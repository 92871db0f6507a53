"""What tuned methods share: examples, losses on their answers, and a training loop that resumes.

The weights of the model are frozen. A method hands over its own few tensors, and how the model runs under them.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from headscope.errors import DataError, ModelError, RequestError, UnsupportedError
from headscope.files import canonical_json, sha256_text
from headscope.models.prompt import Prompt

if TYPE_CHECKING:
    from headscope.models.batch import Side
    from headscope.probes.base import Progress
    from headscope.probes.store import Store

log = logging.getLogger(__name__)

Loss = Literal["sft", "dpo"]
Under = Callable[["Tensor | None"], AbstractContextManager[Any]]
"""Puts a method's tensors in force for one batch, given its attention mask (B, T), or None without padding."""


@dataclass(frozen=True)
class Example:
    """A prompt, its right answer and wrong ones, as tokens.

    Parameters
    ----------
    id, source
        Unique name, and the cluster that the bootstrap resamples.
    prompt
        What is read.
    answer
        Tokens of the right answer.
    wrong
        Tokens of wrong answers: the rejected ones of DPO, and the candidates that a label-constrained choice
        must pass over.
    """

    id: str
    source: str
    prompt: Prompt
    answer: tuple[int, ...]
    wrong: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.answer or not all(self.wrong):
            raise DataError(f"Example {self.id!r} has an answer without tokens: there is nothing to learn.")

    def read(self, answer: Sequence[int], drop_last: bool = False) -> Prompt:
        """Return the prompt with an answer behind it, without the answer's last token if ``drop_last``."""
        ids = (*self.prompt.ids, *(answer[:-1] if drop_last else answer))
        return replace(Prompt.from_ids(ids), regions=self.prompt.regions)


def example(
    model: Any, prompt: Prompt | str, answer: str, wrong: Sequence[str] = (), *, name: str = "", source: str = ""
) -> Example:
    """Return an example made of text; answers are continuations of the prompt.

    Parameters
    ----------
    prompt, answer, wrong
        What is read, the right answer, and wrong ones; those with the right one's tokens are left out.
    name, source
        The example's ``id`` and ``source``; by default the prompt's text.
    """
    from headscope.probes.teacher import answer_ids

    read = prompt if isinstance(prompt, Prompt) else model.prompt(prompt.replace("{", "{{").replace("}", "}}"))
    gold = tuple(answer_ids(model, read, answer))
    others = dict.fromkeys(tuple(answer_ids(model, read, text)) for text in wrong)
    others.pop(gold, None)
    return Example(name or read.text, source or read.text, read, gold, tuple(others))


def examples(model: Any, items: Sequence[Any], answers: Sequence[str] | None = None) -> list[Example]:
    """Return the items of a task as examples.

    Parameters
    ----------
    items
        Each with ``id``, ``source``, ``prompt(model)``, ``gold`` and ``answers``, the candidates.
    answers
        Candidates of all items, where an item brings none of its own.
    """
    return [
        example(
            model,
            item.prompt(model),
            item.gold,
            [text for text in (item.answers or answers or ()) if text != item.gold],
            name=str(item.id),
            source=str(item.source),
        )
        for item in items
    ]


@dataclass(frozen=True)
class Recipe:
    """How tensors are trained: AdamW without weight decay, learning rate falling linearly to 0.

    Parameters
    ----------
    lr
        Learning rate of the first step.
    epochs, batch, seed
        Passes over the examples, examples of a step, and seed of the initial values and the order.
    loss
        ``"sft"``: cross-entropy of the answer's tokens, the prompt's left out. ``"dpo"``: preference of the answer
        over each wrong one (Rafailov et al. 2023), against the untuned model.
    beta
        Strength of the pull towards the untuned model under DPO.
    l1
        Weight of the L1 norm of the trained tensors.
    clip
        Largest norm of a step's gradient.
    side
        Where batches are padded.
    """

    lr: float
    epochs: int = 5
    batch: int = 8
    seed: int = 42
    loss: Loss = "sft"
    beta: float = 0.5
    l1: float = 0.0
    clip: float = 1.0
    side: Side = "right"

    def __post_init__(self) -> None:
        for name in ("lr", "beta", "clip"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise RequestError(f"{name}={value!r}: give a finite number above 0.")
        if not (math.isfinite(self.l1) and self.l1 >= 0):
            raise RequestError(f"l1={self.l1!r}: give a finite number of at least 0.")
        if self.epochs < 1 or self.batch < 1:
            raise RequestError(f"epochs={self.epochs}, batch={self.batch}: give at least 1 of each.")
        if self.loss not in ("sft", "dpo"):
            raise RequestError(f"loss={self.loss!r}: choose 'sft' or 'dpo'.")


@dataclass(frozen=True)
class Answers:
    """Log-probabilities of answers' tokens, in nats: ``logprobs`` and ``hits`` (tokens,), of sequence ``rows``.

    ``hits`` says where the right token is also the likeliest one.
    """

    logprobs: Tensor
    hits: Tensor
    rows: Tensor
    size: int

    def sums(self) -> Tensor:
        """Log-probability of each whole answer (size,)."""
        return self.logprobs.new_zeros(self.size).index_add(0, self.rows, self.logprobs)

    def exact(self) -> Tensor:
        """Whether greedy decoding would give each whole answer (size,)."""
        return torch.bincount(self.rows[~self.hits], minlength=self.size) == 0


def score(
    model: Any, sequences: Sequence[tuple[Example, Sequence[int]]], *, side: Side = "right", under: Under | None = None
) -> Answers:
    """Run prompts with an answer behind each, and return what the model gives each token of the answers.

    Differentiable by what ``under`` puts in force. Only the positions that predict answers are unembedded.
    """
    from headscope.models.forward import prepare

    read = [example.read(answer, drop_last=True) for example, answer in sequences]
    batch = model.batch(read, side)
    tensors = prepare(model, batch).tensors
    rows: list[int] = []
    columns: list[int] = []
    gold: list[int] = []
    for row, (example, answer) in enumerate(sequences):
        first = batch.starts[row] + len(example.prompt) - 1
        rows += [row] * len(answer)
        columns += range(first, first + len(answer))
        gold += list(answer)
    kept = torch.tensor(columns, device=model.device)
    options: dict[str, Any] = {"use_cache": False}
    if "logits_to_keep" in inspect.signature(model.hf.forward).parameters:
        options["logits_to_keep"], kept = torch.unique(kept, return_inverse=True)
    with contextlib.nullcontext() if under is None else under(tensors.get("attention_mask")):
        logits = model.hf(**tensors, **options).logits
    owner = torch.tensor(rows, device=model.device)
    chosen = logits[owner, kept].float()
    target = torch.tensor(gold, device=model.device)
    logprobs = chosen.log_softmax(-1).gather(1, target[:, None]).squeeze(1)
    return Answers(logprobs, chosen.argmax(-1) == target, owner, len(sequences))


def train(
    model: Any,
    tensors: Mapping[str, Tensor],
    data: Sequence[Example],
    recipe: Recipe,
    *,
    under: Under,
    stage: str,
    store: Store | None = None,
    progress: Progress | None = None,
) -> list[dict[str, float]]:
    """Train ``tensors`` in place; everything else of the model is frozen.

    Parameters
    ----------
    under
        Puts the tensors in force.
    stage
        Name of the progress bar and of the checkpoints.
    store
        Keeps a checkpoint of each finished epoch; a run that was killed goes on behind the last of them, and ends
        with the same numbers as one that was not.

    Returns
    -------
    For each epoch ``{"epoch", "loss", "penalty"}``: mean task loss, and the L1 penalty at its end.

    Raises
    ------
    UnsupportedError
        If the model is no decoder with a language-model head, or in float16.
    DataError
        If there is no example, or under DPO none with a wrong answer.
    ModelError
        If the loss is not finite.
    """
    _check(model)
    units = _units(data, recipe.loss)
    steps = math.ceil(len(units) / recipe.batch)
    history: list[dict[str, float]] = []
    with frozen(model.hf):
        reference = _reference(model, units, recipe) if recipe.loss == "dpo" else None
        for tensor in tensors.values():
            tensor.requires_grad_(True)
        optimiser = torch.optim.AdamW(list(tensors.values()), lr=recipe.lr, weight_decay=0.0)
        begin = _restore(store, stage, tensors, optimiser, history, recipe.epochs)
        for epoch in range(begin, recipe.epochs):
            total = 0.0
            order = _order(len(units), recipe.seed, epoch)
            for step in range(steps):
                chosen = order[step * recipe.batch : (step + 1) * recipe.batch]
                loss = _loss(model, units, chosen, recipe, reference, under)
                if not bool(torch.isfinite(loss)):
                    raise ModelError(f"{stage}: the loss is not finite in epoch {epoch + 1}. Lower lr={recipe.lr:g}.")
                penalty = recipe.l1 * _norm(tensors) if recipe.l1 else 0.0
                optimiser.zero_grad()
                (loss + penalty).backward()
                torch.nn.utils.clip_grad_norm_(tensors.values(), recipe.clip)
                for group in optimiser.param_groups:
                    group["lr"] = recipe.lr * (1 - (epoch * steps + step) / (steps * recipe.epochs))
                optimiser.step()
                total += loss.item() * len(chosen)
                if progress is not None:
                    progress(stage, epoch * steps + step + 1, steps * recipe.epochs)
            final = recipe.l1 * float(_norm(tensors).detach())
            history.append({"epoch": epoch + 1, "loss": total / len(units), "penalty": final})
            log.info("%s: epoch %d of %d, loss %.4f.", stage, epoch + 1, recipe.epochs, history[-1]["loss"])
            _keep(store, stage, tensors, optimiser, history)
    for tensor in tensors.values():
        tensor.requires_grad_(False)
        tensor.grad = None
    return history


def open_store(
    model: Any, out: str | Path | None, stage: str, data: Sequence[Example], recipe: Any, fresh: bool, **parts: Any
) -> Store | None:
    """Return the folder of one stage's checkpoints under ``out``; another run's folder is refused."""
    if out is None:
        return None
    from headscope.probes.provenance import identity
    from headscope.probes.store import Store

    how = asdict(recipe) if recipe is not None else None
    told = {"stage": stage, "examples": hashed(data), "recipe": how, **parts}
    return Store.open(Path(out) / stage, identity(model, told), fresh=fresh)


def hashed(data: Sequence[Example]) -> str:
    """SHA-256 over the tokens of all examples, in order."""
    return sha256_text(canonical_json([[e.id, e.source, e.prompt.ids, e.answer, e.wrong] for e in data]))


@contextlib.contextmanager
def frozen(hf: Any) -> Iterator[None]:
    """No gradients for the model's own weights, and no dropout, inside the block; afterwards all is as before."""
    before = [(parameter, parameter.requires_grad) for parameter in hf.parameters()]
    training = hf.training
    hf.requires_grad_(False).eval()
    try:
        yield
    finally:
        hf.train(training)
        for parameter, wanted in before:
            parameter.requires_grad_(wanted)


def _check(model: Any) -> None:
    if model.hf.config.is_encoder_decoder or model.spec.unembed is None or model.sites.default != "decoder":
        raise UnsupportedError(
            f"{model.name} ({model.spec.family}) is no decoder with a language-model head: tuning on answers needs one."
        )
    if model.dtype == torch.float16:
        raise UnsupportedError("Gradients underflow in float16: load the model with dtype='float32' or 'bfloat16'.")


Unit = tuple[Example, tuple[int, ...] | None]


def _units(data: Sequence[Example], loss: Loss) -> list[Unit]:
    """Return what a step draws from: examples, or (example, wrong answer) pairs."""
    if not data:
        raise DataError("There is no example to train on: give at least one.")
    if loss == "sft":
        return [(example, None) for example in data]
    units: list[Unit] = [(example, wrong) for example in data for wrong in example.wrong]
    if not units:
        raise DataError("DPO prefers a right answer to a wrong one, and no example has a wrong one: use loss='sft'.")
    return units


def _order(size: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 10_007 + epoch)
    order: list[int] = torch.randperm(size, generator=generator).tolist()
    return order


def _both(units: Sequence[Unit]) -> list[tuple[Example, Sequence[int]]]:
    right = [(example, example.answer) for example, _ in units]
    return [*right, *((example, wrong) for example, wrong in units if wrong is not None)]


def _reference(model: Any, units: Sequence[Unit], recipe: Recipe) -> Tensor:
    """Log-probability of the right answer minus that of the wrong one, under the untuned model (units,)."""
    found = []
    with torch.no_grad():
        for start in range(0, len(units), recipe.batch):
            sums = score(model, _both(units[start : start + recipe.batch]), side=recipe.side).sums()
            right, wrong = sums.chunk(2)
            found.append(right - wrong)
    return torch.cat(found)


def _loss(
    model: Any, units: Sequence[Unit], chosen: list[int], recipe: Recipe, reference: Tensor | None, under: Under
) -> Tensor:
    answers = score(model, _both([units[i] for i in chosen]), side=recipe.side, under=under)
    if reference is None:
        return -answers.logprobs.mean()
    right, wrong = answers.sums().chunk(2)
    return -torch.nn.functional.logsigmoid(recipe.beta * (right - wrong - reference[chosen])).mean()


def _norm(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([tensor.abs().sum() for tensor in tensors.values()]).sum()


def _name(stage: str, epoch: int) -> str:
    return f"{stage}-epoch-{epoch:03d}"


def _keep(
    store: Store | None,
    stage: str,
    tensors: Mapping[str, Tensor],
    optimiser: torch.optim.AdamW,
    history: Sequence[Mapping[str, float]],
) -> None:
    if store is None:
        return
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for name, tensor in tensors.items():
        state = optimiser.state[tensor]
        kept = {"value": tensor, "first": state["exp_avg"], "second": state["exp_avg_sq"], "step": state["step"]}
        arrays |= {f"{part}/{name}": x.detach().float().cpu().numpy() for part, x in kept.items()}
    store.write("epochs", _name(stage, len(history)), {"history": list(history)}, arrays)


def _restore(
    store: Store | None,
    stage: str,
    tensors: Mapping[str, Tensor],
    optimiser: torch.optim.AdamW,
    history: list[dict[str, float]],
    epochs: int,
) -> int:
    """Load the last finished epoch; return how many are finished."""
    for epoch in range(epochs if store is not None else 0, 0, -1):
        shard = store.read("epochs", _name(stage, epoch)) if store is not None else None
        if shard is None:
            continue
        for name, tensor in tensors.items():
            part = {key: torch.from_numpy(shard.arrays[f"{key}/{name}"]) for key in ("value", "first", "second")}
            with torch.no_grad():
                tensor.copy_(part["value"])
            optimiser.state[tensor] = {
                "step": torch.tensor(float(shard.arrays[f"step/{name}"])),
                "exp_avg": part["first"].to(tensor),
                "exp_avg_sq": part["second"].to(tensor),
            }
        history += [dict(line) for line in shard.meta["history"]]
        return epoch
    return 0
