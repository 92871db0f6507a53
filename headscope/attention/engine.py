"""The one attention function of every layer, and the session it serves.

Importing this module registers ``headscope`` with transformers, as an attention function and as a mask function (the
mask of PyTorch's SDPA: none at all where plain causal attention needs none). Outside a session the function is stock
SDPA, bit for bit; families that SDPA cannot serve (soft-cap, learned sinks) go through the row sweep.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from headscope.attention.session import Session
from headscope.errors import UnsupportedError
from headscope.kernels import reference
from headscope.kernels.dispatch import compute
from headscope.kernels.inputs import AttentionInputs
from headscope.kernels.rows import Wants

NAME = "headscope"
"""Name of the attention implementation: ``from_pretrained(..., attn_implementation=NAME)``."""

_SESSION: ContextVar[Session | None] = ContextVar("headscope_session", default=None)

_HONOURED = frozenset({"is_causal", "softcap", "s_aux", "position_bias"})
_HARMLESS = frozenset(
    {
        "sliding_window",  # the mask that comes with it says the same
        "position_ids",
        "cache_position",
        "position_embeddings",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "use_cache",
        "return_dict",
        "logits_to_keep",
        "num_items_in_batch",
        "past_key_values",
        "token_type_ids",
        "head_mask",
        "encoder_hidden_states",
        "encoder_attention_mask",
        "labels",
        "return_legacy_cache",
    }
)


@contextlib.contextmanager
def active(session: Session) -> Iterator[Session]:
    """Run the block under a session; the one before it comes back afterwards, also after an exception.

    One session at a time has its hooks in the model: a session inside another takes its place, edits included.
    """
    outer = _SESSION.get()
    if outer is not None:
        outer.remove()
    token = _SESSION.set(session)
    try:
        session.install()
        yield session
    finally:
        session.remove()
        _SESSION.reset(token)
        if outer is not None:
            outer.install()


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Serve one layer's attention call, as transformers makes it.

    Parameters
    ----------
    module
        The attention module; a session tells layers apart by it.
    query, key, value
        (B, H, Tq, D), (B, Hkv, Tk, D), (B, Hkv, Tk, Dv), after rotary embedding.
    attention_mask
        None, or boolean or additive, broadcastable to (B, H, Tq, Tk).

    Returns
    -------
    tuple
        The output (B, Tq, H, Dv), and None in place of weights.
    """
    session = _SESSION.get()
    site = session.concerns(module) if session is not None else None
    if site is not None and session is not None:
        inp = bind(module, query, key, value, attention_mask, scaling, kwargs)
        if dropout:
            raise UnsupportedError(
                "Attention dropout is on while attention is captured or edited: call model.hf.eval()."
            )
        gradients = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
        answer = session.attend(site, inp, gradients=gradients)
        if answer.out is not None:
            session.notice(site, answer, None)
            return session.tap(site, answer, answer.out).transpose(1, 2).contiguous(), None
        # Heads that no edit names keep the output of the fused kernel, bit for bit.
        out = _unedited(module, query, key, value, attention_mask, dropout, scaling, kwargs).transpose(1, 2)
        session.notice(site, answer, out)
        return session.tap(site, answer, answer.over(out)).transpose(1, 2), None
    return _unedited(module, query, key, value, attention_mask, dropout, scaling, kwargs), None


def _unedited(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    kwargs: dict[str, Any],
) -> Tensor:
    """Return the output (B, Tq, H, Dv) of the model as it is: SDPA's wherever SDPA can."""
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        inp = bind(module, query, key, value, attention_mask, scaling, kwargs)
        return _beyond_sdpa(inp, dropout).transpose(1, 2).contiguous()
    found: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
    )
    return found[0]


def _beyond_sdpa(inp: AttentionInputs, dropout: float) -> Tensor:
    """Attention with soft-cap or learned sinks, which SDPA does not know; differentiable when gradients are on."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in (inp.q, inp.k, inp.v)):
        if dropout:
            raise UnsupportedError("Attention dropout with soft-cap or learned sinks is not available: set it to 0.")
        return reference.attend(inp)
    out = compute(inp, Wants(out=True)).out
    assert out is not None
    return out


def bind(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    kwargs: dict[str, Any],
) -> AttentionInputs:
    """Return the call as kernels take it.

    Raises
    ------
    UnsupportedError
        If the family passes something that would change its attention and is not honoured here.
    """
    for name, extra in kwargs.items():
        if name not in _HONOURED and name not in _HARMLESS and isinstance(extra, Tensor):
            raise UnsupportedError(
                f"{type(module).__name__} passes {name}= to its attention, which headscope does not honour: "
                "statistics and edits of this model would be wrong. Run it without capture or edits."
            )
    if kwargs.get("cache") is not None:
        raise UnsupportedError("Paged caches (continuous batching) are not served: use the default cache.")
    tq, tk = query.shape[2], key.shape[2]
    flag = kwargs.get("is_causal")
    causal = tq > 1 and mask is None and bool(getattr(module, "is_causal", True) if flag is None else flag)
    bias = kwargs.get("position_bias")
    if causal and tk > tq:  # an empty static cache beyond the prompt
        key, value, tk = key[:, :, :tq], value[:, :, :tq], tq
        bias = None if bias is None else bias[..., :tq]
    if mask is not None and mask.shape[-1] > tk:
        mask = mask[..., :tk]
    return AttentionInputs(
        q=query,
        k=key,
        v=value,
        scale=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        mask=mask,
        bias=bias,
        causal=causal,
        softcap=kwargs.get("softcap"),
        sinks=kwargs.get("s_aux"),
    )


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
