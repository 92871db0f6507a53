"""Rotary positions as they are in a loaded model: found by trying, layer by layer."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headscope.attention.session import Session
from headscope.errors import UnsupportedError

if TYPE_CHECKING:
    from headscope.models.model import Model


@dataclass(frozen=True, eq=False)
class Rotation:
    """How one layer turns queries and keys with their position.

    Parameters
    ----------
    frequencies
        Radians per position (m,), float64; all 0 where the layer knows no positions.
    first, second
        The two dimensions of each of the m planes.
    """

    frequencies: Tensor
    first: Tensor
    second: Tensor

    def turn(self, x: Tensor, by: Tensor) -> Tensor:
        """Rotate x (…, D) by ``by`` positions, broadcastable to x without its last dimension."""
        angle = by[..., None].double() * self.frequencies.to(x.device)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        a, b = x[..., self.first], x[..., self.second]
        turned = x.expand(*torch.broadcast_shapes(x.shape[:-1], by.shape), x.shape[-1]).clone()
        turned[..., self.first] = a * cos - b * sin
        turned[..., self.second] = b * cos + a * sin
        return turned


_ROTATIONS: weakref.WeakKeyDictionary[Any, tuple[Rotation, ...]] = weakref.WeakKeyDictionary()


def rotations(model: Model) -> tuple[Rotation, ...]:
    """Return how each layer rotates, found by trying: one token, read at three positions.

    A token alone attends to itself wherever it stands, so every layer gets the same input and its keys differ by the
    rotation alone. A layer's keys must be those at position 0 turned by one of the model's own tables of frequencies.

    Raises
    ------
    UnsupportedError
        If a layer's keys do anything else.
    """
    if model in _ROTATIONS:
        return _ROTATIONS[model]
    kinds = {"causal" if layer.causal else "bidirectional" for layer in model.spec.layers()}
    kinds |= {"linear" for layer in model.spec.layers() if layer.attention == "linear"} | set(model.spec.stacks)
    if kinds != {"causal", "decoder"}:
        raise UnsupportedError(
            f"PINE serves causal text models with softmax attention; {model.name} has {', '.join(sorted(kinds))}."
        )
    positions = sorted({0, 1, min(37, (model.spec.n_ctx or 64) - 1)})
    keys = _keys_at(model, positions)
    tables = _tables(model)
    found = []
    for layer in model.spec.layers():
        k = keys[layer.index]
        match = next((r for r in _candidates(tables, k.shape[-1]) if _explains(r, k, positions)), None)
        if match is None:
            raise UnsupportedError(
                f"PINE needs rotary positions: the keys of layer {layer.index} of {model.name} ({model.spec.family}) "
                "do not turn with their position by any table of frequencies that the model holds."
            )
        found.append(match)
    _ROTATIONS[model] = tuple(found)
    return _ROTATIONS[model]


def _keys_at(model: Model, positions: list[int]) -> dict[int, Tensor]:
    """Return the keys (positions, Hkv, D) of one token read at each position, per layer, without any edit in force."""
    from headscope.attention.engine import active
    from headscope.attention.requests import QK

    token = 5 % (model.spec.vocab_size or 6)
    ids = torch.full((len(positions), 1), token, device=model.device)
    session = Session(model.sites, [QK()])
    with torch.no_grad(), active(session):
        model.hf(input_ids=ids, position_ids=torch.tensor(positions, device=model.device)[:, None], use_cache=False)
    return {layer: inp.k[:, :, 0] for layer, inp in session.stored["qk"].items()}


def _tables(model: Model) -> list[Tensor]:
    """Return all tables of frequencies in the model, float64."""
    kinds = {
        kind
        for module in model.hf.modules()
        for kind in _values(getattr(module, "rope_type", None))
        if kind in ("dynamic", "longrope")
    }
    if kinds:
        raise UnsupportedError(
            f"PINE does not serve {', '.join(sorted(kinds))} rotary positions: frequencies change with the length."
        )
    buffers = {name: x for name, x in model.hf.named_buffers() if name.rsplit(".", 1)[-1].endswith("inv_freq")}
    return [x.detach().double().cpu() for x in buffers.values() if x.dim() == 1]


def _values(kind: Any) -> list[str]:
    return [str(k) for k in (kind.values() if isinstance(kind, dict) else [kind])]


def _candidates(tables: list[Tensor], width: int) -> list[Rotation]:
    none = Rotation(torch.zeros(1, dtype=torch.float64), torch.tensor([0]), torch.tensor([min(1, width - 1)]))
    out = []
    for table in tables:
        m = len(table)
        if 2 * m <= width:
            index = torch.arange(m)
            out += [Rotation(table, index, index + m), Rotation(table, 2 * index, 2 * index + 1)]
    return [*out, none]


def _explains(rotation: Rotation, keys: Tensor, positions: list[int]) -> bool:
    start = keys[:1].double()
    by = torch.tensor(positions, device=keys.device)[:, None].expand(keys.shape[:2])
    tolerance = max(64 * torch.finfo(keys.dtype).eps, 1e-5)
    error = (rotation.turn(start.expand(keys.shape), by) - keys.double()).abs().max()
    return bool(error <= tolerance * start.abs().max())
