"""Keys that are found while the model runs: in the prefill, and kept for the decoding steps after it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headscope.attention.edits.call import Call
from headscope.errors import RequestError
from headscope.kernels.dispatch import compute
from headscope.kernels.inputs import AttentionInputs
from headscope.kernels.rows import Wants

if TYPE_CHECKING:
    from headscope.attention.session import Session


def _grown(held: Tensor, call: Call) -> Tensor:
    """Return a mask of the prefill's keys for the keys of this call: new keys are in no group."""
    if held.shape[0] not in (1, call.inp.batch):  # answers to one prompt, branched off after the prefill
        held = held.repeat_interleave(call.inp.batch // held.shape[0], 0)
    more = call.length - held.shape[-1]
    if more > 0:
        held = torch.nn.functional.pad(held, (0, more))
    return held[..., call.key_start : call.key_start + call.inp.tk]


@dataclass(frozen=True)
class ColumnSinks:
    """Keys that a head attends to on average, over all queries that can see them (ACT's sinks).

    Parameters
    ----------
    threshold
        Least mean attention of a sink.
    skip_first
        Leave out the first sink of each head, most often the first token.
    """

    threshold: float = 0.1
    skip_first: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise RequestError(f"ColumnSinks(threshold={self.threshold!r}): a share between 0 and 1 is needed.")

    def find(self, call: Call, heads: Tensor) -> Tensor:
        """Return the sinks of the heads (H,) boolean, boolean (B, H, Tk)."""
        slot = (call.owner, "sinks", call.site.layer, self)
        if slot not in call.memory:
            call.memory[slot] = self._found(call, heads)
        return _grown(call.memory[slot], call)

    @torch.no_grad()  # which keys are sinks is no function to differentiate
    def _found(self, call: Call, heads: Tensor) -> Tensor:
        chosen = heads.nonzero().flatten()
        part, real = call.inp.select(chosen), call.real_rows()
        if real is None:
            received = compute(part, Wants(received=True)).received
        else:
            grouped = compute(part, Wants(groups=real[:, None].to(part.q.dtype))).grouped
            received = None if grouped is None else grouped[:, :, 0]
        assert received is not None
        seen = _seen(part, real)
        mean = received / seen.clamp(min=1)
        sinks = (mean > self.threshold) & (seen > 0)
        if self.skip_first:
            sinks &= sinks.cumsum(-1) > 1
        found = torch.zeros(call.inp.batch, call.inp.heads, call.length, dtype=torch.bool, device=sinks.device)
        found[:, chosen, call.key_start :] = sinks
        return found


def _seen(inp: AttentionInputs, real: Tensor | None) -> Tensor:
    """Return how many (real) queries can see each key, (B or 1, 1, Tk)."""
    if inp.mask is not None:
        mask = inp.mask if inp.mask.dtype == torch.bool else inp.mask > torch.finfo(inp.mask.dtype).min / 2
        mask = mask[:, :1].expand(-1, -1, inp.tq, inp.tk)
        if real is not None:
            mask = mask & real[:, None, :, None]
        return mask.sum(-2)
    rows = torch.ones(1, inp.tq, device=inp.q.device) if real is None else real.float()
    if not inp.causal:
        return rows.sum(-1)[:, None, None].expand(-1, 1, inp.tk)
    from_here_on = rows.flip(-1).cumsum(-1).flip(-1)
    early = from_here_on[:, :1].expand(-1, inp.offset)
    return torch.cat([early, from_here_on], dim=-1)[:, None]


@dataclass(frozen=True)
class ResidualPeaks:
    """Tokens whose residual stream, normalised to a root mean square of 1, peaks in known dimensions.

    Found once for each layer at its input (VAR's sinks), with massive dimensions such as those that
    ``headscope.interventions.sink_dimensions`` learns.

    Parameters
    ----------
    dimensions
        Dimensions of the residual stream.
    threshold
        Least absolute value of a peak.
    within, outside
        Only tokens inside, or outside, this region.
    """

    dimensions: tuple[int, ...]
    threshold: float = 20.0
    within: str | None = None
    outside: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "dimensions", tuple(int(d) for d in self.dimensions))
        if not self.dimensions or not (math.isfinite(self.threshold) and self.threshold > 0):
            raise RequestError("ResidualPeaks needs at least one dimension and a positive threshold.")

    def find(self, call: Call, heads: Tensor) -> Tensor:
        """Return the tokens found, boolean (B, 1, Tk)."""
        peaks: Tensor = call.memory[self._slot(call.site.layer)]
        found = _grown(peaks[:, None], call)
        if self.within is not None:
            found = found & call.mask((self.within,))
        if self.outside is not None:
            found = found & ~call.mask((self.outside,))
        return found

    def _slot(self, layer: int) -> tuple[Any, ...]:
        return ("peaks", self.dimensions, self.threshold, layer)

    def watch(self, session: Session, layers: set[int], stack: str | None) -> list[Any]:
        """Install hooks that look at the inputs of layers; return the handles."""
        found = session.sites.stack(stack)
        new = [layer for layer in sorted(layers) if self._slot(layer) not in session.memory]
        return [self._hook(session, found[layer].block, layer) for layer in new]

    def _hook(self, session: Session, block: nn.Module, layer: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._slot(layer) in session.memory:
                return
            x = (args[0] if args else kwargs["hidden_states"]).detach().float()
            if max(self.dimensions) >= x.shape[-1]:
                raise RequestError(
                    f"ResidualPeaks: dimension {max(self.dimensions)} is outside the residual stream of width "
                    f"{x.shape[-1]}."
                )
            scale = x.pow(2).mean(-1).sqrt().clamp(min=1e-12)
            session.memory[self._slot(layer)] = x[..., list(self.dimensions)].abs().amax(-1) > self.threshold * scale

        return block.register_forward_pre_hook(hook, with_kwargs=True)


Finder = ColumnSinks | ResidualPeaks
