"""Edits of single units of an MLP, on its activation: the input of the down projection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from headscope.attention.edits.heads import draws
from headscope.attention.sites import Site, Sites
from headscope.errors import RequestError

if TYPE_CHECKING:
    from headscope.attention.session import Session

NeuronMode = Literal["zero", "clamp", "scale", "mean", "resample"]


@dataclass(frozen=True)
class NeuronEdit:
    """Change some units of one layer's MLP activation, at every position.

    The activation is what ``MlpActivation()`` captures, (B, T, units): act(gate) · up where the MLP is gated.

    Parameters
    ----------
    layer
        Which layer.
    units
        Indices of units, each once.
    mode
        ``"zero"``: the units become 0. ``"clamp"``: they become ``value``. ``"scale"``: they are multiplied by
        ``value``; 1 is no edit. ``"mean"``: they become ``value``, their means over reference data. ``"resample"``: at
        each position they become a row of ``bank``, drawn once for each position of the prompt by ``seed``.
    value
        One number, or one for each of ``units`` in the same order; ``"mean"`` needs the latter.
    bank, seed
        Activations of the units on other data (N, units), for ``"resample"``.
    stack
        Which layers; the model's own by default.
    """

    layer: int
    units: tuple[int, ...]
    mode: NeuronMode = "zero"
    value: float | tuple[float, ...] | None = None
    bank: Any = field(default=None, compare=False, repr=False)
    seed: int = 0
    stack: str | None = None

    def __post_init__(self) -> None:
        given: Any = self.units
        units = (int(given),) if isinstance(given, int) else tuple(int(unit) for unit in given)
        if not units:
            raise RequestError("NeuronEdit names no unit: pass units=(…), indices of the MLP activation.")
        if len(set(units)) < len(units):
            raise RequestError(f"NeuronEdit(layer={self.layer}) names a unit twice: pass each once.")
        object.__setattr__(self, "units", units)
        if self.mode not in get_args(NeuronMode):
            raise RequestError(f"NeuronEdit(mode={self.mode!r}): choose one of {', '.join(get_args(NeuronMode))}.")
        if self.mode == "resample":
            self._check_bank()
        elif self.bank is not None:
            raise RequestError(f"NeuronEdit(mode={self.mode!r}) takes no bank=; mode='resample' does.")
        else:
            self._check_value()

    def _check_value(self) -> None:
        value: Any = self.value
        if self.mode == "zero":
            if value is not None:
                raise RequestError("NeuronEdit(mode='zero') takes no value=: use mode='clamp' to set one.")
            return
        if isinstance(value, (Tensor, Sequence)) or hasattr(value, "__array__"):
            numbers = torch.as_tensor(value, dtype=torch.float64)
            value = float(numbers) if numbers.dim() == 0 else tuple(numbers.flatten().tolist())
        elif value is not None:
            value = float(value)
        if value is None or (self.mode == "mean" and not isinstance(value, tuple)):
            wanted = "one number per unit" if self.mode == "mean" else "one number, or one per unit"
            raise RequestError(f"NeuronEdit(mode={self.mode!r}) needs value=, {wanted}.")
        if isinstance(value, tuple) and len(value) != len(self.units):
            raise RequestError(f"NeuronEdit has {len(value)} values for {len(self.units)} units: pass one each.")
        if not bool(torch.isfinite(torch.tensor(value)).all()):
            raise RequestError(f"NeuronEdit values of layer {self.layer} are not finite.")
        object.__setattr__(self, "value", value)

    def _check_bank(self) -> None:
        bank = torch.as_tensor(self.bank if self.bank is not None else ())
        if self.value is not None or bank.dim() != 2 or not len(bank) or bank.shape[1] != len(self.units):
            raise RequestError(
                f"NeuronEdit(mode='resample') takes no value=, and bank= of shape (N, {len(self.units)}), "
                f"activations of its units on other data: not {tuple(bank.shape)}."
            )
        if not bool(torch.isfinite(bank).all()):
            raise RequestError(f"NeuronEdit values of layer {self.layer} are not finite.")
        object.__setattr__(self, "bank", bank)

    @property
    def neutral(self) -> bool:
        """Whether the edit changes nothing, whatever the activation."""
        if self.mode != "scale" or self.value is None:
            return False
        return all(x == 1 for x in (self.value if isinstance(self.value, tuple) else (self.value,)))

    def validate(self, sites: Sites) -> None:
        """Raise RequestError if the model has no such layer or unit, or none that can be told apart."""
        site = self._site(sites)
        width = site.mlp_width()
        wrong = [unit for unit in self.units if not 0 <= unit < width]
        if wrong:
            raise RequestError(f"NeuronEdit: layer {self.layer} has units 0 to {width - 1}, there is no {wrong[0]}.")

    def hooks(self, session: Session) -> list[Any]:
        """Install the edit; return what removes it."""
        mlp = self._site(session.sites).mlp
        if mlp is None:
            raise AssertionError("validated before")
        return [mlp.register_forward_pre_hook(partial(self._hook, session))]

    def apply(self, x: Tensor, places: Tensor | None = None) -> Tensor:
        """Return the activation (…, units) with this edit's units changed; ``places`` (…) are positions to resample."""
        index = torch.tensor(self.units, device=x.device)
        edited = x.clone()
        if self.mode == "scale":
            edited[..., index] = x[..., index] * self._values(x)
        elif self.mode == "resample":
            assert places is not None
            drawn = draws(self.seed, self.layer, -1, len(self.bank), places)
            edited[..., index] = self.bank.to(x)[drawn.to(x.device)]
        else:
            edited[..., index] = self._values(x).expand(*x.shape[:-1], len(self.units))
        return edited

    def _hook(self, session: Session, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x: Tensor = args[0]
        places = None
        if self.mode == "resample":
            places = session.places(self._site(session.sites)).reshape(x.shape[:-1])  # OPT flattens batch and positions
        return (self.apply(x, places), *args[1:])

    def _values(self, x: Tensor) -> Tensor:
        return torch.as_tensor(0.0 if self.value is None else self.value, dtype=x.dtype, device=x.device)

    def _site(self, sites: Sites) -> Site:
        found = sites.stack(self.stack)
        if self.layer not in found:
            raise RequestError(
                f"NeuronEdit(layer={self.layer}): layers of this model go from {min(found)} to {max(found)}."
            )
        site = found[self.layer]
        if site.mlp is None:
            raise RequestError(
                f"Layer {self.layer} has no MLP activation of its own (experts fused into one module, or no MLP): "
                "edit the residual stream with ResidualEdit, or another layer."
            )
        return site
