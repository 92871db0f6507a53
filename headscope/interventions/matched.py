"""LoFiT, ITI and LoRA with as many numbers each, and a steering vector, trained on one task and measured on it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from headscope.errors import DataError, RequestError, nearest
from headscope.files import canonical_json, sha256_text
from headscope.interventions.iti import ITI, ITIRecipe, fit_iti
from headscope.interventions.lofit import LoFiTRecipe, Tuned, overlap, tune_lofit
from headscope.interventions.lora import LoRARecipe, available, tune_lora
from headscope.interventions.steering import SteeringVector
from headscope.interventions.steering_scan import fit_steering
from headscope.interventions.training import Example, examples, open_store, score

if TYPE_CHECKING:
    import pandas as pd

    from headscope.interventions.base import Method
    from headscope.probes.base import Progress
    from headscope.probes.store import Store

Name = Literal["lofit", "iti", "lora", "steering"]
MATCHED: tuple[Name, ...] = ("lofit", "iti", "lora")
"""Methods that can be given any number of numbers."""
NAMES: tuple[Name, ...] = (*MATCHED, "steering")
ALPHAS = (1.0, 5.0, 15.0)
"""Strengths of ITI that are tried on the validation items; 15 is the paper's for Llama-7B."""
COEFFICIENTS = (0.5, 1.0, 2.0, 4.0)
"""Strengths of the steering vector that are tried on the validation items."""
RATES = (1e-3, 1e-2)
"""Learning rates of LoRA that are tried on the validation items: at so few numbers the usual ones are too low."""


@dataclass(frozen=True)
class Splits:
    """Examples to train on, to choose by, and to report on."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]

    def __post_init__(self) -> None:
        for name in ("train", "validation", "test"):
            if not getattr(self, name):
                raise DataError(f"There is no {name} example: ask for more items.")
        read = {example.prompt.ids for example in (*self.train, *self.validation)}
        if any(example.prompt.ids in read for example in self.test):
            raise DataError("A test prompt is also one that is trained on or chosen by: its result would mean nothing.")

    @classmethod
    def of(cls, model: Any, task: Any) -> Splits:
        """Return the splits of a task of ``headscope.data.tasks``, as tokens."""
        parts: dict[str, list[Any]] = {"train": [], "validation": [], "test": []}
        for item in task.items:
            name = "validation" if item.split in ("val", "dev") else item.split
            if name not in parts:
                raise DataError(f"Item {item.id!r} is in split {item.split!r}.{nearest(str(item.split), parts)}")
            parts[name].append(item)
        return cls(*(tuple(examples(model, part, task.answers)) for part in parts.values()))


@dataclass(frozen=True)
class Measured:
    """What a model answers, one number for each example (N,).

    Attributes
    ----------
    accuracy
        1 where the right answer is likelier than every wrong one; NaN where there is no wrong one.
    exact
        1 where greedy decoding gives the right answer.
    logprob
        Log-probability of the right answer, in nats.
    """

    accuracy: NDArray[np.float64]
    exact: NDArray[np.float64]
    logprob: NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """Methods side by side.

    Attributes
    ----------
    table
        One row for the untuned model and each method: method, what, parameters, then accuracy, exact and logprob
        with ``_low`` and ``_high``, and the paired difference to the untuned model as ``…_gain``, with the same.
    tuned
        The trained methods by name.
    overlap
        How many heads LoFiT and ITI share, beside what chance gives; None if one of them was not trained.
    notes
        What a reader must know.
    """

    table: pd.DataFrame
    tuned: dict[str, Tuned] = field(default_factory=dict)
    overlap: pd.DataFrame | None = None
    notes: tuple[str, ...] = ()


def measure(model: Any, data: Sequence[Example], *, batch: int = 16) -> Measured:
    """Return how the model, under the edits in force, answers; right and wrong answers are forced and compared."""
    sequences = [(e, a) for e in data for a in (e.answer, *e.wrong)]
    sums, exact = [], []
    with torch.no_grad():
        for start in range(0, len(sequences), batch):
            answers = score(model, sequences[start : start + batch], side="left")
            sums.append(answers.sums().double().cpu())
            exact.append(answers.exact().cpu())
    total, hit = torch.cat(sums).numpy(), torch.cat(exact).numpy()
    starts = np.cumsum([0, *(1 + len(e.wrong) for e in data)])
    accuracy = np.array(
        [float(total[a] > total[a + 1 : b].max()) if b > a + 1 else np.nan for a, b in itertools.pairwise(starts)]
    )
    return Measured(accuracy, hit[starts[:-1]].astype(np.float64), total[starts[:-1]])


def compare_tuned(
    model: Any,
    splits: Splits,
    recipe: LoFiTRecipe | None = None,
    *,
    methods: Sequence[Name] = MATCHED,
    iti: ITIRecipe | None = None,
    lora: LoRARecipe | None = None,
    random_heads: bool = True,
    out: str | Path,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Train methods on one task with as many numbers each, and measure them on its test items.

    A steering vector has as many numbers as the residual stream is wide, whatever the budget.

    Parameters
    ----------
    recipe
        Of LoFiT. Its ``k`` sets the budget: k · Dv numbers, which ITI meets exactly and LoRA as nearly as it can.
    methods
        Which to train.
    iti, lora
        Recipes; by default with LoFiT's k, budget, epochs, batch, seed and loss. ITI's alpha and LoRA's learning
        rate are then the best of ``ALPHAS`` and ``RATES`` on the validation items.
    random_heads
        Also tune offsets of layer-matched random heads, as the control of LoFiT's choice.
    out
        Folder for checkpoints, measurements and LoRA's adapter.
    fresh
        Discard what an earlier run left there.
    progress
        Called with (stage, steps done, steps in all).
    """
    recipe, out = recipe or LoFiTRecipe(), Path(out)
    wrong = [name for name in methods if name not in NAMES]
    if wrong or not methods:
        raise RequestError(f"methods={list(methods)}: choose from {', '.join(NAMES)}.")
    options: dict[str, Any] = {"out": out, "fresh": fresh, "progress": progress}
    tuned: dict[str, Tuned] = {}
    notes: list[str] = []
    if "lofit" in methods:
        tuned["LoFiT"] = tune_lofit(model, splits.train, recipe, **options)
        if random_heads:
            heads = _random(tuned["LoFiT"].method.heads, model, recipe.seed)  # type: ignore[attr-defined]
            stage = {"stage": "lofit-random-heads", **options}
            tuned["LoFiT, random heads"] = tune_lofit(model, splits.train, recipe, heads=heads, **stage)
    contrasted = all(e.wrong for e in (*splits.train, *splits.validation))
    for name, title, train in (("iti", "ITI", partial(_iti, iti=iti)), ("steering", "Steering vector", _steering)):
        if name in methods and contrasted:
            tuned[title], said = train(model, splits, recipe=recipe, options=options)
            notes += said
        elif name in methods:
            notes.append(f"{title} is left out: it tells right answers from wrong ones, and some items have none.")
    if "lora" in methods:
        if available():
            tuned["LoRA"], said = _lora(model, splits, lora, _budget(model, tuned, recipe), recipe, options)
            notes += said
        else:
            notes.append("LoRA is left out: peft is not installed (pip install 'headscope[lora]').")
    store = open_store(model, out, "measured", splits.test, None, fresh)
    base = _measured(model, None, splits.test, store)
    rows = [_row("untuned", "the model as it is", 0, base, base, splits.test, recipe.seed)]
    for i, (name, found) in enumerate(tuned.items()):
        measured = _measured(model, found.method, splits.test, store)
        rows.append(_row(name, _words(found), found.parameters, measured, base, splits.test, recipe.seed))
        if progress is not None:
            progress("measuring", i + 1, len(tuned))
    import pandas as pd

    notes += _caveats(splits, recipe)
    return Comparison(pd.DataFrame(rows), tuned, _overlap(tuned, recipe, model), tuple(notes))


def _random(heads: Sequence[tuple[int, int]], model: Any, seed: int) -> tuple[tuple[int, int], ...]:
    from headscope.probes.controls import draw_controls

    (control, *_) = draw_controls(heads, model.spec.heads(), 1, seed=seed)
    return control.heads


def _iti(
    model: Any, splits: Splits, iti: ITIRecipe | None, recipe: LoFiTRecipe, options: dict[str, Any]
) -> tuple[Tuned, list[str]]:
    chosen = iti or ITIRecipe(k=recipe.k, seed=recipe.seed)
    found = fit_iti(model, splits.train, splits.validation, chosen, batch=recipe.batch, **options)
    method = found.method
    if iti is not None or not isinstance(method, ITI):
        return found, []
    tried = {alpha: replace(found, method=replace(method, alpha=alpha)) for alpha in ALPHAS}
    return _best("ITI's alpha", tried, model, splits.validation)


def _steering(model: Any, splits: Splits, recipe: LoFiTRecipe, options: dict[str, Any]) -> tuple[Tuned, list[str]]:
    parts = {"batch": recipe.batch, "seed": recipe.seed, "progress": options["progress"]}
    found = fit_steering(model, splits.train, splits.validation, **parts)
    vector = found.method
    assert isinstance(vector, SteeringVector)
    tried = {c: replace(found, method=replace(vector, coefficient=c)) for c in COEFFICIENTS}
    best, said = _best("The steering vector's coefficient", tried, model, splits.validation)
    return best, [*found.notes, *said]


def _lora(
    model: Any, splits: Splits, lora: LoRARecipe | None, budget: int, recipe: LoFiTRecipe, options: dict[str, Any]
) -> tuple[Tuned, list[str]]:
    if lora is not None:
        return tune_lora(model, splits.train, lora, options["out"] / "adapter", **options), []
    like = {name: getattr(recipe, name) for name in ("epochs", "batch", "seed", "loss", "beta")}
    found = {}
    for lr in RATES:
        chosen, stage = LoRARecipe(budget, lr=lr, **like), f"lora-{lr:g}"
        found[lr] = tune_lora(model, splits.train, chosen, options["out"] / f"adapter-{lr:g}", stage=stage, **options)
    return _best("LoRA's learning rate", found, model, splits.validation)


def _best(what: str, tried: dict[float, Tuned], model: Any, validation: Sequence[Example]) -> tuple[Tuned, list[str]]:
    """Return what answers most validation items; the likelier right answers decide between equals."""
    values = {}
    for option, found in tried.items():
        with model.edited(found.method):
            measured = measure(model, validation)
        right = measured.accuracy if np.isfinite(measured.accuracy).all() else measured.exact
        values[option] = (float(right.mean()), float(measured.logprob.mean()))
    best = max(values, key=lambda option: values[option])
    shares = ", ".join(f"{option:g}: {value[0]:.3f}" for option, value in values.items())
    note = f"{what} is {best:g}, the best on {len(validation)} validation items (right at {shares})."
    return tried[best], [note]


def _budget(model: Any, tuned: dict[str, Tuned], recipe: LoFiTRecipe) -> int:
    for name in ("LoFiT", "ITI"):
        if name in tuned:
            return tuned[name].parameters
    return recipe.k * int(model.spec.head_dim)


def _measured(model: Any, method: Method | None, data: Sequence[Example], store: Store | None) -> Measured:
    from headscope.interventions.store import encode

    name = sha256_text(canonical_json(None if method is None else encode(method)))[:32]
    shard = store.read("measured", name) if store is not None else None
    if shard is not None:
        return Measured(*(shard.arrays[part] for part in ("accuracy", "exact", "logprob")))
    with model.edited(*(() if method is None else (method,))):
        found = measure(model, data)
    if store is not None:
        store.write("measured", name, {}, dict(vars(found)))
    return found


def _row(
    name: str, what: str, parameters: int, found: Measured, base: Measured, data: Sequence[Example], seed: int
) -> dict[str, Any]:
    from headscope.probes.statistics import bootstrap

    row: dict[str, Any] = {"method": name, "what": what, "parameters": parameters}
    sources = [example.source for example in data]
    for part in ("accuracy", "exact", "logprob"):
        values, before = getattr(found, part), getattr(base, part)
        for suffix, numbers in (("", values), ("_gain", values - before)):
            interval = bootstrap(numbers[:, None], sources, seed=seed)
            key = f"{part}{suffix}"
            row |= {key: float(interval.mean[0]), f"{key}_low": float(interval.low[0])}
            row[f"{key}_high"] = float(interval.high[0])
    return row


def _words(found: Tuned) -> str:
    if isinstance(found.method, SteeringVector):
        return f"the stream of layer {found.method.layer}"
    heads = getattr(found.method, "heads", None)
    return found.notes[0] if heads is None and found.notes else f"{len(heads or ())} heads"


def _overlap(tuned: dict[str, Tuned], recipe: LoFiTRecipe, model: Any) -> pd.DataFrame | None:
    chosen = {name: found.method.heads for name, found in tuned.items() if hasattr(found.method, "heads")}
    sizes = {len(heads) for heads in chosen.values()}
    if not {"LoFiT", "ITI"} <= set(chosen) or len(sizes) != 1:
        return None
    pair = {name: chosen[name] for name in ("LoFiT", "ITI")}
    return overlap(pair, len(model.spec.heads()))


def _caveats(splits: Splits, recipe: LoFiTRecipe) -> list[str]:
    from headscope.probes.statistics import cautions

    return [
        f"Trained on {len(splits.train)} examples for {recipe.epochs} epochs, measured on {len(splits.test)} others. "
        "A gain whose interval holds 0 is no gain.",
        *cautions([e.source for e in splits.test], 1, tested=False),
    ]
