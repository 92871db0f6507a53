"""One forward pass: from what the user gives to tensors, contexts, and labelled results."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor

from headscope.attention import budget
from headscope.attention import requests as ask
from headscope.attention.context import Context
from headscope.attention.engine import active
from headscope.attention.result import Run, Stat, label
from headscope.attention.session import Session
from headscope.attention.tiles import QKStore
from headscope.errors import PromptError, RequestError, WeightsError
from headscope.models.batch import Batch, Side
from headscope.models.prompt import Prompt

if TYPE_CHECKING:
    from headscope.attention.collect import Collector
    from headscope.models.model import Model

Logits: TypeAlias = bool | int | Literal["last"]
"""Which logits to compute: of all positions, of none, of the last n, or of the last one."""

Inputs: TypeAlias = "Prompt | Batch | Sequence[Prompt | str] | str | Mapping[str, Tensor]"
"""What a model runs on."""

_SEQUENCES = ("decoder_input_ids", "input_ids", "input_features", "pixel_values")


@dataclass
class Prepared:
    """Tensors for the model with the contexts of its stacks."""

    tensors: dict[str, Tensor]
    contexts: dict[str, Context]
    prompts: tuple[Prompt, ...] = ()
    given: Any = None

    @property
    def batch(self) -> int:
        """B."""
        return next(iter(self.tensors.values())).shape[0]

    @property
    def length(self) -> int:
        """Tokens of the default stack: the decoder's, else the encoder's; 1 for images and audio."""
        for name in ("decoder_input_ids", "input_ids"):
            if name in self.tensors:
                return self.tensors[name].shape[1]
        return 1


def prepare(model: Model, given: Inputs, side: Side = "left") -> Prepared:
    """Return tensors and contexts for whatever the user gave.

    Raises
    ------
    PromptError
        If it is longer than the model's context, or not something a model runs on.
    """
    if isinstance(given, Mapping):
        return _from_tensors(model, given)
    if isinstance(given, str):
        given = Prompt.from_text(model._need_tokenizer(), given)
    if isinstance(given, Prompt):
        batch = model.batch([given])
    elif isinstance(given, Batch):
        batch = given
    elif given:
        batch = model.batch(given, side)
    else:
        raise PromptError("Nothing to run: pass a prompt, a non-empty list of prompts, a batch, text, or tensors.")
    _check_length(model, batch.width)
    tensors = {"input_ids": batch.ids.to(model.device)}
    padded = bool((batch.attention_mask == 0).any())
    if padded:
        tensors["attention_mask"] = batch.attention_mask.to(model.device)
        if _takes(model.hf, "position_ids") and not _encoder_decoder(model):
            tensors["position_ids"] = batch.position_ids.to(model.device)
    names = {name for prompt in batch.prompts for name in prompt.regions}
    shared = [name for name in names if all(name in prompt.regions for prompt in batch.prompts)]
    regions = {name: [list(p) for p in batch.regions(name)] for name in shared}
    prepared = _from_tensors(model, tensors, regions)
    prepared.prompts, prepared.given = batch.prompts, given
    return prepared


def _from_tensors(
    model: Model, given: Mapping[str, Any], regions: dict[str, list[list[int]]] | None = None
) -> Prepared:
    tensors = {name: x.to(model.device) for name, x in given.items() if isinstance(x, Tensor)}
    if not any(name in tensors for name in _SEQUENCES):
        raise PromptError(f"Tensors to run need one of {', '.join(_SEQUENCES)}; got {sorted(given)}.")
    batch = next(tensors[name] for name in _SEQUENCES if name in tensors).shape[0]
    if _encoder_decoder(model) and "decoder_input_ids" not in tensors:
        start = model.hf.config.decoder_start_token_id
        start = model.hf.generation_config.decoder_start_token_id if start is None else start
        tensors["decoder_input_ids"] = torch.full((batch, 1), start or 0, device=model.device)
    for name in ("decoder_input_ids", "input_ids"):
        if name in tensors:
            _check_length(model, tensors[name].shape[1])
    regions = regions if regions is not None else {"bos": [[0]] * batch}
    mask = _validity(tensors.get("attention_mask"))
    own = Context(batch, regions=regions, valid=mask)
    if not _encoder_decoder(model):
        if "input_ids" in tensors:
            own.total = tensors["input_ids"].shape[1]
        return Prepared(tensors, dict.fromkeys(model.spec.stacks, own))
    target = _validity(tensors.get("decoder_attention_mask"))
    start_region = {"bos": [[0]] * batch}
    contexts = {
        "encoder": own,
        "decoder": Context(batch, regions=start_region, valid=target, total=tensors["decoder_input_ids"].shape[1]),
        "cross": Context(batch, regions=regions, valid=target, key_valid=mask),
    }
    return Prepared(tensors, contexts)


def _validity(mask: Tensor | None) -> Tensor | None:
    return None if mask is None or mask.dim() != 2 or bool(mask.all()) else mask.bool()


def _encoder_decoder(model: Model) -> bool:
    return bool(model.hf.config.is_encoder_decoder)


def _takes(module: Any, name: str) -> bool:
    return name in inspect.signature(module.forward).parameters


def _check_length(model: Model, length: int) -> None:
    limit = model.spec.n_ctx
    if limit is not None and length > limit:
        raise PromptError(
            f"The prompt has {length} tokens; the context of {model.name} holds {limit}. Shorten it, or build it with "
            "model.prompt(…, max_length=…, truncate='left')."
        )
    if length < 1:
        raise PromptError("The prompt has no token.")


def run(model: Model, given: Inputs, capture: Sequence[ask.Request], *, logits: Logits, side: Side) -> Run:
    """See ``Model.run``."""
    prepared = prepare(model, given, side)
    session = Session(model.sites, bound(capture, prepared), model.edits, prepared.contexts)
    if session.backwards:
        found = _backwards(model, prepared, session, logits)
    else:
        check_budget(model, prepared, session, logits)
        with torch.no_grad(), active(session):
            found = forward(model, prepared.tensors, logits)
    session.check_visited()
    session.warn_of_nothing()
    return Run(
        stats(session, prepared),
        logits=found,
        prompt=prepared.given if prepared.given is not None else given,
        qk={key: QKStore(layers) for key, layers in session.stored.items()},
        model=model,
    )


def _backwards(model: Model, prepared: Prepared, session: Session, logits: Logits) -> Tensor | None:
    """Run forwards and backwards, for requests of gradients; return the logits that are wanted."""
    targets = {c.request.target for c in session.collectors if isinstance(c.request, ask.GradReceived)}
    if len(targets) > 1:
        raise RequestError("GradReceived requests of one run have one target: give them the same function.")
    if model.spec.unembed is None:
        raise RequestError(f"GradReceived needs a target of the logits, and {model.name} has none.")
    (target,) = targets
    mask = prepared.tensors.get("attention_mask")
    last = target is None and (mask is None or bool(mask[:, -1].all())) and logits in (False, "last")
    needed: Logits = "last" if last else True
    check_budget(model, prepared, session, needed)
    with torch.enable_grad(), active(session):
        found = forward(model, prepared.tensors, needed)
        assert found is not None
        value = _likeliest(found, mask) if target is None else target(found)
        if not isinstance(value, Tensor) or value.dim() > 1:
            raise RequestError(
                "GradReceived(target=…): the function returns one number, or one per sample, as a tensor."
            )
        session.read_gradients(value.sum())
    keep = _kept(logits)
    return None if logits is False else found[:, -keep:].detach() if keep else found.detach()


def _likeliest(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Return the log-probability of each sample's likeliest token behind its last real one (B,)."""
    last = torch.full((len(logits),), logits.shape[1] - 1, device=logits.device)
    if mask is not None and mask.shape[-1] == logits.shape[1]:
        last = last - mask.flip(-1).int().argmax(-1)
    return logits[torch.arange(len(logits), device=logits.device), last].float().log_softmax(-1).amax(-1)


def bound(capture: Sequence[ask.Request], prepared: Prepared) -> list[ask.Request]:
    """Return the requests with keys that are a function of the prompt worked out: ``Lookup(keys=function)``."""
    done: dict[int, ask.Request] = {}
    for request in capture:
        if isinstance(request, ask.Lookup) and callable(request.keys) and id(request) not in done:
            if len(prepared.prompts) != 1:
                raise RequestError(
                    f"{request.key!r} looks up keys that depend on the prompt: run one prompt at a time, not "
                    f"{len(prepared.prompts) or 'tensors'}."
                )
            done[id(request)] = replace(request, keys=request.keys(prepared.prompts[0]))
    return [done.get(id(request), request) for request in capture]


def forward(model: Model, tensors: dict[str, Tensor], logits: Logits, **kwargs: Any) -> Tensor | None:
    """Run the transformers model and return its logits, if it has a language-model head and they are wanted."""
    hf = model.hf
    if _takes(hf, "use_cache"):
        kwargs.setdefault("use_cache", False)
    has_head = model.spec.unembed is not None
    if logits is False and has_head and hf.base_model is not hf:
        check_finite(model, hf.base_model(**tensors, **kwargs).last_hidden_state)
        return None
    keep = _kept(logits)
    if keep and _takes(hf, "logits_to_keep"):
        kwargs["logits_to_keep"] = keep
    output = hf(**tensors, **kwargs)
    found: Tensor | None = getattr(output, "logits", None)
    if found is None or logits is False:
        return None
    found = found[:, -keep:] if keep and found.dim() == 3 else found
    check_finite(model, found)
    return found


def _kept(logits: Logits) -> int:
    """Return how many last positions' logits are wanted; 0 for all of them."""
    return 0 if isinstance(logits, bool) else 1 if logits == "last" else max(1, int(logits))


def check_finite(model: Model, output: Tensor) -> None:
    """Raise WeightsError if logits, or final hidden states, are not finite at the last position."""
    if not bool(torch.isfinite(output[:, -1]).all()):
        raise WeightsError(
            f"{model.name} gives an output that is not finite. Its weights may be damaged, or {model.dtype} too "
            "narrow: try dtype='float32'."
        )


def check_budget(model: Model, prepared: Prepared, session: Session, logits: Logits) -> int:
    """Estimate peak memory in bytes; raise MemoryBudgetError if it is more than there is."""
    batch, spec = prepared.batch, model.spec
    target, source = prepared.length, prepared.length
    if _encoder_decoder(model) and "input_ids" in prepared.tensors:
        source = prepared.tensors["input_ids"].shape[1]
    if prepared.length == 1 and model.sites.default in ("vision", "encoder"):
        target = source = _positions(model)
    width = torch.finfo(model.dtype).bits // 8
    positions = 0 if logits is False else min(_kept(logits) or target, target)
    streams = batch * target * (4 * spec.d_model + 2 * spec.d_mlp) * width
    if session.backwards:  # every layer's activations are kept for the way back
        streams *= 2 * spec.n_layers
    base = batch * positions * (spec.vocab_size or 0) * 4 + streams
    lengths = {"encoder": (source, source), "cross": (target, source)}
    sized = [(c, *lengths.get(c.stack, (target, target))) for c in session.collectors]
    return budget.check(sized, model.sites, batch, target, base)


def _positions(model: Model) -> int:
    """Positions of a vision or audio encoder, for the estimate alone."""
    config = model.hf.config
    patch, image = getattr(config, "patch_size", None), getattr(config, "image_size", None)
    if isinstance(patch, int) and isinstance(image, int):
        return (image // patch) ** 2 + 1
    return int(getattr(config, "max_source_positions", 0) or model.spec.n_ctx or 1)


def stats(session: Session, prepared: Prepared) -> dict[str, Stat]:
    """Label everything a session collected."""
    return {key: stat for collector in session.collectors for key, stat in _label(collector, session, prepared)}


def _label(collector: Collector, session: Session, prepared: Prepared) -> list[tuple[str, Stat]]:
    request = collector.request
    context = prepared.contexts[collector.stack]
    axes: dict[str, Sequence[Any]] = {}
    tokens: dict[str, Sequence[str]] = {}
    if isinstance(request, ask.Mass):
        axes["region"] = [r if isinstance(r, str) else r[0] for r in request.regions]
    if isinstance(request, ask.Received) and request.groups is not None:
        axes["group"] = list(request.groups)
    names = prepared.prompts[0].tokens if len(prepared.prompts) == 1 else None
    texts = {"encoder": names, "decoder": names, "cross": names}
    if "decoder" in prepared.contexts and "encoder" in prepared.contexts:
        texts["decoder"] = None  # a string prompt is the encoder's text
    out = []
    for key, values in collector.arrays.items():
        sizes = dict(zip(collector.dims(), values.shape, strict=True))
        if "query" in sizes and prepared.batch == 1:
            length = context.valid.shape[1] if context.valid is not None else (context.total or sizes["query"])
            chosen = context.queries(request.queries, max(length, sizes["query"]))
            axes["query"] = list(range(sizes["query"])) if chosen is None else chosen[0].tolist()
            text = texts.get(collector.stack) if collector.stack != "cross" else None
            if text is not None and max(axes["query"]) < len(text):
                tokens["query"] = [text[i] for i in axes["query"]]
        text = texts.get(collector.stack)
        if "key" in sizes and text is not None and len(text) == sizes["key"]:
            tokens["key"] = text
        stat = label(
            key, values, collector.dims(), layers=collector.layers, pairs=collector.pairs, axes=axes, tokens=tokens
        )
        out.append((key, stat))
    return out
