"""Ablations: heads, MLPs, layers and neurons removed, with words that say what "removed" means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, get_args

import numpy as np
from numpy.typing import NDArray

from headscope.errors import DataError, RequestError
from headscope.interventions.base import Head, Heads, Method, resolve
from headscope.interventions.checks import Keys, as_heads, as_keys, as_layers
from headscope.interventions.lofit import ByContent
from headscope.probes.removal import POSITIONS, SEMANTICS
from headscope.probes.removal import Ablation as Mode

if TYPE_CHECKING:
    from headscope.attention.edits import Edit
    from headscope.models.prompt import Prompt

Array = NDArray[np.float32]
Neuron = tuple[int, int]

OF_UNITS: dict[str, str] = {
    "zero": "the activation before the MLP's down projection is set to 0 at every position",
    "mean": "the activation before the MLP's down projection is replaced at every position by its mean over positions "
    "of the reference prompts",
    "resample": "the activation before the MLP's down projection is replaced at every position by its value at a "
    "random position of the reference prompts, drawn anew for each position",
}
"""What becomes of removed neurons and MLPs."""


@dataclass(frozen=True, eq=False)
class Ablation(ByContent, Method):
    """Remove parts of a model, in prefill and decoding alike.

    Parameters
    ----------
    heads
        (layer, head) pairs, or ``"all"``.
    layers
        Whole layers: all their heads and their MLP.
    mlps
        Layers whose MLP is removed.
    neurons
        (layer, unit) pairs: units of MLP activations.
    mode
        ``"zero"``, ``"mean"``, ``"resample"`` or, for heads only, ``"mask"``; ``semantics`` says what each means.
        Biases of output and down projections stay in every mode.
    region
        What ``"mask"`` hides from the heads: regions of the prompt and token positions.
    values
        For ``"mean"`` and ``"resample"``: per head a mean (Dv,) or a bank (N, Dv). Made by ``Ablation.fit``.
    units
        The same per layer for MLP activations: (U,) or (N, U), over all units of the layer.
    seed
        Of ``"resample"``.
    active
        False leaves the ablation out, for the control row of evaluations.
    stack
        Which attention; the model's own by default.
    """

    name: ClassVar[str] = "ablation"

    heads: Heads = ()
    layers: tuple[int, ...] = ()
    mlps: tuple[int, ...] = ()
    neurons: tuple[Neuron, ...] = ()
    mode: Mode = "zero"
    region: Keys = ()
    values: Mapping[Head, Any] | None = field(default=None, repr=False)
    units: Mapping[int, Any] | None = field(default=None, repr=False)
    seed: int = 0
    active: bool = True
    stack: str | None = None

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise RequestError(f"Ablation(mode={self.mode!r}): choose one of {', '.join(get_args(Mode))}.")
        parts = _parts(self.heads, self.layers, self.mlps, self.neurons)
        for name, part in parts.items():
            object.__setattr__(self, name, part)
        if self.mode == "mask":
            if self.layers or self.mlps or self.neurons:
                raise RequestError("Ablation(mode='mask') hides keys from heads: name heads= alone, or another mode.")
            object.__setattr__(self, "region", as_keys(self.region, "Ablation(mode='mask')", "region"))
        elif self.region != ():
            raise RequestError(f"Ablation(mode={self.mode!r}) takes no region=; mode='mask' does.")
        if self.mode in ("mean", "resample"):
            self._check_values()
        elif self.values is not None or self.units is not None:
            raise RequestError(f"Ablation(mode={self.mode!r}) takes no values= and no units=.")

    def _check_values(self) -> None:
        if self.values is None and self.units is None:
            raise RequestError(
                f"Ablation(mode={self.mode!r}) needs reference outputs: Ablation.fit(model, prompts, "
                f"mode={self.mode!r}, …) collects them."
            )
        dims = 1 if self.mode == "mean" else 2
        for name in ("values", "units"):
            held = {
                key if isinstance(key, int) else tuple(key): np.asarray(value, dtype=np.float32)
                for key, value in (getattr(self, name) or {}).items()
            }
            for key, value in held.items():
                if value.ndim != dims or not value.size or not np.isfinite(value).all():
                    wanted = "one vector" if dims == 1 else "a bank (N, size)"
                    raise RequestError(
                        f"Ablation({name}=…): {key} holds {value.shape}; {self.mode} takes {wanted} of finite numbers."
                    )
            object.__setattr__(self, name, held or None)

    @property
    def semantics(self) -> str:
        """What removal means here, as a sentence."""
        told = SEMANTICS[self.mode].replace("other samples of the task", "the reference prompts")
        if self.mode == "mask":
            told = told.replace("the region", f"the region {' and '.join(map(repr, self.region))}")
        parts = [told] if self.heads or self.layers else []
        if self.layers or self.mlps or self.neurons:
            parts.append(OF_UNITS[self.mode])
        biases = "" if self.mode == "mask" else "; biases of the projections stay"
        return f"{self.mode} ablation: {'; '.join(parts)}{biases}."

    @property
    def neutral(self) -> bool:
        """Whether it is left out."""
        return not self.active

    def neutralised(self) -> Self:
        """Return the ablation, left out."""
        return replace(self, active=False)

    def edits(self, model: Any) -> tuple[Edit, ...]:
        """Return one edit of all heads, and one for each MLP concerned."""
        from headscope.attention.edits import HeadEdit, KnockOut

        heads, units = _targets(model, self.heads, self.layers, self.mlps, self.neurons, self.stack)
        if not self.active:
            return ()
        found: list[Edit] = []
        if heads and self.mode == "mask":
            found.append(KnockOut(heads, self.region, stack=self.stack))
        elif heads:
            values = None if self.values is None else {pair: self.values[pair] for pair in heads if pair in self.values}
            found.append(HeadEdit(heads, self.mode, values, seed=self.seed, stack=self.stack))  # type: ignore[arg-type]
        found.extend(self._of_units(layer, chosen) for layer, chosen in units.items())
        return tuple(found)

    def _of_units(self, layer: int, chosen: tuple[int, ...]) -> Edit:
        from headscope.attention.edits import NeuronEdit

        if self.mode == "zero":
            return NeuronEdit(layer, chosen, stack=self.stack)
        if self.units is None or layer not in self.units:
            raise RequestError(
                f"Ablation(mode={self.mode!r}) has no reference activations of layer {layer}'s MLP: collect them with "
                "Ablation.fit."
            )
        held = np.asarray(self.units[layer])
        if max(chosen) >= held.shape[-1]:
            raise RequestError(
                f"Ablation(units=…) holds {held.shape[-1]} units of layer {layer}; there is no {max(chosen)}."
            )
        picked = held[..., list(chosen)]
        if self.mode == "mean":
            return NeuronEdit(layer, chosen, "mean", tuple(picked.tolist()), stack=self.stack)
        return NeuronEdit(layer, chosen, "resample", bank=picked, seed=self.seed, stack=self.stack)

    @classmethod
    def fit(
        cls,
        model: Any,
        prompts: Sequence[Prompt | str],
        *,
        mode: Mode = "mean",
        heads: Heads = (),
        layers: Iterable[int] = (),
        mlps: Iterable[int] = (),
        neurons: Iterable[Neuron] = (),
        positions: int = POSITIONS,
        seed: int = 0,
        stack: str | None = None,
    ) -> Self:
        """Collect what ``"mean"`` and ``"resample"`` put in the place of what is removed.

        Parameters
        ----------
        prompts
            Reference prompts; not those that the ablation is measured on.
        positions
            Most positions read in each prompt, drawn at random.
        seed
            Of the positions, and of resampling.

        Raises
        ------
        DataError
            If there is no prompt.
        RequestError
            If ``mode`` needs no reference.
        """
        if mode not in ("mean", "resample"):
            raise RequestError(f"Ablation.fit is for mean and resample; {mode!r} needs no reference prompts.")
        if not prompts:
            raise DataError(f"{mode} ablation needs reference prompts, and there is none.")
        parts = _parts(heads, layers, mlps, neurons)
        pairs, units = _targets(model, **parts, stack=stack)
        z, activations = _collect(model, prompts, pairs, sorted(units), positions, seed, stack)
        if mode == "mean":
            z = {pair: rows.mean(axis=0, dtype=np.float64) for pair, rows in z.items()}
            activations = {layer: rows.mean(axis=0, dtype=np.float64) for layer, rows in activations.items()}
        return cls(**parts, mode=mode, values=z or None, units=activations or None, seed=seed, stack=stack)


def _parts(heads: Any, layers: Any, mlps: Any, neurons: Any) -> dict[str, Any]:
    """Return what is to be removed, in order and each once."""
    heads, layers, mlps = (x if isinstance(x, (str, int)) else tuple(x or ()) for x in (heads, layers, mlps))
    held = {
        "heads": as_heads(heads, "Ablation") if heads != () else (),
        "layers": as_layers(layers, "Ablation") if layers != () else (),
        "mlps": as_layers(mlps, "Ablation") if mlps != () else (),
        "neurons": tuple(sorted({(int(layer), int(unit)) for layer, unit in neurons})),
    }
    if not any(held.values()):
        raise RequestError("Ablation names nothing to remove: pass heads=, layers=, mlps= or neurons=.")
    return held


def _targets(
    model: Any, heads: Heads, layers: Iterable[int], mlps: Iterable[int], neurons: Iterable[Neuron], stack: str | None
) -> tuple[tuple[Head, ...], dict[int, tuple[int, ...]]]:
    """Return all heads concerned, and the units of each layer's MLP."""
    found = model.sites.stack(stack)
    for layer in (*layers, *mlps):
        if layer not in found:
            raise RequestError(
                f"Ablation: layers of this model go from {min(found)} to {max(found)}; there is no {layer}."
            )
    pairs: set[Head] = set(resolve(heads, model, stack=stack)) if heads else set()  # type: ignore[arg-type]
    pairs |= {(layer, head) for layer in layers for head in range(found[layer].heads)}
    units: dict[int, set[int]] = {}
    for layer in (*layers, *mlps):
        width = found[layer].mlp_width()
        if not width:
            raise RequestError(
                f"Layer {layer} has no MLP activation of its own (experts fused into one module, or no MLP), so its "
                "MLP cannot be removed: ablate its heads alone."
            )
        units[layer] = set(range(width))
    for layer, unit in neurons:
        units.setdefault(layer, set()).add(unit)
    return tuple(sorted(pairs)), {layer: tuple(sorted(chosen)) for layer, chosen in sorted(units.items())}


def _collect(
    model: Any,
    prompts: Sequence[Prompt | str],
    heads: Sequence[Head],
    mlps: Sequence[int],
    positions: int,
    seed: int,
    stack: Any,
) -> tuple[dict[Head, Array], dict[int, Array]]:
    """Return outputs of heads (N, Dv) and activations of MLPs (N, U) at random positions of the prompts."""
    from headscope.attention.requests import HeadOutput, MlpActivation, Request

    z: dict[Head, list[Array]] = {pair: [] for pair in heads}
    activations: dict[int, list[Array]] = {layer: [] for layer in mlps}
    for index, given in enumerate(prompts):
        prompt = model.batch([given]).prompts[0]
        rng = np.random.default_rng([seed, index])
        drawn = rng.choice(len(prompt), size=min(positions, len(prompt)), replace=False)
        at = tuple(sorted(drawn.tolist()))
        wanted: list[Request] = []
        for layer in sorted({layer for layer, _ in heads}):  # heads of different layers may differ in width
            mine = [pair for pair in heads if pair[0] == layer]
            wanted.append(HeadOutput(queries=at, heads=mine, stack=stack, name=f"z{layer}"))
        wanted += [MlpActivation(queries=at, layers=[layer], stack=stack, name=f"mlp{layer}") for layer in mlps]
        run = model.run(prompt, wanted, logits=False)
        for layer in sorted({layer for layer, _ in heads}):
            stat = run[f"z{layer}"].isel(batch=0).transpose("pair", "query", "dim")
            for head, rows in zip(stat.coords["head"].values.tolist(), stat.values, strict=True):
                z[layer, head].append(np.asarray(rows, dtype=np.float32))
        for layer in mlps:
            stat = run[f"mlp{layer}"].isel(batch=0, layer=0).transpose("query", "unit")
            activations[layer].append(np.asarray(stat.values, dtype=np.float32))
    return (
        {pair: np.concatenate(rows) for pair, rows in z.items()},
        {layer: np.concatenate(rows) for layer, rows in activations.items()},
    )
