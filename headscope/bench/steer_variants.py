"""What ``headscope bench steer`` runs: each method by headscope or the eager way, with plain SDPA beside it.

All on one text of prose, the same heads, and the same regions: a sixteenth of the text to emphasise or to hide, an
eighth to stand for an image.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from torch import Tensor

from headscope.bench.jobs import Job, Pair

METHODS = ("pasta", "zerotuning", "spotlight", "knockout", "act", "var", "temperature")
SHARE = 4
"""One head in so many is edited."""


@dataclass
class State:
    """Where a prompt stands: last logits (V,), cache, and tokens so far."""

    logits: Tensor
    cache: Any
    length: int
    memory: dict[Any, Any] = field(default_factory=dict)
    steered: Any = None


def prepare(job: Job) -> Pair:
    """Return the calls of a job: ``method``, or None for plain SDPA alone, ``eager`` or not, ``length``, ``layers``."""
    import headscope as hs

    model = hs.load(job["source"])
    if job["layers"] is not None:
        model.hf.model.layers = model.hf.model.layers[: job["layers"]]
        model.hf.config.num_hidden_layers = job["layers"]
        model = hs.load(model.hf, tokenizer=model.tokenizer)
    ids, regions = _prompt(model, job["length"])
    plain = _Plain(model, ids)
    if job["method"] is None:
        return Pair(plain.prefill, plain.prefill, _check)
    method = make(job["method"], model, ids)
    ours = _Ours(model, ids, regions, method)
    if not job["eager"]:
        return Pair(ours.prefill, plain.prefill, _check, _steps(ours, plain, job["steps"]))
    eager = _Eager(model, ids, regions, method)

    def check(state: State) -> dict[str, float]:
        """Run ours on the same prompt, prefill and one step, and return the largest differences of logits."""
        mine = ours.prefill()
        found = {"prefill": _difference(mine, state)}
        return {**found, "step": _difference(ours.step(mine), eager.step(state))}

    return Pair(eager.prefill, plain.prefill, check, _steps(eager, plain, job["steps"]))


def make(name: str, model: Any, ids: Tensor) -> Any:
    """Return a method on a quarter of the heads, spread evenly, at published strength.

    ACT's threshold is lower than published, so that most heads do find sinks and have them edited.
    """
    from headscope import interventions as steer

    every = model.spec.heads()
    count = round(len(every) / SHARE)
    heads = tuple(every[i * len(every) // count] for i in range(count))
    made: dict[str, Callable[[], Any]] = {
        "pasta": lambda: steer.PASTA(heads, ("span",)),
        "zerotuning": lambda: steer.ZeroTuning(heads),
        "spotlight": lambda: steer.SpotLight(heads, ("span",)),
        "knockout": lambda: steer.KnockOut(("span",), heads=heads),
        "act": lambda: steer.ACT(heads, threshold=0.02),
        "var": lambda: steer.VAR((_peak(model, ids),), "image", heads, tau=0.3125 * model.spec.d_model**0.5),
        "temperature": lambda: steer.Temperature(heads),
    }
    return made[name]()


def _peak(model: Any, ids: Tensor) -> int:
    """Return the largest dimension of the first token's residual stream half-way up: what marks VAR's sinks."""
    import headscope as hs

    run = model.run({"input_ids": ids[:, :8]}, [hs.Residual(layers=[model.spec.n_layers // 2])], logits=False)
    return int(abs(run["residual"].values[0, 0, 0]).argmax())


def _prompt(model: Any, length: int) -> tuple[Tensor, dict[str, list[int]]]:
    from headscope.data.prose import sentences

    stream, text = sentences(Random(0)), ""
    while True:
        text += "".join(next(stream) for _ in range(max(8, length // 16)))
        ids = model.tokenizer(text)["input_ids"][:length]
        if len(ids) == length:
            break
    at, wide = length // 4, length // 16
    regions = {"span": list(range(at, at + wide)), "image": list(range(at, at + 2 * wide))}
    return torch.tensor([ids]), regions


class _Plain:
    """The unchanged model on SDPA."""

    attention = "sdpa"

    def __init__(self, model: Any, ids: Tensor) -> None:
        self.model, self.ids = model, ids

    @contextlib.contextmanager
    def force(self, state: State) -> Iterator[None]:
        yield

    def prefill(self) -> State:
        return self.go(State(torch.empty(0), None, 0), self.ids)

    def step(self, state: State) -> State:
        return self.go(state, torch.full((1, 1), 100))

    def go(self, state: State, ids: Tensor) -> State:
        _use(self.model.hf, self.attention)
        state.length += ids.shape[1]
        with torch.no_grad(), self.force(state):
            output = self.model.hf(input_ids=ids, past_key_values=state.cache, use_cache=True, logits_to_keep=1)
        state.logits, state.cache = output.logits[0, -1], output.past_key_values
        return state


class _Ours(_Plain):
    """The model under a method, as ``model.trace`` runs it."""

    attention = "headscope"

    def __init__(self, model: Any, ids: Tensor, regions: dict[str, list[int]], method: Any) -> None:
        super().__init__(model, ids)
        self.regions, self.edits = regions, method.edits(model)

    @contextlib.contextmanager
    def force(self, state: State) -> Iterator[None]:
        from headscope.attention.context import Context
        from headscope.attention.engine import active
        from headscope.attention.session import Session

        regions = {name: [where] for name, where in self.regions.items()}
        context = Context(1, regions, total=state.length, prompt_length=self.ids.shape[1])
        contexts = dict.fromkeys(self.model.spec.stacks, context)
        with active(Session(self.model.sites, (), self.edits, contexts, state.memory)):
            yield


class _Eager(_Plain):
    """The model under a method, with eager attention."""

    attention = "headscope_bench_eager"

    def __init__(self, model: Any, ids: Tensor, regions: dict[str, list[int]], method: Any) -> None:
        from headscope.bench import eager  # registers its attention with transformers

        super().__init__(model, ids)
        self.eager, self.regions, self.method = eager, regions, method

    @contextlib.contextmanager
    def force(self, state: State) -> Iterator[None]:
        state.steered = state.steered or self.eager.Steered(self.method, self.regions, self.ids.shape[1])
        with self.eager.steering(self.model.hf, state.steered):
            yield


def _steps(variant: _Plain, plain: _Plain, count: int) -> Callable[[State, State], dict[str, list[float]]]:
    def measure(state: State, base: State) -> dict[str, list[float]]:
        """Return the seconds of decoding steps in turn, both at the same context; the first of each is not counted."""
        found: dict[str, list[float]] = {"step_seconds": [], "step_sdpa": []}
        for turn in range(count + 1):
            for key, one, at in (("step_sdpa", plain, base), ("step_seconds", variant, state)):
                _use(one.model.hf, one.attention)
                start = time.perf_counter()
                one.step(at)
                if turn:
                    found[key].append(time.perf_counter() - start)
        return found

    return measure


def _use(hf: Any, name: str) -> None:
    """Set the attention implementation, which no decoding loop does at each step."""
    if hf.config._attn_implementation != name:
        hf.set_attn_implementation(name)


def _check(state: State) -> dict[str, float]:
    return {"logits": float(state.logits.double().mean())}


def _difference(a: State, b: State) -> float:
    return float((a.logits - b.logits).abs().max())
