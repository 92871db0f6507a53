"""Gather each request's arrays, layer by layer, into one array of its own."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headscope.attention import requests as ask
from headscope.attention.plan import dimensions
from headscope.attention.sites import Site, Sites
from headscope.errors import RequestError

Array = npt.NDArray[np.generic]


class Collector:
    """One request with the layers it asks for and the arrays that come back.

    ``arrays`` holds (layers, …), or (pairs, …) where the request selects heads, under the request's key and, for
    ``TopKeys``, a second one for the weights. What a GPU gives is copied while the model runs on.
    """

    def __init__(self, request: ask.Request, sites: Sites) -> None:
        self.request = request
        self.stack = request.stack or sites.default
        found = sites.stack(self.stack)
        self.pairs: tuple[tuple[int, int], ...] | None = None
        if request.heads is not None:
            if "head" not in dimensions(request):
                raise RequestError(f"{type(request).__name__} has no head dimension: select layers= instead.")
            self.pairs = tuple(request.heads)
            sites.check_heads(self.pairs, self.stack)
            wanted: Iterable[int] = {layer for layer, _ in self.pairs}
        else:
            wanted = found if request.layers is None else request.layers
        self.layers = tuple(sorted(wanted)) if request.layers is None else tuple(request.layers)
        extra = {max(found) + 1} if isinstance(request, ask.Residual) else set()
        for layer in self.layers:
            if layer not in found and layer not in extra:
                raise RequestError(
                    f"{type(request).__name__}(layers=…): there is no layer {layer} in the {self.stack} stack; "
                    f"layers go from {min(found)} to {max(found)}."
                )
        if extra and request.layers is None:
            self.layers = (*self.layers, *extra)
        if self.pairs is None and "head" in dimensions(request):
            counts = {found[layer].heads for layer in self.layers}
            if len(counts) > 1:
                raise RequestError(
                    f"{type(request).__name__}: layers differ in their number of heads ({sorted(counts)}). "
                    "Ask for layers= with equal counts, or for heads=."
                )
        self._kept: dict[str, Tensor] = {}
        self._device = torch.device("cpu")

    @property
    def arrays(self) -> dict[str, Array]:
        """What came back so far."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return {key: kept.numpy() for key, kept in self._kept.items()}

    def names(self) -> list[str]:
        """Keys of the results."""
        if isinstance(self.request, ask.TopKeys):
            weights = self.request.key.replace("keys", "weights")
            return [self.request.key, weights if weights != self.request.key else f"{self.request.key}_weights"]
        return [self.request.key]

    def dims(self) -> tuple[str, ...]:
        """Dimensions of the arrays."""
        dims = dimensions(self.request)
        if self.pairs is None:
            return ("layer", *dims)
        return ("pair", *(d for d in dims if d != "head"))

    def put(self, layer: int, suffix: str, value: Tensor, blank: Tensor | None) -> None:
        """Store the array of one layer; ``blank`` (B, queries) marks rows that are padding."""
        key = self.names()[1 if suffix else 0]
        integer = not value.dtype.is_floating_point
        found = value.detach().to(torch.int64 if integer else torch.float32)
        self._device = found.device
        if blank is not None and bool(blank.any()):
            dims = dimensions(self.request)
            at = dims.index("query")
            shape = [blank.shape[0]] + [1] * (found.dim() - 1)
            shape[at] = blank.shape[1]
            found = found.masked_fill(blank.view(shape).to(found.device), -1 if integer else torch.nan)
        if self.pairs is None:
            self._slot(key, len(self.layers), found)[self.layers.index(layer)].copy_(found, non_blocking=True)
            return
        target = self._slot(key, len(self.pairs), found[:, 0])
        for index, (at_layer, head) in enumerate(self.pairs):
            if at_layer == layer:
                target[index].copy_(found[:, head], non_blocking=True)

    def _slot(self, key: str, count: int, like: Tensor) -> Tensor:
        if key not in self._kept:
            fill = torch.nan if like.dtype.is_floating_point else -1
            pinned = like.device.type == "cuda"
            self._kept[key] = torch.full((count, *like.shape), fill, dtype=like.dtype, pin_memory=pinned)
        return self._kept[key]


def collectors(requests: Iterable[ask.Request], sites: Sites) -> list[Collector]:
    """Return one collector for each distinct request.

    Raises
    ------
    RequestError
        If two different requests would share a key.
    """
    found: dict[str, Collector] = {}
    for request in requests:
        if not isinstance(request, ask.Request):
            raise RequestError(f"capture=[…] takes requests such as Entropy(), not {request!r}.")
        held = found.get(request.key)
        if held is None:
            found[request.key] = Collector(request, sites)
        elif held.request is not request and (
            held.request != request or isinstance(request, (ask.Weighted, ask.Lookup))
        ):
            raise RequestError(f"Two requests are called {request.key!r}: give one of them a name=.")
    names = [key for collector in found.values() for key in collector.names()]
    if len(set(names)) < len(names):
        raise RequestError(f"Two requests give results of the same name ({sorted(names)}): give one of them a name=.")
    return list(found.values())


def blank_rows(queries: Tensor | None, valid: Tensor | None, rows: int) -> Tensor | None:
    """Return which query rows (B, rows) are no real query, or None where all are."""
    if queries is not None:
        return queries < 0
    return None if valid is None or valid.shape[1] != rows else ~valid.bool()


def heads_first(z: Tensor, site: Site) -> Tensor:
    """Return z (B, T, H·Dv) as (B, H, T, Dv)."""
    return z.view(*z.shape[:-1], site.heads, -1).transpose(1, 2)
