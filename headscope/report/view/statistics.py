"""One number for every head: what the model view is coloured by."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from headscope.attention.result import Run, Stat
    from headscope.models.spec import LayerSpec

Floats = NDArray[np.float32]

SEEN = 8
"""Queries that must see a key for its mean attention to count: the last keys of a causal model have very few."""

REACH, RECEIVED = "reach", "received_mean"
"""Names of captures that are not told apart by their kind alone: keys' mass and position, and means over queries."""

_SHARE = "share of attention"
_MEAN = "Mean over all queries, the first ones too, which see few tokens."


@dataclass(frozen=True)
class Statistic:
    """A statistic of every head.

    Parameters
    ----------
    name, label, unit
        What it is called.
    low, high
        Ends of its scale; no ``high`` if its scale ends at the largest value there is.
    about
        What it is, in a sentence.
    values
        (layers, heads); NaN where there is no head.
    """

    name: str
    label: str
    unit: str
    low: float
    high: float | None
    about: str
    values: Floats

    def meta(self) -> dict[str, Any]:
        """Return all but the values, as JSON values."""
        return {name: value for name, value in asdict(self).items() if name != "values"}


def statistics(run: Run, layers: Sequence[LayerSpec], length: int, distances: Floats | None) -> list[Statistic]:
    """Return those statistics that a run of one prompt has the captures for.

    Parameters
    ----------
    layers
        The layers of the stack that was looked at.
    length
        Tokens of the prompt.
    distances
        (layers, heads) mean distance between a query and what it attends to where the captures cannot tell; NaN else.
    """
    found = []
    wide = max(layer.heads for layer in layers)

    def grid(stat: Stat) -> Floats:
        return on_grid(stat, len(layers), wide)

    def share(name: str, label: str, about: str, values: Floats, high: float | None = 1.0) -> None:
        found.append(Statistic(name, label, _SHARE, 0.0, high, about, values))

    def whole(key: str) -> Any:
        """Return a stat of the one prompt if it is of all its queries."""
        stat = run[key].isel(batch=0) if key in run and run[key].sizes.get("batch") == 1 else None
        return stat if stat is not None and stat.sizes.get("query", length) == length else None

    if (mass := whole("mass")) is not None:
        mass = mass.mean("query")
        for region in map(str, mass.region.values):
            values = grid(mass.sel(region=region))
            if region == "bos":
                share("sink", "Sink", f"Attention to the first token. {_MEAN}", values)
            else:
                # Mass on a region is small where the region is.
                share(f"mass:{region}", f"Mass on {region}", f"Attention to the region {region}. {_MEAN}", values, None)
    if (entropy := whole("entropy")) is not None:
        values = grid(entropy.mean("query"))
        about = f"Entropy of a row: 0 where it attends to one token. {_MEAN}"
        found.append(Statistic("entropy", "Entropy", "nats", 0.0, math.log(max(2, length)), about, values))
    if (reach := whole(REACH)) is not None:
        values = grid(_reach(reach))
        if distances is not None:
            values = np.where(np.isnan(distances), values, distances)
        for index, layer in enumerate(layers):
            if not layer.causal and (distances is None or np.isnan(distances[index]).all()):
                values[index] = np.nan
        if not np.isnan(values).all():
            about = f"Distance between a token and what it attends to, by attention. {_MEAN}"
            found.append(Statistic("locality", "Reach", "tokens", 0.0, max(1.0, length / 2), about, values))
    if (largest := whole("top_weights")) is not None:
        values = grid(largest.isel(rank=0).mean("query"))
        share("largest", "Largest weight", f"Largest weight of a row. {_MEAN}", values)
    if (received := whole(RECEIVED)) is not None:
        values = grid(received.max("key"))
        if length > SEEN:
            early = grid(received.isel(key=slice(0, length - SEEN + 1)).max("key"))
            causal = np.array([layer.causal for layer in layers])[:, None]
            values = np.where(causal, early, values)
        about = (
            "What the token that receives most gets from the queries that see it, in the mean; tokens that fewer than "
            f"{SEEN} queries see are left out."
        )
        share("received-max", "Most received", about, values)
    return found


def of_heads(run: Run, key: str) -> Iterator[tuple[int, int, Floats]]:
    """Yield (layer, head, values) of a capture of one prompt by layers and heads, or by pairs of them; none if not."""
    if key not in run or run[key].sizes.get("batch") != 1:
        return
    stat = run[key].isel(batch=0)
    if "pair" in stat.dims:
        pairs = zip(stat["layer"].values.tolist(), stat["head"].values.tolist(), strict=True)
        yield from ((layer, head, stat.values[at]) for at, (layer, head) in enumerate(pairs))
    elif stat.dims[:2] == ("layer", "head"):
        for at, layer in enumerate(stat["layer"].values.tolist()):
            yield from ((layer, head, values) for head, values in enumerate(stat.values[at]))


def on_grid(stat: Stat, layers: int, heads: int) -> Floats:
    """Return a stat of layers and heads, or of pairs of them, as (layers, heads), NaN where it says nothing."""
    grid = np.full((layers, heads), np.nan, np.float32)
    if "pair" in stat.dims:
        grid[stat["layer"].values, stat["head"].values] = stat.values
        return grid
    values = stat.transpose("layer", "head").values
    grid[stat["layer"].values, : values.shape[1]] = values
    return grid


def _reach(stat: Stat) -> Stat:
    """Return the mean distance from mass and expected position of what is attended to, of causal rows."""
    mass, moment = stat.isel(channel=0), stat.isel(channel=1)
    return (stat["query"] - moment / mass.where(mass > 0)).clip(min=0).mean("query")
