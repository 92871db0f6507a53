"""Generation: token by token with every step's attention captured, or by transformers' own ``generate``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from headscope.attention import requests as ask
from headscope.attention.engine import active
from headscope.attention.plan import dimensions
from headscope.attention.result import Stat, Trace, label
from headscope.attention.session import Session
from headscope.errors import PromptError, RequestError
from headscope.models.forward import Inputs, Prepared, check_budget, check_finite, prepare
from headscope.models.prompt import Prompt

if TYPE_CHECKING:
    from headscope.attention.collect import Array
    from headscope.models.model import Model


def trace(
    model: Model,
    prompt: Prompt | str,
    capture: Sequence[ask.Request],
    *,
    max_new_tokens: int,
    stop: str | Callable[[str], bool] | None,
    teacher: Sequence[int] | None,
) -> Trace:
    """See ``Model.trace``."""
    requests = [_of_last_row(request) for request in capture]
    prepared = prepare(model, prompt)
    if prepared.batch != 1:
        raise PromptError("trace() follows one prompt at a time: pass one, or use run() for a batch.")
    if teacher is not None:
        max_new_tokens = len(teacher)
    if max_new_tokens < 1:
        raise RequestError("trace() needs max_new_tokens of at least 1, or teacher tokens.")
    limit = model.spec.n_ctx
    if limit is not None and prepared.length + max_new_tokens - 1 > limit:
        raise PromptError(
            f"{prepared.length} prompt tokens and {max_new_tokens} new ones pass the context of {limit}. "
            "Shorten the prompt or lower max_new_tokens."
        )
    for context in prepared.contexts.values():
        context.prompt_length = prepared.length
    steps, tokens, logits = _decode(model, prepared, requests, max_new_tokens, stop, teacher)
    text = _text(model, tokens)
    return Trace(
        _join(steps, prepared, [*_names(prepared), *(_text(model, [t]) for t in tokens)]),
        logits=torch.cat(logits, dim=1),
        prompt=prepared.given if prepared.given is not None else prompt,
        tokens=tokens,
        text=text,
    )


def _of_last_row(request: ask.Request) -> ask.Request:
    if "query" not in dimensions(request):
        raise RequestError(f"trace() captures rows; {type(request).__name__} is about keys. Ask for it in run().")
    if request.queries not in (None, "last"):
        raise RequestError(f"trace() captures the row that produced each token: leave out queries={request.queries!r}.")
    return replace(request, queries="last")


def _decode(
    model: Model,
    prepared: Prepared,
    requests: list[ask.Request],
    count: int,
    stop: str | Callable[[str], bool] | None,
    teacher: Sequence[int] | None,
) -> tuple[list[Session], list[int], list[Tensor]]:
    tensors = dict(prepared.tensors)
    extra: dict[str, Any] = {"use_cache": True}
    if "logits_to_keep" in model.hf.forward.__code__.co_varnames:
        extra["logits_to_keep"] = 1
    ends = end_tokens(model)
    steps: list[Session] = []
    tokens: list[int] = []
    logits: list[Tensor] = []
    memory: dict[Any, Any] = {}
    for step in range(count):
        session = Session(model.sites, requests, model.edits, prepared.contexts, memory)
        if step == 0:
            check_budget(model, prepared, session, "last")
        with torch.no_grad(), active(session):
            output = model.hf(**tensors, **extra)
        if step == 0:
            session.check_visited()
        if getattr(output, "logits", None) is None or "past_key_values" not in output:
            raise RequestError(f"{model.name} has no language-model head to generate with: use run().")
        last = output.logits[:, -1:].float()
        check_finite(model, last)
        steps.append(session)
        logits.append(last.cpu())
        token = int(last.argmax()) if teacher is None else int(teacher[step])
        tokens.append(token)
        if teacher is None and (token in ends or _stopped(stop, _text(model, tokens))):
            break
        tensors = _next(prepared, tensors, token, output, extra)
    steps[-1].warn_of_nothing()
    return steps, tokens, logits


def _next(
    prepared: Prepared, tensors: dict[str, Tensor], token: int, output: Any, extra: dict[str, Any]
) -> dict[str, Tensor]:
    """Return the tensors of the next step, and move the contexts on by one token."""
    extra["past_key_values"] = output.past_key_values
    ids = next(iter(tensors.values())).new_full((1, 1), token, dtype=torch.int64)
    if "encoder_last_hidden_state" in output:
        from transformers.modeling_outputs import BaseModelOutput

        extra["encoder_outputs"] = BaseModelOutput(last_hidden_state=output.encoder_last_hidden_state)
        prepared.contexts["decoder"].total = (prepared.contexts["decoder"].total or 0) + 1
        kept = {name: x for name, x in tensors.items() if name == "attention_mask"}
        return {"decoder_input_ids": ids, **kept}
    context = next(iter(prepared.contexts.values()))
    context.total = (context.total or 0) + 1
    return {"input_ids": ids}


def end_tokens(model: Model) -> set[int]:
    """Return the ids that end a generation."""
    found = getattr(model.hf.generation_config, "eos_token_id", None)
    ends = set(found if isinstance(found, (list, tuple)) else [found])
    ends.add(getattr(model.tokenizer, "eos_token_id", None))
    return {int(end) for end in ends if end is not None}


def _stopped(stop: str | Callable[[str], bool] | None, text: str) -> bool:
    return stop is not None and (stop in text if isinstance(stop, str) else bool(stop(text)))


def _text(model: Model, tokens: list[int]) -> str:
    if model.tokenizer is None:
        return ""
    return str(model.tokenizer.decode(tokens, skip_special_tokens=True))


def _names(prepared: Prepared) -> list[str]:
    return prepared.prompts[0].tokens if prepared.prompts else [""] * prepared.length


def _join(steps: list[Session], prepared: Prepared, names: list[str]) -> dict[str, Stat]:
    """Put the steps' arrays side by side; shorter rows of keys are filled with NaN (positions: −1)."""
    out: dict[str, Stat] = {}
    for members in zip(*(session.collectors for session in steps), strict=True):
        first = members[0]
        dims = first.dims()
        axes: dict[str, Sequence[Any]] = {}
        if isinstance(first.request, ask.Mass):
            axes["region"] = [r if isinstance(r, str) else r[0] for r in first.request.regions]
        for key in first.arrays:
            arrays = [member.arrays[key] for member in members]
            if "key" in dims:
                arrays = _level(arrays, dims.index("key"))
            values = np.concatenate(arrays, axis=dims.index("query"))
            named = tuple("step" if d == "query" else d for d in dims)
            tokens: dict[str, Sequence[str]] = {}
            if first.stack == "decoder" and "encoder" not in prepared.contexts:
                tokens["step"] = names[prepared.length : prepared.length + len(steps)]
                if "key" in dims:
                    tokens["key"] = names[: values.shape[dims.index("key")]]
            out[key] = label(key, values, named, layers=first.layers, pairs=first.pairs, axes=axes, tokens=tokens)
    return out


def _level(arrays: list[Array], axis: int) -> list[Array]:
    width = max(array.shape[axis] for array in arrays)
    out = []
    for array in arrays:
        pad = [(0, 0)] * array.ndim
        pad[axis] = (0, width - array.shape[axis])
        fill: float = np.nan if array.dtype.kind == "f" else -1
        out.append(np.pad(array, pad, constant_values=fill))
    return out


def generate(model: Model, given: Inputs, *, max_new_tokens: int, **kwargs: Any) -> str | list[str]:
    """See ``Model.generate``."""
    prepared = prepare(model, given)
    model._need_tokenizer()
    ids = prepared.tensors.get("input_ids")
    tensors = {name: x for name, x in prepared.tensors.items() if name not in ("position_ids", "decoder_input_ids")}
    if ids is not None and "attention_mask" not in tensors:
        tensors["attention_mask"] = torch.ones_like(ids)
    session = Session(model.sites, edits=model.edits, contexts=prepared.contexts)
    own = prepared.contexts[model.sites.default]
    if "encoder" not in prepared.contexts:
        own.prompt_length = prepared.length

    def count(module: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        mask = named.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 2 and "encoder" not in prepared.contexts:
            own.total = mask.shape[1]  # transformers extends it by each new token

    handle = model.hf.register_forward_pre_hook(count, with_kwargs=True)
    try:
        with torch.no_grad(), active(session):
            pad = getattr(model.tokenizer, "pad_token_id", None)
            kwargs.setdefault("pad_token_id", pad if pad is not None else min(end_tokens(model), default=0))
            kwargs.setdefault("do_sample", False)
            found = model.hf.generate(**tensors, max_new_tokens=max_new_tokens, **kwargs)
        session.warn_of_nothing()
    finally:
        handle.remove()
    skip = 0 if ids is None or model.hf.config.is_encoder_decoder else ids.shape[1]
    texts = [str(t) for t in model.tokenizer.batch_decode(found[:, skip:], skip_special_tokens=True)]
    single = isinstance(given, (Prompt, str)) and len(texts) == 1
    return texts[0] if single else texts
