"""Edits of the residual stream: a direction added, removed, or set to a value."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from headscope.attention.sites import Sites
from headscope.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable

    from headscope.attention.session import Session

ResidualMode = Literal["add", "project", "clamp"]


@dataclass(frozen=True, eq=False)
class ResidualEdit:
    """Change the residual stream along one direction, where a block reads it.

    Parameters
    ----------
    layer
        The block whose input is changed, as ``Residual()`` counts; one past the last block is its output.
    vector
        Direction v (D,).
    mode
        With u = v / ‖v‖: ``"add"``: x + scale · v. ``"project"``: x − scale · (x·u) u, so that 1 removes the component
        along v. ``"clamp"``: the component becomes scale · u, whatever it was.
    scale
        As ``mode`` asks. 0 makes ``"add"`` and ``"project"`` neutral.
    positions
        Where: everywhere, or in regions of the prompt, or at token positions. ``"generated"`` names the tokens after
        the prompt, ``"last"`` the prompt's last token.
    stack
        Which layers; the model's own by default.
    """

    layer: int
    vector: Any
    mode: ResidualMode = "add"
    scale: float = 1.0
    positions: str | tuple[str | int, ...] | None = None
    stack: str | None = None

    def __post_init__(self) -> None:
        vector = torch.as_tensor(self.vector)
        if not vector.is_floating_point():
            vector = vector.float()
        if vector.dim() != 1 or not len(vector):
            raise RequestError(f"ResidualEdit takes a vector of shape (D,), not {tuple(vector.shape)}.")
        if not bool(torch.isfinite(vector).all()):
            raise RequestError(f"The vector of ResidualEdit(layer={self.layer}) is not finite.")
        if self.mode not in ("add", "project", "clamp"):
            raise RequestError(f"ResidualEdit(mode={self.mode!r}): choose add, project or clamp.")
        if self.mode != "add" and not bool(vector.any()):
            raise RequestError(f"ResidualEdit(mode={self.mode!r}) needs a direction; the vector is 0.")
        if not bool(torch.isfinite(torch.tensor(float(self.scale)))):
            raise RequestError(f"ResidualEdit(scale={self.scale}) is not finite.")
        object.__setattr__(self, "vector", vector)
        object.__setattr__(self, "positions", checked_positions(self.positions, "ResidualEdit"))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ResidualEdit):
            return NotImplemented
        return self._rest() == other._rest() and torch.equal(self.vector, other.vector)

    def __hash__(self) -> int:
        return hash(self._rest())

    def _rest(self) -> tuple[Any, ...]:
        return tuple(getattr(self, f.name) for f in fields(self) if f.name != "vector")

    @property
    def neutral(self) -> bool:
        """Whether the edit changes nothing, whatever the stream."""
        return self.mode != "clamp" and (self.scale == 0 or not bool(self.vector.any()))

    def validate(self, sites: Sites) -> None:
        """Raise RequestError if there is no such layer or the vector is not as wide as the stream."""
        check_stream_layer(sites, self.stack, self.layer, "ResidualEdit")
        width = next(iter(sites.stack(self.stack).values())).output_weight().shape[2]
        if len(self.vector) != width:
            raise RequestError(
                f"ResidualEdit(layer={self.layer}): the vector has {len(self.vector)} numbers, the stream of this "
                f"model {width}. It may belong to another model."
            )

    def hooks(self, session: Session) -> list[Any]:
        """Install the edit; return what removes it."""
        return [on_stream(session, self.stack, self.layer, self.positions, self.apply)]

    def apply(self, x: Tensor) -> Tensor:
        """Return the stream (…, D) edited at every position."""
        vector: Tensor = self.vector.to(x)
        if self.mode == "add":
            return x + self.scale * vector
        unit: Tensor = vector / vector.norm()
        along: Tensor = (x @ unit)[..., None]
        if self.mode == "project":
            return x - self.scale * along * unit
        return x + (self.scale - along) * unit


def checked_positions(given: Any, kind: str) -> str | tuple[str | int, ...] | None:
    """Return positions as a name, a tuple of names and token positions, or None for all."""
    if given is None or isinstance(given, str):
        return given
    positions = (given,) if isinstance(given, int) else tuple(p if isinstance(p, str) else int(p) for p in given)
    if not positions:
        raise RequestError(f"{kind}(positions=…) names no position. Leave it out to edit all.")
    return positions


def check_stream_layer(sites: Sites, stack: str | None, layer: int, kind: str) -> None:
    """Raise RequestError unless ``layer`` is a block of the stack, or one past its last."""
    found = sites.stack(stack)
    if layer not in found and layer != max(found) + 1:
        raise RequestError(
            f"{kind}(layer={layer}): blocks of this model go from {min(found)} to {max(found)}, and "
            f"{max(found) + 1} is the last one's output."
        )


def on_stream(
    session: Session,
    stack: str | None,
    layer: int,
    positions: str | tuple[str | int, ...] | None,
    change: Callable[[Tensor], Tensor],
) -> Any:
    """Install ``change`` on the residual stream that block ``layer`` reads; return what removes it."""
    found = session.sites.stack(stack)
    name = stack or session.sites.default

    def edited(x: Tensor) -> Tensor:
        return changed_rows(session, name, positions, x, change)

    def on_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if args:
            return (edited(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": edited(kwargs["hidden_states"])}

    def on_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return edited(output) if isinstance(output, Tensor) else (edited(output[0]), *output[1:])

    if layer in found:
        return found[layer].block.register_forward_pre_hook(on_input, with_kwargs=True)
    return found[layer - 1].block.register_forward_hook(on_output)


def changed_rows(
    session: Session,
    stack: str,
    positions: str | tuple[str | int, ...] | None,
    x: Tensor,
    change: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return x (B, T, …) with the rows at ``positions`` changed and all others as they were, to the bit."""
    if positions is None:
        return change(x)
    rows = rows_at(session, stack, positions, x.shape[0], x.shape[1]).to(x.device)
    if not bool(rows.any()):
        return x
    return torch.where(rows.view(*rows.shape, *[1] * (x.dim() - 2)), change(x), x)


def rows_at(session: Session, stack: str, positions: str | tuple[str | int, ...], batch: int, length: int) -> Tensor:
    """Return which of the current call's rows (B, T) lie at ``positions``, which count over the whole sequence."""
    context = session.context(stack, batch)
    total = length if context.total is None else max(context.total, length)
    if context.prompt_length is not None and length < context.prompt_length == total:
        total += length  # decoding, where nobody counts the tokens of a batch without padding: past the prompt, anyhow
    start = total - length
    rows = torch.zeros(batch, length, dtype=torch.bool)
    for sample in range(batch):
        owner = sample * context.batch // batch  # beams of one prompt lie side by side
        for wanted in (positions,) if isinstance(positions, str) else positions:
            if wanted == "last":
                found = _last(context.valid, owner, length) if start == 0 else []
            elif wanted == "generated" and context.prompt_length is None:
                found = list(range(start, total)) if start else []  # the first call is the prompt
            elif isinstance(wanted, str):
                found = context.region(wanted, total)[owner]
            elif wanted < 0 and start:
                found = []  # counted from the end of the prompt, which was an earlier call
            else:
                found = context.keys([wanted], owner, total)
            here = [p - start for p in found if 0 <= p - start < length]
            rows[sample, here] = True
    return rows


def _last(valid: Tensor | None, owner: int, length: int) -> list[int]:
    """Return the position of a prompt's last real token."""
    if valid is None or valid.shape[1] != length:
        return [length - 1]
    return [int(torch.nonzero(valid[owner]).max())]
