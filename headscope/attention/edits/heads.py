"""Edits of whole heads: z, what a head puts out before the output projection."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from headscope.attention.sites import Site, Sites
from headscope.errors import RequestError

if TYPE_CHECKING:
    from headscope.attention.session import Session

Mode = Literal["zero", "mean", "resample", "scale", "affine"]
_VALUES = {"mean": 1, "resample": 2, "affine": 2}
"""Modes that need values, with their number of dimensions."""


def pairs(heads: Iterable[tuple[int, int]], kind: str) -> tuple[tuple[int, int], ...]:
    """Return (layer, head) pairs in order, each once; RequestError if there is none."""
    found = tuple(sorted({(int(layer), int(head)) for layer, head in heads}))
    if not found:
        raise RequestError(f"{kind} names no head: pass heads=[(layer, head), …].")
    return found


@dataclass(frozen=True)
class HeadEdit:
    """Change z, the output of whole heads before the output projection, at every position.

    Parameters
    ----------
    heads
        (layer, head) pairs.
    mode
        ``"zero"``: z becomes 0. ``"mean"``: z becomes ``values[layer, head]``, a vector (Dv,), the head's mean over
        reference data. ``"resample"``: z at position p of a prompt becomes a row of ``values[layer, head]``, a bank
        (N, Dv) of outputs on other data, drawn once for each position by ``seed``. ``"scale"``: z is multiplied by
        ``factor``; 1 is no edit. ``"affine"``: z becomes (1 + A) * z + v, with A and v the two rows of
        ``values[layer, head]`` (2, Dv).
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
        object.__setattr__(self, "heads", pairs(self.heads, "HeadEdit"))
        if self.mode not in get_args(Mode):
            raise RequestError(f"HeadEdit(mode={self.mode!r}): choose one of {', '.join(get_args(Mode))}.")
        if self.mode in _VALUES:
            missing = [pair for pair in self.heads if self.values is None or pair not in self.values]
            if missing:
                raise RequestError(f"HeadEdit(mode={self.mode!r}) has no values for heads {missing[:5]}: pass values=.")

    @property
    def neutral(self) -> bool:
        """Whether the edit changes nothing."""
        if self.mode == "affine":
            assert self.values is not None
            return not any(bool(torch.as_tensor(self.values[pair]).any()) for pair in self.heads)
        return self.mode == "scale" and self.factor == 1

    def validate(self, sites: Sites) -> None:
        """Raise RequestError if the model lacks a head, or a value has the wrong shape or is not finite."""
        sites.check_heads(self.heads, self.stack)
        if self.values is None or self.mode not in _VALUES:
            return
        stack = sites.stack(self.stack)
        for layer, head in self.heads:
            value = torch.as_tensor(self.values[layer, head])
            width = stack[layer].output_weight().shape[1]
            right = value.shape[-1:] == (width,) and value.dim() == _VALUES[self.mode]
            if not right or (self.mode == "affine" and len(value) != 2):
                shape = {"mean": "", "resample": "N, ", "affine": "2, "}[self.mode]
                raise RequestError(
                    f"HeadEdit values of head ({layer}, {head}) have shape {tuple(value.shape)}; "
                    f"{self.mode} takes ({shape}{width})."
                )
            if not torch.isfinite(value).all():
                raise RequestError(f"HeadEdit values of head ({layer}, {head}) are not finite.")

    def hooks(self, session: Session) -> list[Any]:
        """Install the edit in every layer it concerns; return the handles."""
        found = session.sites.stack(self.stack)
        return [self._hook(found[layer], session) for layer in sorted({layer for layer, _ in self.heads})]

    def _hook(self, site: Site, session: Session) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            places = session.places(site) if self.mode == "resample" else None
            return (self.apply(site, args[0], places), *args[1:])

        return site.output.register_forward_pre_hook(hook)

    def apply(self, site: Site, z: Tensor, places: Tensor | None = None) -> Tensor:
        """Return z (B, T, H·Dv) of one site with this edit's heads changed; ``places`` (B, T) says where rows stand."""
        heads = [head for layer, head in self.heads if layer == site.layer]
        edited = z.clone()
        split = edited.view(*z.shape[:-1], site.heads, -1)
        for head in heads:
            split[..., head, :] = self._value(site.layer, head, split[..., head, :], places)
        return edited

    def _value(self, layer: int, head: int, z: Tensor, places: Tensor | None) -> Tensor:
        if self.mode == "zero":
            return torch.zeros_like(z)
        if self.mode == "scale":
            return z * self.factor
        assert self.values is not None
        values = torch.as_tensor(self.values[layer, head]).to(z)
        if self.mode == "mean":
            return values.expand_as(z)
        if self.mode == "affine":
            return (1 + values[0]) * z + values[1]
        assert places is not None
        return values[draws(self.seed, layer, head, len(values), places).to(values.device)]


def draws(seed: int, layer: int, head: int, size: int, places: Tensor) -> Tensor:
    """Return which of ``size`` rows stands in at each place: the same for a place, whatever the call or the batch."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + layer * 4099 + head) & 0x7FFFFFFF)
    return torch.randint(size, (int(places.max()) + 1,), generator=generator)[places]
