"""A run as data inside a file: what a page needs to compute any part of a pattern by itself.

Of each chosen head the file holds queries, keys and log-normalisers in full, with whatever else shapes its pattern, so
that the page computes exactly what ``View`` would. Of all other heads it holds statistics and thumbnails.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headscope.errors import RequestError
from headscope.kernels.edits import Reweight
from headscope.report.view.choice import best_heads, checked, first
from headscope.report.view.shape import bias_of, factors_of, mask_of

if TYPE_CHECKING:
    from headscope.kernels.inputs import AttentionInputs
    from headscope.report.view.source import View

MB = 1_000_000
_WIDTH = {"f4": 4, "i4": 4, "u1": 1, "f2": 2, "bf2": 2}
_SAVED = 0.95
"""Blocks are packed where that makes them smaller than this share."""
_OVERVIEW = 3
"""From this level on a browser needs a moment for the whole pattern, so that the first look at it is in the file."""


@dataclass(frozen=True)
class Embedded:
    """What goes into a file.

    Parameters
    ----------
    document
        JSON values; see ``assets/90-embedded.js``.
    blocks
        Arrays as base64 by name.
    held
        Heads that are held in full, the best first.
    heads
        How many heads there are.
    first
        State of the viewer when it opens.
    """

    document: dict[str, Any]
    blocks: dict[str, str]
    held: tuple[tuple[int, int], ...]
    heads: int
    first: dict[str, Any]

    @property
    def exact(self) -> bool:
        """Whether every head is held in full."""
        return len(self.held) == self.heads


@dataclass
class _Blocks:
    """Arrays as text, each once."""

    texts: dict[str, str] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    known: dict[Hashable, str] = field(default_factory=dict)
    size: int = 0

    def add(self, array: NDArray[Any] | Tensor, key: Hashable = None) -> str:
        """Return the name of an array; equal keys are one array."""
        if key is not None and key in self.known:
            return self.known[key]
        kind, raw = _bytes(array)
        width = _WIDTH[kind]
        # Exponents lie together and repeat; the last bytes of fractions do not.
        planes = np.frombuffer(raw, np.uint8).reshape(-1, width).T.tobytes() if width > 1 else raw
        packed = zlib.compress(planes, 1)
        small = len(packed) < _SAVED * len(raw)
        name = str(len(self.texts))
        self.texts[name] = base64.b64encode(packed if small else raw).decode("ascii")
        self.facts[name] = {"type": kind, "packed": small}
        self.size += len(self.texts[name])
        if key is not None:
            self.known[key] = name
        return name

    def mark(self) -> tuple[int, int, int]:
        """Return where the blocks end now."""
        return len(self.texts), len(self.known), self.size

    def back(self, mark: tuple[int, int, int]) -> None:
        """Forget what was added since."""
        _cut(self.texts, mark[0])
        _cut(self.facts, mark[0])
        _cut(self.known, mark[1])
        self.size = mark[2]


def _cut(held: dict[Any, Any], count: int) -> None:
    for name in list(held)[count:]:
        del held[name]


def embed(
    view: View,
    *,
    heads: Iterable[tuple[int, int]] | None = None,
    layers: Iterable[int] | None = None,
    limit: int = 25 * MB,
    again: str = "model.view(prompt, heads=[{head}])",
) -> Embedded:
    """Return a view as data.

    Parameters
    ----------
    heads, layers
        Heads, or all heads of layers, to hold in full, and no others. By default as many as fit: all, or those of
        ``choice.best_heads``.
    limit
        Most bytes of text.
    again
        What to type to look at a head that is not held.

    Raises
    ------
    RequestError
        If there is no such head, or the chosen ones do not fit.
    """
    meta = view.meta()
    blocks = _Blocks()
    chosen = checked(meta["heads"], heads, layers)
    document: dict[str, Any] = {
        "meta": meta,
        "stats": {stat["name"]: blocks.add(view.stat(stat["name"])) for stat in meta["stats"]},
        "thumbs": {
            str(layer): blocks.add(view.thumbs(layer).astype(np.float16))
            for layer, count in enumerate(meta["heads"])
            if count
        },
        "heads": {},
        "again": again,
    }
    order = best_heads(view) if chosen is None else chosen
    held: list[tuple[int, int]] = []
    for layer, head in order:
        mark = blocks.mark()
        facts = _head(view, layer, head, blocks)
        if blocks.size > limit:
            blocks.back(mark)
            if chosen is None:
                break
            _refuse(view, chosen, held, limit)
        document["heads"][f"{layer}.{head}"] = facts
        held.append((layer, head))
    document["blocks"] = blocks.facts
    if len(held) < sum(meta["heads"]):
        meta["held"] = list(document["heads"])
    return Embedded(document, blocks.texts, tuple(held), sum(meta["heads"]), first(view, held))


def _refuse(view: View, chosen: Sequence[tuple[int, int]], held: Sequence[tuple[int, int]], limit: int) -> None:
    raise RequestError(
        f"{len(chosen)} heads of {view.length} tokens do not fit into {limit / MB:g} MB; {len(held)} of them do. "
        "Choose fewer heads, or raise limit_mb."
    )


def _head(view: View, layer: int, head: int, blocks: _Blocks) -> dict[str, Any]:
    """Return what the page needs to know of a head, and keep its arrays."""
    one, lse = view.call(layer, head)
    facts: dict[str, Any] = {
        "q": blocks.add(one.q[0, 0]),
        # Heads of a group share their keys.
        "k": blocks.add(one.k[0, 0], ("k", layer, one.k.data_ptr())),
        "lse": blocks.add(lse.float()),
        "scale": one.scale,
        "softcap": one.softcap,
        "causal": one.causal,
        "rotary": view.rotary(layer),
    }
    facts["mask"] = _mask(one, blocks)
    top = view.meta()["levels"] - 1
    if top >= _OVERVIEW:
        facts["overview"] = blocks.add(view.tile(layer, head, top, 0, 0, "max"))
    bias = bias_of(one)
    if bias is not None:
        facts["bias"] = {"kind": bias.kind, "block": blocks.add(bias.values)}
    if one.edits:
        facts["touched"] = blocks.add(_touched(one))
        if all(isinstance(edit, Reweight) for edit in one.edits):
            facts["factors"] = [
                {"count": found.table.shape[1], "groups": blocks.add(found.groups), "table": blocks.add(found.table)}
                for found in factors_of(one)
            ]
        else:
            # Logits were changed: the pattern itself is the shortest exact description.
            facts["pattern"] = blocks.add(np.stack([view.row(layer, head, i) for i in range(view.length)]))
    return facts


def _mask(one: AttentionInputs, blocks: _Blocks) -> dict[str, str] | None:
    if one.mask is None:
        return None
    key = ("mask", one.mask.data_ptr(), tuple(one.mask.shape), one.causal)
    ends = [blocks.known.get((*key, part)) for part in ("from", "to", "bits")]
    if ends[0] is None:
        found = mask_of(one)
        ends = [blocks.add(found.first, (*key, "from")), blocks.add(found.end, (*key, "to")), None]
        if found.bits is not None:
            ends[2] = blocks.add(found.bits, (*key, "bits"))
    return {name: end for name, end in zip(("from", "to", "bits"), ends, strict=True) if end is not None}


def _touched(one: AttentionInputs) -> NDArray[np.uint8]:
    touched = np.zeros(one.tq, np.uint8)
    for edit in one.edits:
        touched |= np.uint8(1) if edit.rows is None else edit.rows[0].cpu().numpy().astype(np.uint8)
    return touched


def _bytes(array: NDArray[Any] | Tensor) -> tuple[str, bytes]:
    """Return the kind of numbers and their bytes, the least significant first; nothing is rounded."""
    if isinstance(array, Tensor):
        array = array.detach().cpu().contiguous()
        if array.dtype == torch.bfloat16:
            return "bf2", array.view(torch.int16).numpy().astype("<i2").tobytes()
        array = array.numpy()
    kind = {"f": "f2" if array.dtype.itemsize == 2 else "f4", "i": "i4", "u": "u1", "b": "u1"}[array.dtype.kind]
    return kind, np.ascontiguousarray(array).astype(f"<{kind}").tobytes()
