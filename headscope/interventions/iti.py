"""Inference-time intervention: shift heads that tell right answers from wrong ones along what tells them apart."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headscope.attention.edits import HeadEdit
from headscope.errors import DataError, RequestError
from headscope.interventions.base import Head, Method
from headscope.interventions.lofit import ByContent, Rows, Tuned, as_rows, moved
from headscope.interventions.training import Example, hashed, open_store

if TYPE_CHECKING:
    import pandas as pd

    from headscope.attention.edits import Edit
    from headscope.probes.base import Progress
    from headscope.probes.scores import HeadScores
    from headscope.probes.store import Store

Direction = Literal["mass_mean_shift", "probe_weight"]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ITI(ByContent, Method):
    """Inference-time intervention (Li et al. 2023): z' = z + alpha · sigma · direction on a few heads.

    Made by ``fit_iti``. Acts at every position.

    Parameters
    ----------
    heads
        (layer, head) pairs.
    directions
        Unit vector (Dv,) of each head, from wrong to right answers.
    sigma
        Standard deviation of each head's z along its direction.
    alpha
        Strength in standard deviations; 0 changes nothing.
    stack
        Which attention; the model's own by default.
    """

    heads: tuple[Head, ...]
    directions: Rows
    sigma: tuple[float, ...]
    alpha: float = 15.0
    stack: str | None = None
    name: ClassVar[str] = "iti"

    def __post_init__(self) -> None:
        pairs = tuple((int(layer), int(head)) for layer, head in self.heads)
        if not pairs or len(set(pairs)) < len(pairs):
            raise RequestError("ITI needs heads, each once: make it with fit_iti(model, train, validation).")
        object.__setattr__(self, "heads", pairs)
        object.__setattr__(self, "directions", as_rows(self.directions, pairs, "ITI(directions=…)"))
        object.__setattr__(self, "sigma", tuple(float(value) for value in self.sigma))
        if len(self.sigma) != len(pairs) or not all(np.isfinite(value) and value >= 0 for value in self.sigma):
            raise RequestError(f"ITI(sigma=…) needs a finite number of at least 0 for each of {len(pairs)} heads.")
        if not np.isfinite(self.alpha):
            raise RequestError(f"ITI(alpha={self.alpha!r}): give a finite number.")

    @property
    def neutral(self) -> bool:
        """Whether nothing is shifted."""
        return self.alpha == 0 or not any(self.sigma)

    def neutralised(self) -> Self:
        """Return the method with ``alpha=0``."""
        return replace(self, alpha=0.0)

    def with_heads(self, heads: Iterable[Head]) -> Self:
        """Return the method on other heads: each shift keeps its size; see ``headscope.interventions.lofit.moved``."""
        pairs = tuple((int(layer), int(head)) for layer, head in heads)
        sigma = moved(as_rows([[value] for value in self.sigma], self.heads, "ITI"), self.heads, pairs, "ITI")
        return replace(
            self,
            heads=pairs,
            directions=moved(self.directions, self.heads, pairs, "ITI"),
            sigma=tuple(float(value[0]) for value in sigma),
        )

    def edits(self, model: Any) -> tuple[Edit, ...]:
        """Return one affine edit of z, with a gain of 0."""
        values = {
            pair: np.stack([np.zeros_like(row), np.float32(self.alpha * sigma) * row])
            for pair, row, sigma in zip(self.heads, self.directions, self.sigma, strict=True)
        }
        return (HeadEdit(self.heads, mode="affine", values=values, stack=self.stack),)


@dataclass(frozen=True)
class ITIRecipe:
    """How ITI is fitted.

    Parameters
    ----------
    k
        How many heads: those whose probe is right most often on the validation examples.
    alpha
        Strength in standard deviations.
    direction
        ``"mass_mean_shift"``: mean z of right answers minus that of wrong ones. ``"probe_weight"``: the probe's
        weights.
    C
        Inverse strength of the probes' L2 penalty.
    seed
        Which wrong answer of each example is read.
    """

    k: int = 48
    alpha: float = 15.0
    direction: Direction = "mass_mean_shift"
    C: float = 1.0
    seed: int = 42

    def __post_init__(self) -> None:
        if self.k < 1:
            raise RequestError(f"k={self.k}: choose at least one head.")
        if self.direction not in ("mass_mean_shift", "probe_weight"):
            raise RequestError(f"direction={self.direction!r}: choose 'mass_mean_shift' or 'probe_weight'.")
        if not (np.isfinite(self.C) and self.C > 0):
            raise RequestError(f"C={self.C!r}: give a finite number above 0.")


def fit_iti(
    model: Any,
    data: Sequence[Example],
    validation: Sequence[Example],
    recipe: ITIRecipe | None = None,
    *,
    batch: int = 8,
    out: str | Path | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Tuned:
    """Probe every head on the last token of right and wrong answers, and shift the best heads.

    Parameters
    ----------
    data, validation
        Examples with wrong answers: the probes are fitted on the first, the heads chosen on the second. Each gives
        one right and one wrong answer, so that chance is one half.
    batch
        Answers that are read at once.
    out, fresh
        Folder in which the outputs of heads are kept, and whether to discard what an earlier run left there.
    progress
        Called with (stage, answers read, answers in all).

    Returns
    -------
    The method, with ``scores`` of all heads: validation accuracy, and ``train_accuracy`` and ``loss`` beside it.

    Raises
    ------
    DataError
        If no example of a split has a wrong answer.
    """
    recipe, began = recipe or ITIRecipe(), time.perf_counter()
    total = len(model.spec.heads())
    if recipe.k > total:
        raise RequestError(f"k={recipe.k}: {model.name} has {total} heads. Choose fewer.")
    parts = {"hash": hashed(validation), "batch": batch}
    store = open_store(model, out, "iti", data, recipe, fresh, validation=parts)
    read = {}
    for name, part in (("train", data), ("validation", validation)):
        pairs = _pairs(part, recipe.seed, name)
        read[name] = (_outputs(model, pairs, batch, name, store, progress), np.arange(len(pairs)) % 2 == 0)
    z, truth = read["train"]
    scores = _scores(model, read, data, recipe)
    chosen = sorted(scores.selected)
    directions, sigma = [], []
    for layer, head in chosen:
        x = z[layer][:, head].astype(np.float64)
        vector = x[truth].mean(0) - x[~truth].mean(0)
        if recipe.direction == "probe_weight":
            vector = fit_probes(x[None], truth, recipe.C)[0][0]
        norm = float(np.linalg.norm(vector))
        vector = vector / norm if norm else vector
        directions.append(vector)
        sigma.append(float((x @ vector).std()))
    method = ITI(tuple(chosen), tuple(directions), tuple(sigma), recipe.alpha)
    return Tuned(method, sum(len(row) for row in directions), {}, scores, seconds=time.perf_counter() - began)


def fit_probes(x: Floats, truth: NDArray[np.bool_], C: float = 1.0, steps: int = 100) -> tuple[Floats, Floats]:
    """Fit one logistic regression for each head, all at once, by Newton's method.

    Minimises |w|²/2 + C · Σ log(1 + exp(−y (w·x + b))) for y = ±1, the objective of scikit-learn's
    ``LogisticRegression``; the intercept is not penalised.

    Parameters
    ----------
    x
        Features (H, N, D).
    truth
        Labels (N,).
    C
        Inverse strength of the penalty.
    steps
        Most Newton steps.

    Returns
    -------
    Weights (H, D) and intercepts (H,).

    Raises
    ------
    DataError
        If all labels are equal.
    """
    if truth.all() or not truth.any():
        raise DataError("A probe needs right and wrong answers, and all are of one kind.")
    features = torch.from_numpy(np.concatenate([x, np.ones((*x.shape[:2], 1))], axis=2).astype(np.float64))
    y = torch.from_numpy(np.where(truth, 1.0, -1.0))
    ridge = torch.ones(features.shape[2], dtype=torch.float64)
    ridge[-1] = 0

    def objective(w: Tensor) -> Tensor:
        margin = y * (features @ w[:, :, None]).squeeze(2)
        return (ridge * w**2).sum(1) / 2 + C * torch.nn.functional.softplus(-margin).sum(1)

    w = torch.zeros(features.shape[0], features.shape[2], dtype=torch.float64)
    value = objective(w)
    for _ in range(steps):
        wrong = torch.sigmoid(-y * (features @ w[:, :, None]).squeeze(2))
        gradient = ridge * w - C * ((wrong * y)[:, None] @ features).squeeze(1)
        if float(gradient.abs().max()) < 1e-8 * C * len(y):
            break
        weighted = features * (wrong * (1 - wrong))[:, :, None]
        # A hair of ridge on the intercept keeps the matrix regular where a head separates the classes.
        hessian = C * features.transpose(1, 2) @ weighted + torch.diag(ridge + 1e-10)
        step = torch.linalg.solve(hessian, gradient[:, :, None]).squeeze(2)
        size = torch.ones_like(value)
        for _ in range(30):  # halve the step of heads whose objective it would raise
            trial = objective(w - size[:, None] * step)
            worse = trial > value
            if not bool(worse.any()):
                break
            size = torch.where(worse, size / 2, size)
        trial = objective(w - size[:, None] * step)
        better = trial <= value
        w = torch.where(better[:, None], w - size[:, None] * step, w)
        if bool((value - trial).abs().max() < 1e-12 * value.abs().max()):
            break
        value = torch.where(better, trial, value)
    return w[:, :-1].numpy(), w[:, -1].numpy()


def _pairs(data: Sequence[Example], seed: int, name: str) -> list[tuple[Example, tuple[int, ...]]]:
    """Return (example, answer) alternately right and wrong."""
    rng = np.random.default_rng(seed)
    usable = [example for example in data if example.wrong]
    if not usable:
        raise DataError(f"ITI tells right answers from wrong ones, and no {name} example has a wrong one.")
    found: list[tuple[Example, tuple[int, ...]]] = []
    for example in usable:
        found += [(example, example.answer), (example, example.wrong[int(rng.integers(len(example.wrong)))])]
    return found


def _outputs(
    model: Any,
    pairs: Sequence[tuple[Example, tuple[int, ...]]],
    batch: int,
    name: str,
    store: Store | None,
    progress: Progress | None,
) -> dict[int, NDArray[np.float32]]:
    """Return z (N, H, Dv) of each layer on the last token of every answer."""
    from headscope.attention.requests import HeadOutput

    layers = sorted(model.sites.stack(None))
    requests = [HeadOutput(layers=[layer], queries="last", name=f"z{layer}") for layer in layers]
    found: dict[int, list[NDArray[np.float32]]] = {layer: [] for layer in layers}
    for start in range(0, len(pairs), batch):
        piece = f"{name}-{start:06d}"
        shard = store.read("outputs", piece) if store is not None else None
        if shard is None:
            texts = [example.read(answer) for example, answer in pairs[start : start + batch]]
            run = model.run(texts, requests, logits=False)
            arrays: dict[str, NDArray[Any]] = {
                f"z{layer}": run[f"z{layer}"]
                .isel(layer=0, query=0)
                .transpose("batch", "head", "dim")
                .values.astype(np.float32)
                for layer in layers
            }
            if store is not None:
                store.write("outputs", piece, {}, arrays)
        else:
            arrays = dict(shard.arrays)
        for layer in layers:
            found[layer].append(arrays[f"z{layer}"])
        if progress is not None:
            progress(f"iti {name}", min(start + batch, len(pairs)), len(pairs))
    return {layer: np.concatenate(parts) for layer, parts in found.items()}


def _scores(
    model: Any,
    read: dict[str, tuple[dict[int, NDArray[np.float32]], NDArray[np.bool_]]],
    data: Sequence[Example],
    recipe: ITIRecipe,
) -> HeadScores:
    import pandas as pd

    from headscope.probes.provenance import describe_model, dtype_name, machine, now, versions
    from headscope.probes.scores import HeadScores

    z, truth = read["train"]
    held, held_truth = read["validation"]
    frames = [_probe_layer(layer, z[layer], truth, held[layer], held_truth, recipe.C) for layer in sorted(z)]
    table = pd.concat(frames, ignore_index=True)
    # Accuracies on few examples tie: the lower validation loss decides.
    order = table.sort_values(["score", "loss"], ascending=[False, True], kind="stable").index
    table["selected"] = table.index.isin(order[: recipe.k])
    provenance = {
        "probe": "iti",
        "parameters": asdict(recipe),
        "model": describe_model(model),
        "data": {"name": "examples", "parameters": {}, "hash": hashed(data), "n": len(truth)},
        "seed": recipe.seed,
        "dtype": dtype_name(model),
        "engine": "headscope",
        "versions": versions(),
        "machine": machine(model),
        "created": now(),
        "notes": ["The score is the validation accuracy of a probe; equal accuracies are ordered by validation loss."],
    }
    return HeadScores(table, "iti", provenance)


def _probe_layer(
    layer: int,
    z: NDArray[np.float32],
    truth: NDArray[np.bool_],
    held: NDArray[np.float32],
    held_truth: NDArray[np.bool_],
    C: float,
) -> pd.DataFrame:
    import pandas as pd

    w, b = fit_probes(z.transpose(1, 0, 2).astype(np.float64), truth, C)
    seen = np.einsum("nhd,hd->nh", z, w) + b
    new = np.einsum("nhd,hd->nh", held, w) + b
    heads = z.shape[1]
    nothing = np.full(heads, np.nan)
    return pd.DataFrame(
        {
            "layer": layer,
            "head": np.arange(heads),
            "score": ((new > 0) == held_truth[:, None]).mean(0),
            "ci_low": nothing,
            "ci_high": nothing,
            "n": len(held_truth),
            "null_mean": 0.5,
            "p_value": nothing,
            "selected": False,
            "train_accuracy": ((seen > 0) == truth[:, None]).mean(0),
            "loss": np.logaddexp(0, -np.where(held_truth[:, None], new, -new)).mean(0),
        }
    )
