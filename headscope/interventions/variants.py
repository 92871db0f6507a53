"""What an evaluation runs beside a method: its neutral strength, and the same on random heads or directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from headscope.errors import HeadscopeError, RequestError
from headscope.files import canonical_json, sha256_text
from headscope.interventions.base import Method

if TYPE_CHECKING:
    from headscope.attention.edits import Edit

    Part = Method | Edit

Kind = Literal["base", "neutral", "method", "control"]
BASE = "base"


@dataclass(frozen=True)
class Variant:
    """The model under some methods and edits.

    Parameters
    ----------
    name
        Of the method, as the user calls it.
    kind
        What it is to that method.
    parts
        What is in force, in order.
    replicate, what
        Number of a control, and what was put in place of what.
    """

    name: str
    kind: Kind
    parts: tuple[Any, ...] = ()
    replicate: int = 0
    what: str = ""

    @cached_property
    def key(self) -> str:
        """Name of its shards: what is in force, whatever it is called."""
        from headscope.interventions.store import encode

        return sha256_text(canonical_json([encode(part) for part in self.parts]))[:32]

    @property
    def title(self) -> str:
        """The name of its row."""
        return f"{self.name}, neutral" if self.kind == "neutral" else self.name

    def check(self, model: Any) -> None:
        """Raise RequestError, CheckpointError or UnsupportedError if the model cannot run it."""
        with model.edited(*self.parts):
            pass


def variants(methods: Mapping[str, Part | Sequence[Part]]) -> list[Variant]:
    """Return the methods by name.

    Raises
    ------
    RequestError
        If a name is empty or that of the base, or nothing stands under it.
    """
    from headscope.attention.edits import Edit

    found = []
    for name, given in methods.items():
        parts = (given,) if isinstance(given, (Method, Edit)) else tuple(given)
        if not name or name == BASE:
            raise RequestError(f"A method cannot be called {name!r}: that row is the model as it is. Rename it.")
        if not parts or not all(isinstance(part, (Method, Edit)) for part in parts):
            raise RequestError(f"{name!r} must be a method, an edit, or several of them: not {given!r:.80}.")
        found.append(Variant(name, "method", parts))
    return found


def neutral(method: Variant) -> Variant | None:
    """Return the method at the strength that changes nothing; None for bare edits, which know no such strength."""
    if not all(isinstance(part, Method) for part in method.parts):
        return None
    return Variant(method.name, "neutral", tuple(part.neutralised() for part in method.parts))


def controls(method: Variant, model: Any, count: int, seed: int) -> tuple[list[Variant], str]:
    """Return controls of a method, and a note on them where a reader must know more.

    Heads are replaced by as many others of the same layers, none of them the method's; steering vectors by random
    directions of equal norm. Of several parts, those that can be replaced are, and the others stay.
    """
    if not count:
        return [], ""
    made = [_alternatives(part, model, count, seed + n) for n, part in enumerate(method.parts)]
    drawn = [found for found in made if not isinstance(found, str)]
    if not drawn:
        return [], f"{method.name} has no control: {'; '.join(dict.fromkeys(map(str, made)))}."
    number = min(map(len, drawn))
    found = []
    for i in range(number):
        parts = [
            part if isinstance(other, str) else other[i][0] for part, other in zip(method.parts, made, strict=True)
        ]
        what = "; ".join(other[i][1] for other in made if not isinstance(other, str))
        found.append(Variant(method.name, "control", tuple(parts), i, what))
    return found, _note(method, made, number, count)


def _note(method: Variant, made: Sequence[Any], number: int, count: int) -> str:
    notes = []
    if number < count:
        notes.append(f"{method.name} has no more than {number} different controls.")
    kept = [type(part).__name__ for part, other in zip(method.parts, made, strict=True) if isinstance(other, str)]
    if kept:
        notes.append(f"The controls of {method.name} keep its {', '.join(kept)} as it is.")
    if any("other layers" in other[i][1] for other in made if not isinstance(other, str) for i in range(number)):
        notes.append(f"Layers have too few heads beside those of {method.name}: some of its controls stand in others.")
    return " ".join(notes)


def _alternatives(part: Any, model: Any, count: int, seed: int) -> list[tuple[Any, str]] | str:
    """Return controls of one part with what they are, or why there are none."""
    from headscope.probes.controls import draw_controls

    if callable(getattr(part, "control", None)):
        return [(part.control(seed * 100_003 + i), f"random direction {i}") for i in range(count)]
    heads, kind = getattr(part, "heads", ()), type(part).__name__
    everything = list(model.spec.heads())
    if heads == "all" or set(heads) >= set(everything):
        return f"{kind} acts on all heads, so there are no others to set against them"
    if not heads:
        return f"{kind} does not act on chosen heads"
    try:
        drawn = draw_controls(heads, everything, count, seed=seed)
        return [(_on(part, control.heads), _words(control.heads, control.from_other_layers)) for control in drawn]
    except HeadscopeError as error:
        return f"{kind} cannot stand on other heads ({error})"


def _on(part: Any, heads: tuple[tuple[int, int], ...]) -> Any:
    return part.with_heads(heads) if isinstance(part, Method) else replace(part, heads=heads)


def _words(heads: Sequence[tuple[int, int]], borrowed: int) -> str:
    named = " ".join(f"{layer}.{head}" for layer, head in heads)
    return f"heads {named}, {borrowed} of other layers" if borrowed else f"heads {named}"
