"""Edits of a running model, as data: heads whose output is changed, heads from which keys are hidden."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from headscope.attention.sites import Site, Sites
from headscope.errors import RequestError

Mode = Literal["zero", "mean", "resample", "scale"]


def _pairs(heads: Iterable[tuple[int, int]], kind: str) -> tuple[tuple[int, int], ...]:
    pairs = tuple(sorted({(int(layer), int(head)) for layer, head in heads}))
    if not pairs:
        raise RequestError(f"{kind} names no head: pass heads=[(layer, head), …].")
    return pairs


@dataclass(frozen=True)
class HeadEdit:
    """Change z, the output of whole heads before the output projection, at every position.

    Parameters
    ----------
    heads
        (layer, head) pairs.
    mode
        ``"zero"``: z becomes 0. ``"mean"``: z becomes ``values[layer, head]``, a vector (Dv,), the head's mean over
        reference data. ``"resample"``: z at absolute position p becomes a row of ``values[layer, head]``, a bank
        (N, Dv) of outputs on other data, drawn once for each position by ``seed``. ``"scale"``: z is multiplied by
        ``factor``; 1 is no edit.
    values, factor, seed
        As ``mode`` asks.
    stack
        Which attention; the model's own by default.
    """

    heads: tuple[tuple[int, int], ...]
    mode: Mode = "zero"
    values: Mapping[tuple[int, int], Any] | None = field(default=None, compare=False)
    factor: float = 1.0
    seed: int = 0
    stack: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", _pairs(self.heads, "HeadEdit"))
        if self.mode not in ("zero", "mean", "resample", "scale"):
            raise RequestError(f"HeadEdit(mode={self.mode!r}): choose zero, mean, resample or scale.")
        if self.mode in ("mean", "resample"):
            missing = [pair for pair in self.heads if self.values is None or pair not in self.values]
            if missing:
                raise RequestError(f"HeadEdit(mode={self.mode!r}) has no values for heads {missing[:5]}: pass values=.")

    def apply(self, site: Site, z: Tensor, start: int) -> Tensor:
        """Return z (B, T, H·Dv) of one site with this edit's heads changed; ``start`` is T's first position."""
        heads = [head for layer, head in self.heads if layer == site.layer]
        edited = z.clone()
        split = edited.view(*z.shape[:-1], site.heads, -1)
        for head in heads:
            split[..., head, :] = self._value(site.layer, head, split[..., head, :], start)
        return edited

    def _value(self, layer: int, head: int, z: Tensor, start: int) -> Tensor:
        if self.mode == "zero":
            return torch.zeros_like(z)
        if self.mode == "scale":
            return z * self.factor
        assert self.values is not None
        values = torch.as_tensor(self.values[layer, head]).to(z)
        if self.mode == "mean":
            return values.expand_as(z)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + layer * 4099 + head) & 0x7FFFFFFF)
        draws = torch.randint(len(values), (start + z.shape[-2],), generator=generator)
        return values[draws[start:].to(values.device)].expand_as(z)


@dataclass(frozen=True)
class KnockOut:
    """Hide keys from heads: their attention to ``regions`` becomes 0 and the rest of each row is renormalised.

    Rows that would see nothing keep their attention: what has no other key is not edited.

    Parameters
    ----------
    heads
        (layer, head) pairs.
    regions
        Names of regions of the prompt, and key positions.
    stack
        Which attention; the model's own by default.
    """

    heads: tuple[tuple[int, int], ...]
    regions: tuple[str | int, ...]
    stack: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", _pairs(self.heads, "KnockOut"))
        given: object = self.regions
        regions = (given,) if isinstance(given, (str, int)) else tuple(self.regions)
        if not regions:
            raise RequestError("KnockOut hides nothing: pass regions=, names of regions or key positions.")
        object.__setattr__(self, "regions", regions)


Edit = HeadEdit | KnockOut


def validate(edits: Iterable[Edit], sites: Sites) -> None:
    """Raise RequestError if an edit names a head that the model has not, or carries values of the wrong width."""
    for edit in edits:
        sites.check_heads(edit.heads, edit.stack)
        if isinstance(edit, HeadEdit) and edit.values is not None and edit.mode in ("mean", "resample"):
            stack = sites.stack(edit.stack)
            for layer, head in edit.heads:
                value = torch.as_tensor(edit.values[layer, head])
                width = stack[layer].output_weight().shape[1]
                if value.shape[-1] != width or value.dim() != (1 if edit.mode == "mean" else 2):
                    raise RequestError(
                        f"HeadEdit values of head ({layer}, {head}) have shape {tuple(value.shape)}; "
                        f"{edit.mode} takes ({'' if edit.mode == 'mean' else 'N, '}{width})."
                    )
                if not torch.isfinite(value).all():
                    raise RequestError(f"HeadEdit values of head ({layer}, {head}) are not finite.")
