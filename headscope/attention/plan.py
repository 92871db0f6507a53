"""From requests to kernels: what each request needs of an attention call, and how its result is read off.

Every request type has one planner. It adds its needs to a ``Needs``, which merges those of all requests with the same
rows into one sweep, and returns a reader that takes the request's arrays from the sweep's results.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from headscope.attention import requests as ask
from headscope.attention.context import Context
from headscope.attention.sites import Site
from headscope.errors import RequestError
from headscope.kernels.inputs import AttentionInputs
from headscope.kernels.rows import Stats, Wants

Reader = Callable[[Stats], dict[str, Tensor]]
"""Takes from a sweep's results {key suffix: array (B, H, …)}."""


@dataclass
class Needs:
    """What all requests on the same rows of one attention call need together."""

    inp: AttentionInputs
    site: Site
    context: Context
    rows: int
    """Number of query rows in the sweep."""
    lse: bool = False
    entropy: bool = False
    received: bool = False
    whole_rows: bool = False
    indicator: bool = True
    """Whether all projections are of zeros and ones."""
    top: int = 0
    pooled_max: tuple[int, int] | None = None
    groups: list[Tensor] = field(default_factory=list)
    projections: list[Tensor] = field(default_factory=list)
    lookups: list[Tensor] = field(default_factory=list)

    def project(self, x: Tensor, *, indicator: bool = False) -> slice:
        """Ask for attention @ x, x (B, Tk, C); return the channels where it will be.

        ``indicator`` says that x holds nothing but zeros and ones.
        """
        self.indicator = self.indicator and indicator
        return _append(self.projections, x, -1)

    def lookup(self, keys: Tensor) -> slice:
        """Ask for the attention at keys (B, rows, m); return the slots where it will be."""
        return _append(self.lookups, keys, -1)

    def group(self, weights: Tensor) -> slice:
        """Ask for column sums weighted by (B, N, rows); return the groups where they will be."""
        return _append(self.groups, weights, 1)

    def wants(self, *, out: bool) -> Wants:
        """Return the merged sweep."""
        return Wants(
            out=out,
            lse=self.lse,
            entropy=self.entropy,
            top=self.top,
            received=self.received,
            groups=torch.cat(self.groups, dim=1) if self.groups else None,
            project=_joined(self.projections),
            lookup=torch.cat(self.lookups, dim=-1) if self.lookups else None,
            pooled_max=self.pooled_max,
            rows=self.whole_rows,
            indicator=bool(self.projections) and self.indicator,
        )

    @property
    def key_start(self) -> int:
        """Absolute position of key 0: past it where a sliding-window cache has dropped the oldest."""
        total = self.context.total
        return 0 if total is None or self.site.stack == "cross" else total - self.inp.tk

    @property
    def length(self) -> int:
        """Number of absolute key positions."""
        return self.inp.tk + self.key_start


def _joined(parts: list[Tensor]) -> Tensor | None:
    """Return per-key vectors side by side; those of one request as they are, so that kernels know them again."""
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _append(parts: list[Tensor], part: Tensor, dim: int) -> slice:
    start = sum(p.shape[dim] for p in parts)
    parts.append(part)
    return slice(start, start + part.shape[dim])


def _got(x: Tensor | None) -> Tensor:
    if x is None:
        raise AssertionError("a kernel did not return what was asked of it")
    return x


def indicators(needs: Needs, positions: list[list[list[int]]]) -> Tensor:
    """Return (B, Tk, G) with 1 where a key is in a region, for positions[region][sample] in absolute terms."""
    inp = needs.inp
    x = torch.zeros(inp.batch, inp.tk, len(positions))
    for region, samples in enumerate(positions):
        for sample, keys in enumerate(samples):
            here = [key - needs.key_start for key in keys if 0 <= key - needs.key_start < inp.tk]
            x[sample, here, region] = 1
    return x.to(inp.q.device)


def region_positions(request: ask.Mass, needs: Needs) -> tuple[list[str], list[list[list[int]]]]:
    """Return the names of a Mass request's regions and positions[region][sample]; ``rest`` is what no other holds."""
    context, length = needs.context, needs.length
    names, positions = [], []
    for region in request.regions:
        if isinstance(region, str):
            names.append(region)
            positions.append([[] for _ in range(context.batch)] if region == "rest" else context.region(region, length))
        else:
            names.append(region[0])
            positions.append([context.keys(region[1], sample, length) for sample in range(context.batch)])
    if "rest" in names:
        rest = names.index("rest")
        for sample in range(context.batch):
            taken = {key for i, region in enumerate(positions) if i != rest for key in region[sample]}
            positions[rest][sample] = [key for key in context.region("all", length)[sample] if key not in taken]
    return names, positions


def _logsumexp(request: ask.Logsumexp, needs: Needs) -> Reader:
    needs.lse = True
    return lambda stats: {"": _got(stats.lse)}


def _entropy(request: ask.Entropy, needs: Needs) -> Reader:
    needs.entropy = True
    return lambda stats: {"": _got(stats.entropy)}


def _rows(request: ask.Rows | ask.Pattern, needs: Needs) -> Reader:
    needs.whole_rows = True
    return lambda stats: {"": _aligned(_got(stats.rows), needs)}


def _mass(request: ask.Mass, needs: Needs) -> Reader:
    inp = needs.inp
    version = (inp.tk, inp.batch, needs.key_start, inp.q.device)
    x = needs.context.made(
        ("mass", needs.site.stack, request.regions),
        version,
        lambda: indicators(needs, region_positions(request, needs)[1]),
    )
    at = needs.project(x, indicator=True)
    return lambda stats: {"": _got(stats.project)[..., at]}


def _weighted(request: ask.Weighted, needs: Needs) -> Reader:
    x = torch.as_tensor(request.x)
    x = x.expand(needs.inp.batch, *x.shape) if x.dim() == 2 else x
    if x.dim() != 3 or x.shape[:2] != (needs.inp.batch, needs.inp.tk):
        raise RequestError(
            f"Weighted(x=…) has shape {tuple(x.shape)}; there are {needs.inp.batch} samples of {needs.inp.tk} keys: "
            f"pass ({needs.inp.tk}, C) or ({needs.inp.batch}, {needs.inp.tk}, C)."
        )
    at = needs.project(x.to(needs.inp.q.device))
    return lambda stats: {"": _got(stats.project)[..., at]}


def _lookup(request: ask.Lookup, needs: Needs) -> Reader:
    keys = torch.as_tensor(request.keys)
    keys = keys.expand(needs.inp.batch, *keys.shape) if keys.dim() == 2 else keys
    if keys.dim() != 3 or keys.shape[:2] != (needs.inp.batch, needs.rows):
        raise RequestError(f"Lookup(keys=…) has shape {tuple(keys.shape)}; there are {needs.rows} query rows.")
    moved = torch.where(keys >= 0, keys - needs.key_start, -1).to(needs.inp.q.device, torch.int64)
    at = needs.lookup(moved)
    return lambda stats: {"": _got(stats.lookup)[..., at]}


def _top_keys(request: ask.TopKeys, needs: Needs) -> Reader:
    needs.top = max(needs.top, request.n)

    def read(stats: Stats) -> dict[str, Tensor]:
        keys, weights = _got(stats.top_keys)[..., : request.n], _got(stats.top_weights)[..., : request.n]
        return {"": torch.where(keys >= 0, keys + needs.key_start, -1), "weights": weights}

    return read


def _received(request: ask.Received, needs: Needs) -> Reader:
    context, inp = needs.context, needs.inp
    valid = context.valid if context.valid is not None and context.valid.shape[1] == inp.tq else None
    weights = torch.ones(inp.batch, 1, inp.tq) if valid is None else valid[:, None].float()
    if request.groups is not None:
        weights = torch.zeros(inp.batch, len(request.groups), inp.tq)
        for index, name in enumerate(request.groups):
            for sample, positions in enumerate(context.region(name, inp.tq)):
                weights[sample, index, positions] = 1
    elif valid is None:
        needs.received = True
        return lambda stats: {"": _aligned(_mean(_got(stats.received), weights[:, 0], request, needs), needs)}
    at = needs.group(weights.to(inp.q.device))

    def read(stats: Stats) -> dict[str, Tensor]:
        sums = _got(stats.grouped)[:, :, at]
        if request.groups is None:
            return {"": _aligned(_mean(sums[:, :, 0], weights[:, 0], request, needs), needs)}
        means = [_mean(sums[:, :, g], weights[:, g], request, needs) for g in range(sums.shape[2])]
        return {"": _aligned(torch.stack(means, dim=2), needs)}

    return read


def _mean(sums: Tensor, weights: Tensor, request: ask.Received, needs: Needs) -> Tensor:
    """Divide column sums (B, H, Tk) by the number of queries, among those of weight 1, that can see each key."""
    if not request.mean:
        return sums
    return sums / visible(needs.inp, weights.to(sums.device))[:, :].clamp(min=1)


def visible(inp: AttentionInputs, weights: Tensor) -> Tensor:
    """Return how many queries of weight 1, weights (B, Tq), may look at each key: (B, 1 or H, Tk)."""
    counts = torch.zeros(inp.batch, 1, inp.tk, device=inp.q.device)
    if inp.mask is None:
        if not inp.causal:
            return counts + weights.sum(-1)[:, None, None]
        later = weights.flip(-1).cumsum(-1).flip(-1)
        first = (torch.arange(inp.tk, device=counts.device) - inp.offset).clamp(min=0)
        return torch.where(first < inp.tq, later[:, first.clamp(max=inp.tq - 1)], 0.0)[:, None]
    allowed = inp.mask if inp.mask.dtype == torch.bool else inp.mask > torch.finfo(inp.mask.dtype).min / 2
    return (weights[:, None, None, :] @ allowed.expand(inp.batch, -1, inp.tq, inp.tk).float())[:, :, 0]


def _pooled(request: ask.Pooled, needs: Needs) -> Reader:
    inp = needs.inp
    height, width = -(-inp.tq // request.rows), -(-inp.tk // request.cols)
    if request.reduce == "max":
        if needs.pooled_max not in (None, (height, width)):
            raise RequestError("Two Pooled(reduce='max') requests of different sizes in one run: ask for one of them.")
        needs.pooled_max = (height, width)
        return lambda stats: {"": _got(stats.pooled_max)}
    version = (inp.tk, inp.batch, inp.q.device)
    blocks = needs.context.made(
        ("pooled", needs.site.stack, width), version, lambda: _bins(inp.tk, width, inp.q.device)
    )
    at = needs.project(blocks.expand(inp.batch, -1, -1), indicator=True)

    def read(stats: Stats) -> dict[str, Tensor]:
        means = (_got(stats.project)[..., at] / blocks.sum(0)).split(height, dim=2)
        return {"": torch.stack([block.mean(2) for block in means], dim=2)}

    return read


def _bins(length: int, width: int, device: torch.device) -> Tensor:
    """Return (keys, bins) with 1 where a key is in a bin."""
    return torch.nn.functional.one_hot(torch.arange(length, device=device) // width).float()


def _value_norms(request: ask.ValueNorms, needs: Needs) -> Reader:
    def read(stats: Stats) -> dict[str, Tensor]:
        v = needs.inp.v.float().repeat_interleave(needs.inp.group, dim=1)
        if not request.through_output:
            return {"": _aligned(v.norm(dim=-1), needs)}
        weight = needs.site.output_weight().detach().float()
        gram = weight @ weight.transpose(1, 2)  # ‖v W‖² = v (W Wᵀ) vᵀ, without the width of the residual stream
        return {"": _aligned(((v @ gram) * v).sum(-1).clamp(min=0).sqrt(), needs)}

    return read


def _aligned(x: Tensor, needs: Needs) -> Tensor:
    """Put zeros where a sliding-window cache has dropped keys, so that the last dimension is absolute positions."""
    return torch.nn.functional.pad(x, (needs.key_start, 0)) if needs.key_start else x


PLANNERS: dict[type[ask.Request], Callable[..., Reader]] = {
    ask.Logsumexp: _logsumexp,
    ask.Entropy: _entropy,
    ask.Rows: _rows,
    ask.Pattern: _rows,
    ask.Mass: _mass,
    ask.Weighted: _weighted,
    ask.Lookup: _lookup,
    ask.TopKeys: _top_keys,
    ask.Received: _received,
    ask.Pooled: _pooled,
    ask.ValueNorms: _value_norms,
}
"""Requests that are answered inside an attention call."""

DIMENSIONS: dict[type[ask.Request], tuple[str, ...]] = {
    ask.Logsumexp: ("batch", "head", "query"),
    ask.Entropy: ("batch", "head", "query"),
    ask.Rows: ("batch", "head", "query", "key"),
    ask.Pattern: ("batch", "head", "query", "key"),
    ask.Mass: ("batch", "head", "query", "region"),
    ask.Weighted: ("batch", "head", "query", "channel"),
    ask.Lookup: ("batch", "head", "query", "slot"),
    ask.TopKeys: ("batch", "head", "query", "rank"),
    ask.Received: ("batch", "head", "key"),
    ask.Pooled: ("batch", "head", "row", "col"),
    ask.ValueNorms: ("batch", "head", "key"),
    ask.GradReceived: ("batch", "head", "key"),
    ask.HeadOutput: ("batch", "head", "query", "dim"),
    ask.Residual: ("batch", "query", "dim"),
    ask.MlpActivation: ("batch", "query", "unit"),
    ask.QK: (),
}
"""Dimensions of each request's array of one layer."""


def dimensions(request: ask.Request) -> tuple[str, ...]:
    """Return the dimensions of the request's array of one layer."""
    if isinstance(request, ask.Received) and request.groups is not None:
        return ("batch", "head", "group", "key")
    return DIMENSIONS[type(request)]
