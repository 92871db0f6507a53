"""Everything that a viewer may ask about one run of one prompt, as numbers."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from headscope.errors import RequestError, UnsupportedError, nearest
from headscope.models.prompt import Prompt
from headscope.report.view.frames import frame
from headscope.report.view.memory import Floats, Recent
from headscope.report.view.statistics import Statistic, of_heads, statistics

if TYPE_CHECKING:
    import pandas as pd

    from headscope.attention.result import Run
    from headscope.kernels.inputs import AttentionInputs
    from headscope.models.model import Model

TILE = 256
"""Cells of a tile along either side."""
THUMB = 32
"""Cells of a thumbnail along either side."""
OVERVIEW, OVERVIEW_CELLS = "overview_max", 64
"""Name of the capture that thumbnails are made of, and its cells along either side, at most."""
RECENT = 64 << 20
"""Bytes of tiles that a view remembers."""
LONGEST = 2048
"""Tokens up to which distances are read off whole patterns where attention goes both ways."""

_WORKERS = threading.BoundedSemaphore(2)
"""Tiles take all processors: more at a time would only wait for each other. Rows and neurons pass them by."""


def levels(length: int) -> int:
    """Return how many levels a pyramid over ``length`` tokens has; the last fits into one tile."""
    return 1 + (-(-length // TILE) - 1).bit_length()


def bins(length: int) -> int:
    """Return how many cells the last level has along either side."""
    return -(-length // (1 << (levels(length) - 1)))


def viewed_stack(model: Model) -> str:
    """Return which attention of a model is looked at: of encoder-decoders the encoder's, which reads the prompt.

    Raises
    ------
    UnsupportedError
        If the model reads no text.
    """
    spec = model.spec
    stack = "encoder" if {"encoder", "decoder"} <= set(spec.stacks) else spec.default_stack
    if stack not in ("encoder", "decoder") or model.hf.main_input_name != "input_ids":
        raise UnsupportedError(
            f"{spec.name} ({spec.family}) reads no text: a view is of the tokens of a prompt. Its statistics come from "
            "model.run(…)."
        )
    return stack


class View:
    """The view of one run of one prompt; see ``headscope.report.view.capture.look``. Thread-safe.

    What the run did not capture is left out of the statistics; tiles, rows and columns need ``hs.QK()`` alone. Arrays
    are read-only: they are handed out again.

    Parameters
    ----------
    run
        A run of one prompt with ``hs.QK()`` among its captures.
    model
        The model that ran; it is not held.
    stack
        Which attention was captured; by default the one that reads the prompt.

    Raises
    ------
    RequestError
        If the run kept no queries and keys, or is not of one prompt.
    """

    def __init__(self, run: Run, model: Model, *, stack: str | None = None) -> None:
        if not run.qk:
            raise RequestError("A view needs queries and keys: capture hs.QK(), or call model.view(prompt).")
        self.prompt = _prompt(run, model)
        self.length = len(self.prompt)
        self._layers = model.spec.layers(stack or viewed_stack(model))
        self._store = next(iter(run.qk.values()))
        self._model, self._family = model.name, model.spec.family
        self._rotary = _rotary(model, [layer.attn for layer in self._layers])
        held = set(self._store.layers)
        for layer in held:
            if layer >= len(self._layers) or self._store.shape(layer)[2:] != (self.length, self.length):
                raise RequestError(
                    f"These queries and keys are not of the {self.length} tokens of the prompt: name the stack that "
                    "was captured, as View(run, model, stack='encoder')."
                )
        self._heads = [layer.heads if layer.index in held else 0 for layer in self._layers]
        self._know(run)
        found = statistics(run, self._layers, self.length, self._distances())
        self._stats: dict[str, Statistic] = {stat.name: stat for stat in found}
        self._thumbs = _thumbs(run)
        self._next = _likeliest(run, model) if self._layers[0].causal else []
        self._recent = Recent(RECENT)

    def _know(self, run: Run) -> None:
        """Give the store the log-normalisers that were captured."""
        for layer, head, lse in of_heads(run, "logsumexp"):
            if layer in self._store.layers and lse.shape == (self.length,):
                self._store.know(layer, head, torch.from_numpy(lse))

    def _distances(self) -> Floats | None:
        """Return mean distances (layers, heads) where attention goes both ways, NaN elsewhere."""
        both = [layer.index for layer in self._layers if not layer.causal and self._heads[layer.index]]
        if not both or self.length > LONGEST:
            return None
        found = np.full((len(self._layers), max(self._heads)), np.nan, np.float32)
        at = torch.arange(self.length, dtype=torch.float32)
        apart = (at[:, None] - at).abs()
        for layer, head in ((at, head) for at in both for head in range(self._heads[at])):
            pattern = self._store.tile(layer, head).float()
            found[layer, head] = (pattern * apart).sum(-1).div(pattern.sum(-1).clamp(min=1e-12)).mean()
        return found

    # -- what there is -----------------------------------------------------------------------------------------

    def meta(self) -> dict[str, Any]:
        """Return what there is to look at, as JSON values."""
        generated = self.prompt.regions.get("generated")
        return {
            "model": self._model,
            "family": self._family,
            "layers": len(self._layers),
            "heads": list(self._heads),
            "length": self.length,
            "tokens": self.prompt.tokens,
            "prompt_length": generated[0] if generated else self.length,
            "regions": {name: spans(found) for name, found in self.prompt.regions.items()},
            "causal": [layer.causal for layer in self._layers],
            "window": [layer.window for layer in self._layers],
            "sinks": [layer.sinks for layer in self._layers],
            "next": self._next,
            "stats": [stat.meta() for stat in self._stats.values()],
            "tile": TILE,
            "levels": levels(self.length),
            "thumb": THUMB,
        }

    @property
    def nbytes(self) -> int:
        """Bytes that the view keeps."""
        held = [*self._thumbs.values(), *(stat.values for stat in self._stats.values())]
        return self._store.nbytes + self._recent.nbytes + sum(array.nbytes for array in held)

    def stat(self, name: str) -> Floats:
        """Return a statistic of all heads (layers, heads), NaN where there is no head."""
        if name not in self._stats:
            raise RequestError(f"This view has no statistic {name!r}.{nearest(name, self._stats)}")
        return self._stats[name].values

    # -- patterns ----------------------------------------------------------------------------------------------

    def thumbs(self, layer: int) -> Floats:
        """Return small pictures of all patterns of a layer (heads, cells, cells): the largest weight in each cell."""
        self._check(layer)

        def make() -> Floats:
            top, heads = levels(self.length) - 1, range(self._heads[layer])
            known = [self._thumbs.get((layer, head)) for head in heads]
            return np.stack(
                [
                    thumbnail(self.tile(layer, head, top, 0, 0, "max")) if found is None else found
                    for head, found in zip(heads, known, strict=True)
                ]
            )

        return self._recent.get(("thumbs", layer), make)

    def tile(
        self, layer: int, head: int, level: int, row: int, col: int, reduce: Literal["mean", "max"] = "max"
    ) -> Floats:
        """Return a tile of the pyramid (rows, columns); cells that no query can see count as 0.

        Raises
        ------
        RequestError
            If there is no such head, level, tile or reduction.
        """
        self._check(layer, head)
        if reduce not in ("mean", "max"):
            raise RequestError(f"reduce={reduce!r}: choose 'mean' or 'max'.")
        if not 0 <= level < levels(self.length):
            raise RequestError(f"Level {level} is out of range: there are levels 0 to {levels(self.length) - 1}.")
        side = TILE << level
        count = -(-self.length // side)
        if not (0 <= row < count and 0 <= col < count):
            raise RequestError(f"Tile ({row}, {col}) of level {level} is out of range: 0 to {count - 1}.")
        rows, cols = (range(at * side, min((at + 1) * side, self.length)) for at in (row, col))
        pool = None if level == 0 else (1 << level, 1 << level)
        name = ("tile", layer, head, level, row, col, reduce if level else "")
        return self._recent.get(name, lambda: self._part(layer, head, rows, cols, pool, reduce))

    def row(self, layer: int, head: int, query: int) -> Floats:
        """Return what a token attends to (tokens,)."""
        self._check(layer, head, query)
        return np.asarray(self._store.tile(layer, head, rows=range(query, query + 1)).float().numpy()).reshape(-1)

    def column(self, layer: int, head: int, key: int) -> Floats:
        """Return how much each token attends to a token (tokens,)."""
        self._check(layer, head, key)
        return self._part(layer, head, range(self.length), range(key, key + 1)).reshape(-1)

    def neuron(self, layer: int, head: int, query: int, key: int) -> dict[str, Any]:
        """Return why a token attends to another as much as it does, as JSON values; a hidden pair's logit is −inf."""
        self._check(layer, head, query, key)
        pair = self._store.pair(layer, head, query, key)
        note = None
        if pair.edited is not None:
            note = f"An edit changes this row: the weight shown is before the edit; after it, it is {pair.edited:.4g}."
        elif not pair.visible:
            note = "This query cannot see this key."
        return {
            "q": pair.q.tolist(),
            "k": pair.k.tolist(),
            "product": (pair.q * pair.k * pair.scale).tolist(),
            "scale": pair.scale,
            "raw": pair.raw,
            "softcap": pair.softcap,
            "bias": pair.bias,
            "logit": pair.logit,
            "lse": pair.lse,
            "weight": pair.weight,
            "edited": pair.edited,
            "rotary": self._rotary[layer],
            "visible": pair.visible,
            "note": note,
        }

    def frame(self, kind: str, **where: Any) -> pd.DataFrame:
        """Return numbers as a table, for CSV; see ``headscope.report.view.frames``.

        ``frame("heads")``; ``frame("row", layer=, head=, query=)``; ``frame("column", layer=, head=, key=)``;
        ``frame("tile", layer=, head=, level=, row=, col=, reduce=)``; ``frame("neuron", layer=, head=, query=, key=)``.
        """
        return frame(self, kind, **where)

    def call(self, layer: int, head: int) -> tuple[AttentionInputs, Tensor]:
        """Return what a head's pattern comes from, and its log-normalisers (tokens,) before edits."""
        self._check(layer, head)
        return self._store.call(layer, head)

    def rotary(self, layer: int) -> bool:
        """Return whether a layer turns queries and keys by their position."""
        return self._rotary[layer]

    def _part(
        self,
        layer: int,
        head: int,
        rows: range,
        cols: range,
        pool: tuple[int, int] | None = None,
        reduce: Literal["mean", "max"] = "max",
    ) -> Floats:
        with _WORKERS:
            found = self._store.tile(layer, head, rows=rows, cols=cols, pool=pool, reduce=reduce)
        return np.asarray(found.float().numpy())

    def _check(self, layer: int, head: int | None = None, *positions: int) -> None:
        if not 0 <= layer < len(self._layers):
            raise RequestError(f"Layer {layer} is out of range: 0 to {len(self._layers) - 1}.")
        if not self._heads[layer]:
            raise RequestError(f"Layer {layer} has no queries and keys to look at: {self._model} has none there, or "
                               "they were not captured.")  # fmt: skip
        if head is not None and not 0 <= head < self._heads[layer]:
            raise RequestError(f"Head {head} is out of range: layer {layer} has heads 0 to {self._heads[layer] - 1}.")
        for position in positions:
            if not 0 <= position < self.length:
                raise RequestError(f"Token {position} is out of range: 0 to {self.length - 1}.")


def spans(positions: tuple[int, ...]) -> list[list[int]]:
    """Return positions as half-open runs."""
    out = []
    for _, group in itertools.groupby(enumerate(positions), lambda pair: pair[1] - pair[0]):
        members = [position for _, position in group]
        out.append([members[0], members[-1] + 1])
    return out


def _prompt(run: Run, model: Model) -> Prompt:
    given = run.prompt
    if isinstance(given, Prompt):
        return given
    if isinstance(given, Mapping) and "input_ids" in given and len(given["input_ids"]) == 1:
        return Prompt.from_ids(given["input_ids"][0].tolist(), None, model.tokenizer)
    raise RequestError("A view is of one prompt of text: run one at a time.")


def thumbnail(pattern: Floats) -> Floats:
    """Return the largest weights of a pattern, or of an overview of it, as a picture of one size for all."""
    # Cells of the picture may share a cell of the pattern, so that it need not be a multiple of them.
    return np.asarray(functional.adaptive_max_pool2d(torch.tensor(pattern)[None], THUMB)[0].numpy())


def _thumbs(run: Run) -> dict[tuple[int, int], Floats]:
    return {(layer, head): thumbnail(found) for layer, head, found in of_heads(run, OVERVIEW)}


def _likeliest(run: Run, model: Model, count: int = 5) -> list[dict[str, Any]]:
    """Return the likeliest next tokens with their probabilities, if the run has logits."""
    if run.logits is None or model.tokenizer is None:
        return []
    best = run.logits[0, -1].float().softmax(-1).topk(min(count, run.logits.shape[-1]))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [{"token": model.tokenizer.decode([token]), "probability": value} for token, value in pairs]


def _rotary(model: Model, paths: list[str]) -> list[bool]:
    """Return which layers turn queries and keys by their position."""
    turns = any("rotary" in type(part).__name__.lower() for part in model.hf.modules())
    return [turns and bool(getattr(model.hf.get_submodule(path), "use_rope", True)) for path in paths]
