"""LoFiT: choose the heads that matter for a task by training, then tune an offset of those heads alone."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headscope.attention.edits import HeadEdit
from headscope.errors import RequestError
from headscope.files import canonical_json
from headscope.interventions.base import Head, Method
from headscope.interventions.training import Example, Loss, Recipe, hashed, open_store, train

if TYPE_CHECKING:
    import pandas as pd

    from headscope.attention.edits import Edit
    from headscope.attention.sites import Site
    from headscope.probes.base import Progress
    from headscope.probes.scores import HeadScores

Rows = tuple[NDArray[np.float32], ...]
"""One vector (Dv,) for each head, in the order of the heads."""

STD = 1e-3
"""Standard deviation of initial values."""


class ByContent:
    """Methods that carry arrays are equal when all that they hold is."""

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._content() == other._content()

    def __hash__(self) -> int:
        return hash(self._content())

    def _content(self) -> str:
        from headscope.interventions.store import encode

        return canonical_json(encode(self))


@dataclass(frozen=True, eq=False)
class LoFiT(ByContent, Method):
    """Localised fine-tuning (Yin et al. 2024): z' = (1 + A) * z + v on a few heads, at every position.

    Made by ``tune_lofit``. z is a head's output before the output projection, so that heads which share keys and
    values are told apart.

    Parameters
    ----------
    heads
        (layer, head) pairs.
    v
        Offsets: one vector (Dv,) for each head, or an array (heads, Dv).
    A
        Gains, in the same form; none where only offsets were trained.
    stack
        Which attention; the model's own by default.
    """

    heads: tuple[Head, ...]
    v: Rows | None = None
    A: Rows | None = None
    stack: str | None = None
    name: ClassVar[str] = "lofit"

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", _pairs(self.heads, "LoFiT"))
        if self.v is None and self.A is None:
            raise RequestError("LoFiT has neither v nor A: make it with tune_lofit(model, examples).")
        for part in ("v", "A"):
            if getattr(self, part) is not None:
                object.__setattr__(self, part, as_rows(getattr(self, part), self.heads, f"LoFiT({part}=…)"))

    @property
    def neutral(self) -> bool:
        """Whether all offsets and gains are 0."""
        return not any(row.any() for part in (self.v, self.A) if part is not None for row in part)

    def neutralised(self) -> Self:
        """Return the method with offsets and gains of 0."""
        return replace(self, v=_zeros(self.v), A=_zeros(self.A))

    def with_heads(self, heads: Iterable[Head]) -> Self:
        """Return the method on other heads; see ``moved`` for which vector goes where."""
        pairs = _pairs(heads, "LoFiT")
        v, A = (None if part is None else moved(part, self.heads, pairs, "LoFiT") for part in (self.v, self.A))
        return replace(self, heads=pairs, v=v, A=A)

    def edits(self, model: Any) -> tuple[Edit, ...]:
        """Return one affine edit of z."""
        v, A = self.v or _zeros(self.A) or (), self.A or _zeros(self.v) or ()
        values = {pair: np.stack([a, b]) for pair, a, b in zip(self.heads, A, v, strict=True)}
        return (HeadEdit(self.heads, mode="affine", values=values, stack=self.stack),)


@dataclass(frozen=True)
class LoFiTRecipe:
    """How LoFiT is trained; the defaults are those of the paper for TruthfulQA on Llama-2-7B, with SFT for DPO.

    Parameters
    ----------
    k
        How many heads stage 2 tunes.
    lr_A, l1
        Learning rate of stage 1, and its weight of the L1 norm of A, which leaves few heads with large gains.
    lr_v
        Learning rate of stage 2, which has no L1.
    candidates
        How many heads stage 1 marks as selected.
    epochs, batch, seed, loss, beta
        As in ``Recipe``; the paper uses ``loss="dpo"`` with beta 0.5 for TruthfulQA and SFT elsewhere.
    """

    k: int = 32
    lr_A: float = 5e-3
    l1: float = 5e-4
    lr_v: float = 1e-2
    candidates: int = 160
    epochs: int = 5
    batch: int = 8
    seed: int = 42
    loss: Loss = "sft"
    beta: float = 0.5

    def __post_init__(self) -> None:
        if self.k < 1 or self.candidates < 1:
            raise RequestError(f"k={self.k}, candidates={self.candidates}: choose at least one head.")
        self.stage("A"), self.stage("v")

    def stage(self, part: Literal["A", "v"]) -> Recipe:
        """Return the recipe of stage 1, which trains A, or of stage 2, which trains v."""
        lr, l1 = (self.lr_A, self.l1) if part == "A" else (self.lr_v, 0.0)
        return Recipe(lr, self.epochs, self.batch, self.seed, self.loss, self.beta, l1)


@dataclass(frozen=True)
class Tuned:
    """A trained method.

    Attributes
    ----------
    method
        What goes into ``model.edited`` and ``headscope.interventions.save``.
    parameters
        How many numbers the method adds to the model.
    history
        Mean loss of each epoch, and the penalty at its end, for each stage.
    scores
        The heads that it chose from, where it chose any.
    seconds
        Wall-clock time of the training.
    notes
        What a reader must know.
    """

    method: Method
    parameters: int
    history: Mapping[str, Sequence[Mapping[str, float]]] = field(default_factory=dict)
    scores: HeadScores | None = None
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


class Table:
    """A or v of some heads as trainable tensors, one for each layer, and the hooks that apply them."""

    def __init__(self, model: Any, heads: Sequence[Head], part: Literal["A", "v"], seed: int) -> None:
        self.part, self.heads = part, tuple(sorted(heads))
        self.sites: dict[int, Site] = model.sites.stack(None)
        generator = torch.Generator().manual_seed(seed)
        self.tensors: dict[str, Tensor] = {}
        self.index: dict[int, Tensor] = {}
        for layer in sorted({layer for layer, _ in self.heads}):
            here = [head for at, head in self.heads if at == layer]
            width = self.sites[layer].output_weight().shape[1]
            start = torch.randn(len(here), width, generator=generator) * STD
            self.tensors[f"layer{layer}"] = start.to(model.device)
            self.index[layer] = torch.tensor(here, device=model.device)

    @contextlib.contextmanager
    def under(self, mask: Tensor | None) -> Iterator[None]:
        """Run the model under the tensors inside the block; padding (0 in ``mask``, (B, T)) is not edited."""
        handles = [self._install(layer, mask) for layer in self.index]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _install(self, layer: int, mask: Tensor | None) -> Any:
        site, index, tensor = self.sites[layer], self.index[layer], self.tensors[f"layer{layer}"]

        def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            z = args[0]
            whole = tensor.new_zeros(site.heads, tensor.shape[1]).index_copy(0, index, tensor).flatten().to(z.dtype)
            change = whole if mask is None else whole * mask[..., None].to(z.dtype)
            return (z + (z * change if self.part == "A" else change), *args[1:])

        return site.output.register_forward_pre_hook(hook)

    def rows(self) -> Rows:
        """Return the vector of each head."""
        return tuple(
            np.ascontiguousarray(row.detach().float().cpu().numpy())
            for layer in self.index
            for row in self.tensors[f"layer{layer}"]
        )


def select_heads(
    model: Any,
    data: Sequence[Example],
    recipe: LoFiTRecipe | None = None,
    *,
    heads: Sequence[Head] | None = None,
    out: str | Path | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> HeadScores:
    """Stage 1: train a gain A for all heads under an L1 penalty; a head's score is the norm of its A.

    Parameters
    ----------
    heads
        Which heads to choose from; all of them by default.
    out, fresh
        Folder of checkpoints, and whether to discard what an earlier run left there.
    progress
        Called with (stage, steps done, steps in all).

    Returns
    -------
    Scores of the heads; ``selected`` are the best ``recipe.candidates``. ``details["history"]`` has the losses.
    """
    import pandas as pd

    from headscope.probes.provenance import describe_model, dtype_name, machine, now, versions
    from headscope.probes.scores import HeadScores

    recipe = recipe or LoFiTRecipe()
    pairs = sorted(heads) if heads is not None else model.spec.heads()
    model.sites.check_heads(tuple(pairs))
    table = Table(model, pairs, "A", recipe.seed)
    store = open_store(model, out, "lofit-select", data, recipe.stage("A"), fresh, heads=pairs)
    history = train(
        model, table.tensors, data, recipe.stage("A"), under=table.under, stage="lofit-select", store=store,
        progress=progress,
    )  # fmt: skip
    norms = np.array([np.linalg.norm(row) for row in table.rows()], dtype=np.float64)
    best = {pairs[i] for i in np.argsort(-norms, kind="stable")[: recipe.candidates]}
    nothing = np.full(len(pairs), np.nan)
    frame = pd.DataFrame(
        {
            "layer": [layer for layer, _ in pairs],
            "head": [head for _, head in pairs],
            "score": norms,
            "ci_low": nothing,
            "ci_high": nothing,
            "n": len(data),
            "null_mean": nothing,
            "p_value": nothing,
            "selected": [pair in best for pair in pairs],
        }
    )
    provenance = {
        "probe": "lofit",
        "parameters": asdict(recipe),
        "model": describe_model(model),
        "data": {"name": "examples", "parameters": {}, "hash": hashed(data), "n": len(data)},
        "seed": recipe.seed,
        "dtype": dtype_name(model),
        "engine": "headscope",
        "versions": versions(),
        "machine": machine(model),
        "created": now(),
        "notes": ["A score is the norm of a trained gain: it has no interval and no null of its own."],
    }
    return HeadScores(frame, "lofit", provenance, {"history": pd.DataFrame(history)})


def tune_lofit(
    model: Any,
    data: Sequence[Example],
    recipe: LoFiTRecipe | None = None,
    *,
    heads: Sequence[Head] | None = None,
    scores: HeadScores | None = None,
    out: str | Path | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
    stage: str = "lofit-tune",
) -> Tuned:
    """Tune offsets v of the ``recipe.k`` best heads of stage 1, from a model without the gains of stage 1.

    Parameters
    ----------
    heads
        Tune these heads, and leave stage 1 out.
    scores
        Stage 1, where it was run before.
    out, fresh, progress
        As in ``select_heads``.
    stage
        Name of the progress bar and of the checkpoints.
    """
    recipe, began, history = recipe or LoFiTRecipe(), time.perf_counter(), {}
    total = len(model.spec.heads())
    if heads is None:
        if recipe.k > total:
            raise RequestError(f"k={recipe.k}: {model.name} has {total} heads. Choose fewer.")
        scores = scores or select_heads(model, data, recipe, out=out, fresh=fresh, progress=progress)
        heads = scores.top(recipe.k)
        if "history" in scores.details:
            history["lofit-select"] = _lines(scores.details["history"])
    pairs = tuple(sorted(_pairs(heads, "tune_lofit")))
    model.sites.check_heads(pairs)
    table = Table(model, pairs, "v", recipe.seed)
    store = open_store(model, out, stage, data, recipe.stage("v"), fresh, heads=pairs)
    history[stage] = train(
        model, table.tensors, data, recipe.stage("v"), under=table.under, stage=stage, store=store, progress=progress
    )
    rows = table.rows()
    return Tuned(
        LoFiT(pairs, v=rows), sum(row.size for row in rows), history, scores, seconds=time.perf_counter() - began
    )


def overlap(rankings: Mapping[str, Sequence[Head]], total: int) -> pd.DataFrame:
    """How many heads equally long selections share, beside what random selections of that size would.

    Parameters
    ----------
    rankings
        Selections by name, all of one length.
    total
        How many heads the model has.

    Returns
    -------
    One row for each pair of names: a, b, k, shared, by_chance (expected among random selections), p_value (the
    chance that random selections share at least as many, hypergeometric).
    """
    import pandas as pd
    from scipy import stats

    sizes = {len(set(heads)) for heads in rankings.values()}
    if len(sizes) != 1 or len(rankings) < 2:
        raise RequestError(f"overlap() compares two or more selections of one size, not of sizes {sorted(sizes)}.")
    k, names, rows = sizes.pop(), list(rankings), []
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            shared = len(set(rankings[a]) & set(rankings[b]))
            chance = float(stats.hypergeom.sf(shared - 1, total, k, k))
            rows.append({"a": a, "b": b, "k": k, "shared": shared, "by_chance": k * k / total, "p_value": chance})
    return pd.DataFrame(rows)


def as_rows(values: Any, heads: Sequence[Head], what: str) -> Rows:
    """Return one float32 vector for each head.

    Raises
    ------
    RequestError
        If there is not one vector for each head, or a number is not finite.
    """
    rows = tuple(np.array(row, dtype=np.float32) for row in values)
    if len(rows) != len(heads) or any(row.ndim != 1 or not row.size for row in rows):
        raise RequestError(
            f"{what} needs one vector for each of {len(heads)} heads, got shapes {[row.shape for row in rows][:4]}."
        )
    if not all(np.isfinite(row).all() for row in rows):
        raise RequestError(f"{what} holds numbers that are not finite.")
    return rows


def moved(rows: Rows, old: Sequence[Head], new: Sequence[Head], kind: str) -> Rows:
    """Return the vectors for other heads: heads that had one keep it, the others take those that became free.

    Free vectors go to new heads in order of layer and head. With as many heads as before the total change has the
    norm that it had, which is what makes the method on random heads a control.

    Raises
    ------
    RequestError
        If there are more new heads than vectors.
    """
    held = dict(zip(old, rows, strict=True))
    free = [held[pair] for pair in sorted(held) if pair not in set(new)]
    missing = [pair for pair in sorted(new) if pair not in held]
    if len(missing) > len(free):
        raise RequestError(
            f"{kind} has trained vectors of {len(old)} heads and cannot act on {len(new)}: choose as many, or fewer."
        )
    held |= dict(zip(missing, free, strict=False))
    return tuple(held[pair] for pair in new)


def _pairs(heads: Iterable[Head], kind: str) -> tuple[Head, ...]:
    pairs = tuple((int(layer), int(head)) for layer, head in heads)
    if not pairs:
        raise RequestError(f"{kind} names no head: pass heads=[(layer, head), …].")
    if len(set(pairs)) < len(pairs):
        raise RequestError(f"{kind} names a head twice.")
    return pairs


def _zeros(rows: Rows | None) -> Rows | None:
    return None if rows is None else tuple(np.zeros_like(row) for row in rows)


def _lines(frame: pd.DataFrame) -> list[dict[str, float]]:
    return [{str(key): float(value) for key, value in line.items()} for line in frame.to_dict("records")]
