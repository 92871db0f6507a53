"""Steering vectors: one direction that separates two kinds of text, added while the model runs.

Mean difference: Rimsky et al. 2024, "Steering Llama 2 via contrastive activation addition". Principal component: Zou et
al. 2023, "Representation engineering". Both read activations at one place of the two prompts of a pair, by default at
the last token, which for pairs that differ in their answer is the answer's token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from headscope.errors import DataError, RequestError
from headscope.interventions.base import Method

if TYPE_CHECKING:
    from headscope.attention.edits import Edit
    from headscope.models.model import Model
    from headscope.models.prompt import Prompt

Floats = NDArray[np.float64]
Fit = Literal["mean", "pca"]
Site = Literal["residual", "head"]


@dataclass(frozen=True)
class ContrastPair:
    """Two prompts that differ in what the vector shall stand for.

    Parameters
    ----------
    positive, negative
        With the wanted property and without: prompts, or text. For a causal measure of the vector they share their
        beginning and differ in the answer, as ``contrast_pairs`` makes them.
    source
        Cluster for intervals; pairs made from one text share it.
    """

    positive: Prompt | str
    negative: Prompt | str
    source: str = ""


@dataclass(frozen=True, eq=False)
class SteeringVector(Method):
    """Add a fitted direction to the residual stream of one layer, or to z of some heads of it.

    Made by ``SteeringVector.fit``. What is added is coefficient · v, or with ``units="norm"``
    coefficient · norm · v / ‖v‖, so that 1 is as long as a typical activation there.

    Parameters
    ----------
    layer
        As ``Residual()`` counts: the stream that block ``layer`` reads. With heads: their layer.
    vector
        v: (D,), or (heads, Dv) for ``site="head"``.
    coefficient
        How strong, and with its sign in which direction. 0 is neutral.
    units
        ``"raw"`` or ``"norm"``.
    norm
        Mean norm of the activations that the vector was fitted on; with heads, over all of them side by side.
    site, heads
        ``"residual"``, or ``"head"`` with heads of ``layer``.
    positions
        Where to add it: everywhere, or at regions of the prompt; see ``ResidualEdit``. Heads are steered everywhere.
    fit_by, n_pairs, share
        How it was fitted, on how many pairs, and the share of the pairs' squared differences along v.
    """

    name: ClassVar[str] = "steering"

    layer: int
    vector: Any = field(repr=False)
    coefficient: float = 1.0
    units: Literal["raw", "norm"] = "raw"
    norm: float | None = None
    site: Site = "residual"
    heads: tuple[tuple[int, int], ...] = ()
    positions: str | tuple[str | int, ...] | None = None
    fit_by: Fit = "mean"
    n_pairs: int = 0
    share: float | None = None

    def __post_init__(self) -> None:
        vector = np.asarray(self.vector, dtype=np.float32)
        heads = tuple((int(layer), int(head)) for layer, head in self.heads)
        if self.site not in ("residual", "head"):
            raise RequestError(f"SteeringVector(site={self.site!r}): choose residual or head.")
        if self.units not in ("raw", "norm"):
            raise RequestError(f"SteeringVector(units={self.units!r}): choose raw or norm.")
        if vector.ndim != (1 if self.site == "residual" else 2) or not vector.size:
            wanted = "(D,)" if self.site == "residual" else "(heads, Dv)"
            raise RequestError(f"SteeringVector(site={self.site!r}) takes a vector {wanted}, not {vector.shape}.")
        if not np.isfinite(vector).all() or not np.isfinite(self.coefficient):
            raise RequestError("The steering vector or its coefficient is not finite.")
        if self.site == "head":
            self._check_heads(heads, len(vector))
        elif heads:
            raise RequestError("SteeringVector(heads=…) needs site='head'; the residual stream has no heads.")
        if self.units == "norm" and not (self.norm and self.norm > 0 and bool(vector.any())):
            raise RequestError("SteeringVector(units='norm') needs norm= above 0 and a vector that is not 0.")
        object.__setattr__(self, "vector", vector)
        object.__setattr__(self, "heads", heads)

    def _check_heads(self, heads: tuple[tuple[int, int], ...], rows: int) -> None:
        if len(heads) != rows or len(set(heads)) < len(heads) or {layer for layer, _ in heads} - {self.layer}:
            raise RequestError(
                f"SteeringVector(site='head') takes one vector for each of heads= of layer {self.layer}."
            )
        if self.positions is not None:
            raise RequestError("Heads are steered at every position: leave out positions=, or use site='residual'.")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SteeringVector):
            return NotImplemented
        from headscope.interventions.store import encode

        return bool(encode(self) == encode(other))

    def __hash__(self) -> int:
        return hash((self.layer, self.coefficient, self.site, self.heads, self.vector.tobytes()))

    @property
    def added(self) -> NDArray[np.float32]:
        """What is added to the activation, in its own units: of the shape of ``vector``."""
        scale = float(self.coefficient)
        if self.units == "norm":
            scale *= float(self.norm or 0.0) / float(np.linalg.norm(self.vector))
        return np.asarray(scale * self.vector, dtype=np.float32)

    @property
    def neutral(self) -> bool:
        """Whether nothing is added."""
        return not bool(self.added.any())

    def neutralised(self) -> Self:
        """Return the method with coefficient 0."""
        return replace(self, coefficient=0.0)

    def edits(self, model: Model) -> tuple[Edit, ...]:
        """Return the edit of the stream, or of the heads."""
        import torch

        from headscope.attention.edits import HeadEdit
        from headscope.attention.edits.residual import ResidualEdit

        added = torch.from_numpy(self.added)
        if self.site == "residual":
            return (ResidualEdit(self.layer, added, positions=self.positions),)
        values = {pair: torch.stack([torch.zeros_like(v), v]) for pair, v in zip(self.heads, added, strict=True)}
        return (HeadEdit(self.heads, mode="affine", values=values),)

    def with_heads(self, heads: Iterable[tuple[int, int]]) -> Self:
        """Return the method with its vectors on as many other heads of the layer.

        Raises
        ------
        RequestError
            If it steers the stream, or the heads are not as many or of another layer.
        """
        if self.site == "residual":
            raise RequestError("A steering vector on the stream has no heads; control(seed) is its random control.")
        return replace(self, heads=tuple(heads))

    def control(self, seed: int) -> Self:
        """Return the same method with a random direction of equal norm, head by head: what any push would do."""
        drawn = np.random.default_rng(seed).standard_normal(self.vector.shape)
        length = np.linalg.norm(self.vector, axis=-1, keepdims=True)
        return replace(self, vector=drawn / np.linalg.norm(drawn, axis=-1, keepdims=True) * length)

    @classmethod
    def fit(
        cls,
        model: Model,
        pairs: Sequence[ContrastPair | tuple[Any, Any]],
        layer: int,
        *,
        method: Fit = "mean",
        site: Site = "residual",
        heads: Iterable[tuple[int, int]] | None = None,
        position: str = "last",
        batch_size: int = 8,
        **options: Any,
    ) -> Self:
        """Fit the direction on pairs of prompts.

        Parameters
        ----------
        layer
            Where to read and to steer.
        method
            ``"mean"``: the mean of positive − negative. ``"pca"``: the first principal component of the activations
            after each pair is centred at its midpoint, turned and scaled to the mean difference along it.
        site, heads
            The stream, or z of some heads of the layer (all by default).
        position
            Where in the prompts to read: ``"last"`` or a region, over which activations are averaged.
        batch_size
            Prompts per forward pass.
        options
            Further fields, such as ``coefficient``, ``units`` and ``positions``.

        Raises
        ------
        DataError
            If there are fewer than two pairs, or the activations of a pair's two prompts are the same everywhere.
        """
        chosen = heads_of(model, layer, heads) if site == "head" else ()
        held = activations(model, pairs, [layer], site=site, position=position, batch_size=batch_size)
        return cls._from_activations(held[layer], layer, method, site, chosen, options)

    @classmethod
    def _from_activations(
        cls, x: Floats, layer: int, method: Fit, site: Site, heads: tuple[tuple[int, int], ...], options: dict[str, Any]
    ) -> Self:
        """Fit on activations (pairs, 2, D) or (pairs, 2, H, Dv)."""
        if site == "head":
            x = x[:, :, [head for _, head in heads]]
        flat = x.reshape(len(x), 2, -1)
        direction, share = fit_direction(flat[:, 0] - flat[:, 1], method)
        return cls(
            layer=layer,
            vector=direction.reshape(x.shape[2:]),
            norm=float(np.linalg.norm(flat, axis=-1).mean()),
            site=site,
            heads=heads,
            fit_by=method,
            n_pairs=len(x),
            share=share,
            **options,
        )


def fit_direction(differences: Floats, method: Fit = "mean") -> tuple[Floats, float]:
    """Return the direction (D,) of differences (N, D), and the share of their squared length that lies along it."""
    differences = np.asarray(differences, dtype=np.float64)
    if method not in ("mean", "pca"):
        raise RequestError(f"A steering vector is fitted by 'mean' or 'pca', not {method!r}.")
    if len(differences) < 2:
        raise DataError(f"A steering vector needs at least two pairs, got {len(differences)}.")
    total = float((differences**2).sum())
    if not np.isfinite(total) or total == 0:
        raise DataError("The pairs' activations are equal (or not finite): they differ in nothing a vector could hold.")
    mean = differences.mean(axis=0)
    if method == "pca":
        # Points ±d/2, each pair centred at its midpoint: their covariance is Σ d dᵀ, so the mean is not taken out.
        unit = np.linalg.svd(differences, full_matrices=False)[2][0]
        mean = unit * float(unit @ mean)
    length = float(np.linalg.norm(mean))
    if length < 1e-9 * np.sqrt(total / len(differences)):
        raise DataError(
            "The pairs' differences cancel: no direction is common to them. Check which prompt is positive."
        )
    return mean, float(((differences @ (mean / length)) ** 2).sum() / total)


def activations(
    model: Model,
    pairs: Sequence[ContrastPair | tuple[Any, Any]],
    layers: Sequence[int],
    *,
    site: Site = "residual",
    position: str = "last",
    batch_size: int = 8,
) -> dict[int, Floats]:
    """Return per layer the activations at ``position``: (pairs, 2, D), or z as (pairs, 2, H, Dv); positives first."""
    from headscope.attention.requests import HeadOutput, Residual

    flat = [prompt for pair in as_pairs(pairs) for prompt in (pair.positive, pair.negative)]
    kind = Residual if site == "residual" else HeadOutput
    out: dict[int, list[Floats]] = {layer: [] for layer in layers}
    for chunk in chunks(prompts_of(model, flat), batch_size):
        run = model.run(chunk, [kind(layers=list(layers), queries=position, name="read")], logits=False)
        values = np.asarray(run["read"].values, dtype=np.float64)
        for index, layer in enumerate(layers):
            # Batches differ in how many tokens the region has; rows that are not there are NaN.
            out[layer].append(np.nanmean(values[index], axis=-2))
    joined = {layer: np.concatenate(parts) for layer, parts in out.items()}
    return {layer: x.reshape(-1, 2, *x.shape[1:]) for layer, x in joined.items()}


def as_pairs(pairs: Sequence[ContrastPair | tuple[Any, Any]]) -> list[ContrastPair]:
    """Return pairs given as ContrastPair or as (positive, negative)."""
    made = [pair if isinstance(pair, ContrastPair) else ContrastPair(*pair) for pair in pairs]
    if not made:
        raise DataError("There are no contrast pairs: pass (positive, negative) prompts.")
    return made


def prompts_of(model: Model, given: Sequence[Prompt | str]) -> list[Prompt]:
    """Return text and prompts as prompts."""
    from headscope.models.prompt import Prompt

    return [Prompt.from_text(model._need_tokenizer(), p) if isinstance(p, str) else p for p in given]


def chunks(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """Yield ``size`` items at a time."""
    for start in range(0, len(items), max(1, size)):
        yield list(items[start : start + max(1, size)])


def heads_of(model: Model, layer: int, heads: Iterable[tuple[int, int]] | None) -> tuple[tuple[int, int], ...]:
    """Return the heads of a layer that are named, or all of them; RequestError if one is of another layer."""
    if heads is None:
        return tuple(pair for pair in model.spec.heads() if pair[0] == layer)
    chosen = tuple((int(at), int(head)) for at, head in heads)
    if not chosen or any(at != layer for at, _ in chosen):
        raise RequestError(f"Heads to steer must be heads of layer {layer}: got {list(chosen)[:5]}.")
    return chosen
