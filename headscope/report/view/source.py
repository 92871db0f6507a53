"""Everything that a viewer may ask about one run of one prompt, as numbers."""

from __future__ import annotations

import itertools
import math
import threading
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from headscope.errors import RequestError

if TYPE_CHECKING:
    from headscope.attention.result import Run
    from headscope.models.model import Model

Floats = NDArray[np.float32]

TILE = 256
"""Cells of a tile along either side."""
THUMB = 32
"""Cells of a thumbnail along either side, at most."""


def levels(length: int) -> int:
    """Return how many levels a pyramid over ``length`` tokens has; the last fits into one tile."""
    return 1 + max(0, math.ceil(math.log2(length / TILE))) if length > TILE else 1


def bins(length: int) -> int:
    """Return how many cells the last level has along either side."""
    return -(-length // 2 ** (levels(length) - 1))


class View:
    """The view of one run; see ``headscope.report.view.capture.look``. Thread-safe.

    Raises
    ------
    RequestError
        If the run kept no queries and keys.
    """

    def __init__(self, run: Run, model: Model) -> None:
        if not run.qk:
            raise RequestError("A view needs queries and keys: capture hs.QK(), or call model.view(prompt).")
        self.prompt = run.prompt
        self._model = model.name
        self._family = model.spec.family
        self._layers = model.spec.layers()
        self._store = next(iter(run.qk.values()))
        self._lock = threading.Lock()
        self._stats, self._abouts = _statistics(run, self._layers, self.prompt)
        self._thumbs = _array(run, "thumbs")
        self._overviews = {reduce: _array(run, f"overview_{reduce}") for reduce in ("mean", "max")}
        self.length = len(self.prompt)

    def meta(self) -> dict[str, Any]:
        """Return what there is to look at, as JSON values."""
        generated = self.prompt.regions.get("generated")
        return {
            "model": self._model,
            "family": self._family,
            "layers": len(self._layers),
            "heads": [layer.heads for layer in self._layers],
            "length": self.length,
            "tokens": self.prompt.tokens,
            "prompt_length": generated[0] if generated else self.length,
            "regions": {name: _spans(found) for name, found in self.prompt.regions.items()},
            "causal": [layer.causal for layer in self._layers],
            "window": [layer.window for layer in self._layers],
            "sinks": [layer.sinks for layer in self._layers],
            "stats": self._abouts,
            "tile": TILE,
            "levels": levels(self.length),
            "thumb": THUMB,
        }

    def stat(self, name: str) -> Floats:
        """Return a statistic of all heads (layers, heads)."""
        if name not in self._stats:
            raise RequestError(f"There is no statistic {name!r}: {', '.join(self._stats)}.")
        return self._stats[name]

    def thumbs(self, layer: int) -> Floats:
        """Return the pooled patterns of a layer (heads, cells, cells)."""
        self._check(layer, 0)
        if self._thumbs is None:
            raise RequestError("This run kept no overviews.")
        return self._thumbs[layer]

    def tile(
        self, layer: int, head: int, level: int, row: int, col: int, reduce: Literal["mean", "max"] = "max"
    ) -> Floats:
        """Return a tile of the pyramid (rows, columns)."""
        self._check(layer, head)
        if reduce not in ("mean", "max"):
            raise RequestError(f"reduce={reduce!r}: choose 'mean' or 'max'.")
        if not 0 <= level < levels(self.length):
            raise RequestError(f"Level {level} is out of range: there are levels 0 to {levels(self.length) - 1}.")
        side = TILE << level
        count = -(-self.length // side)
        if not (0 <= row < count and 0 <= col < count):
            raise RequestError(f"Tile ({row}, {col}) of level {level} is out of range: 0 to {count - 1}.")
        overview = self._overviews[reduce]
        if level == levels(self.length) - 1 and overview is not None:
            return overview[layer, head]
        spans = [range(at * side, min((at + 1) * side, self.length)) for at in (row, col)]
        pool = None if level == 0 else (1 << level, 1 << level)
        with self._lock:
            found = self._store.tile(layer, head, rows=spans[0], cols=spans[1], pool=pool, reduce=reduce)
        return found.float().numpy()

    def row(self, layer: int, head: int, query: int) -> Floats:
        """Return what a token attends to (tokens,)."""
        self._check(layer, head, query)
        with self._lock:
            return self._store.tile(layer, head, rows=range(query, query + 1)).float().numpy()[0]

    def column(self, layer: int, head: int, key: int) -> Floats:
        """Return how much each token attends to a token (tokens,)."""
        self._check(layer, head, key)
        with self._lock:
            return self._store.tile(layer, head, cols=range(key, key + 1)).float().numpy()[:, 0]

    @property
    def nbytes(self) -> int:
        """Bytes that the view keeps."""
        held = [*self._stats.values(), self._thumbs, *self._overviews.values()]
        return self._store.nbytes + sum(array.nbytes for array in held if array is not None)

    def _check(self, layer: int, head: int, *positions: int) -> None:
        if not 0 <= layer < len(self._layers):
            raise RequestError(f"Layer {layer} is out of range: 0 to {len(self._layers) - 1}.")
        if not 0 <= head < self._layers[layer].heads:
            raise RequestError(f"Head {head} is out of range: 0 to {self._layers[layer].heads - 1}.")
        for position in positions:
            if not 0 <= position < self.length:
                raise RequestError(f"Token {position} is out of range: 0 to {self.length - 1}.")


def _array(run: Run, name: str) -> Floats | None:
    return run[name].values[:, 0].astype(np.float32) if name in run else None


def _statistics(run: Run, layers: Any, prompt: Any) -> tuple[dict[str, Floats], list[dict[str, Any]]]:
    found: dict[str, Floats] = {}
    abouts: list[dict[str, Any]] = []

    def add(name: str, values: NDArray[Any], label: str, unit: str, low: float, high: float, about: str) -> None:
        found[name] = values.astype(np.float32)
        abouts.append({"name": name, "label": label, "unit": unit, "low": low, "high": high, "about": about})

    if "mass" in run:
        mass = run["mass"].isel(batch=0).mean("query")
        for region in mass.region.values:
            name = "sink" if region == "bos" else f"mass:{region}"
            label = "Sink: mass on the first token" if region == "bos" else f"Mass on {region}"
            values = mass.sel(region=region).transpose("layer", "head").values
            add(name, values, label, "share of attention", 0, 1, f"Mean attention to {region}, over all queries.")
    if "entropy" in run:
        values = run["entropy"].isel(batch=0).mean("query").values
        add("entropy", values, "Entropy", "nats", 0, math.log(len(prompt)), "Mean entropy of a row.")
    if "expected_key" in run:
        expected = run["expected_key"].isel(batch=0, channel=0)
        values = np.abs(np.arange(len(prompt)) - expected.values).mean(-1)
        add("locality", values, "Reach", "tokens", 0, len(prompt), "Mean distance to what is attended to.")
    if "top_weights" in run:
        values = run["top_weights"].isel(batch=0, rank=0).mean("query").values
        add("largest", values, "Largest weight", "share of attention", 0, 1, "Mean largest weight of a row.")
    if "received" in run:
        values = run["received"].isel(batch=0).max("key").values
        add("received-max", values, "Most received", "share of attention", 0, 1, "Largest mean attention to one token.")
    return found, abouts


def _spans(positions: tuple[int, ...]) -> list[list[int]]:
    """Return positions as half-open runs."""
    out = []
    for _, group in itertools.groupby(enumerate(positions), lambda pair: pair[1] - pair[0]):
        members = [position for _, position in group]
        out.append([members[0], members[-1] + 1])
    return out
