"""The ways to compute the same four statistics that ``headscope bench capture`` compares.

Each variant runs one prompt through SmolLM2-135M and ends with the same arrays: per layer and head the attention on
the first token (sink mass) and the entropy of each row; with ``four`` also each key's received attention and each
row's largest key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from headscope.bench.jobs import Job, Pair

Statistics = Callable[[], dict[str, Tensor]]

PEERS = ("transformers eager", "TransformerLens", "nnsight")
OURS = ("nothing asked", "headscope")


def reduce_pattern(pattern: Tensor, four: bool) -> dict[str, Tensor]:
    """Return the statistics of one layer's pattern (B, H, T, T), as a user of a peer would compute them."""
    found = {"mass": pattern[..., 0], "entropy": torch.special.entr(pattern).sum(-1)}
    if four:
        found["received"] = pattern.sum(-2)
        found["top_weights"], found["top_keys"] = pattern.max(-1)
    return found


def _stacked(layers: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.stack([layer[key] for layer in layers]) for key in layers[0]}


def prepare(job: Job) -> Pair:
    """Return the calls of a job.

    Both unembed the last position only: no statistic needs logits, and those of 8192 positions alone take 1.6 GB.
    """
    import headscope as hs

    torch.manual_seed(0)
    model = hs.load(job["source"])
    ids = torch.randint(10, model.spec.vocab_size or 10, (1, job["length"]))
    hf, four = model.hf, job["four"]

    def plain() -> dict[str, Tensor]:
        hf.set_attn_implementation("sdpa")
        with torch.no_grad():
            hf(input_ids=ids, use_cache=False, logits_to_keep=1)
        return {}

    made: dict[str, Callable[[], Statistics]] = {
        "SDPA": lambda: plain,
        "nothing asked": lambda: _ours(model, ids, []),
        "headscope": lambda: _ours(model, ids, _requests(four)),
        "transformers eager": lambda: _eager(hf, ids, four),
        "TransformerLens": lambda: _transformer_lens(model, ids, four),
        "nnsight": lambda: _nnsight(model, ids, four),
    }
    return Pair(made[job["variant"]](), plain, _means)


def _means(found: dict[str, Tensor]) -> dict[str, float]:
    return {key: float(x[torch.isfinite(x)].double().mean()) for key, x in found.items()}


def _requests(four: bool) -> list[Any]:
    import headscope as hs

    pair = [hs.Mass(["bos"]), hs.Entropy()]
    return [*pair, hs.Received(), hs.TopKeys(1)] if four else pair


def _ours(model: Any, ids: Tensor, requests: list[Any]) -> Statistics:
    def call() -> dict[str, Tensor]:
        model.hf.set_attn_implementation("headscope")
        run = model.run({"input_ids": ids}, requests, logits="last")
        return {key: torch.from_numpy(run[key].values) for key in run}

    return call


def _eager(hf: Any, ids: Tensor, four: bool) -> Statistics:
    def call() -> dict[str, Tensor]:
        hf.set_attn_implementation("eager")
        with torch.no_grad():
            patterns = hf(input_ids=ids, use_cache=False, logits_to_keep=1, output_attentions=True).attentions
        return _stacked([reduce_pattern(pattern, four) for pattern in patterns])

    return call


def _transformer_lens(model: Any, ids: Tensor, four: bool) -> Statistics:
    from transformer_lens.model_bridge import TransformerBridge

    model.hf.set_attn_implementation("eager")
    bridge = TransformerBridge.boot_transformers(
        "HuggingFaceTB/SmolLM2-135M-Instruct", hf_model=model.hf, tokenizer=model.tokenizer, device="cpu"
    )
    name = "blocks.{}.attn.hook_pattern"

    def call() -> dict[str, Tensor]:
        model.hf.set_attn_implementation("eager")
        with torch.no_grad():
            _, cache = bridge.run_with_cache(
                ids, names_filter=lambda hook: hook.endswith("hook_pattern"), logits_to_keep=1
            )
        layers = range(model.spec.n_layers)
        return _stacked([reduce_pattern(cache[name.format(layer)], four) for layer in layers])

    return call


def _nnsight(model: Any, ids: Tensor, four: bool) -> Statistics:
    import nnsight

    model.hf.set_attn_implementation("eager")
    wrapped = nnsight.LanguageModel(model.hf, tokenizer=model.tokenizer)

    def call() -> dict[str, Tensor]:
        model.hf.set_attn_implementation("eager")
        patterns = []
        with torch.no_grad(), wrapped.trace({"input_ids": ids}, logits_to_keep=1):
            for layer in wrapped.model.layers:
                patterns.append(layer.self_attn.output[1].save())  # noqa: PERF401 - a trace is not a comprehension
        return _stacked([reduce_pattern(pattern, four) for pattern in patterns])

    return call
