"""What ``headscope steer`` says: both texts side by side, token by token, for people and for machines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.commands.console import out, table

if TYPE_CHECKING:
    from rich.text import Text

    from headscope.interventions.continuation import Comparison, Continuation
    from headscope.models.prompt import Prompt


def document(
    model: Any,
    prompt: Prompt,
    regions: list[str],
    methods: tuple[Any, ...],
    found: Comparison,
    notes: list[str],
    file: Path | None,
) -> dict[str, Any]:
    """Return the comparison as JSON values."""
    return {
        "model": model.name,
        "prompt_tokens": len(prompt),
        "regions": {
            name: {"positions": list(prompt.positions(name)), "text": prompt.region_text(name).strip()}
            for name in regions
        },
        "methods": [described(method) for method in methods],
        "base": _told(found.base),
        "steered": _told(found.steered),
        "diverges": found.diverges,
        "kl_first_token": found.kl,
        "notes": notes,
        "edit": file,
    }


def described(method: Any) -> dict[str, Any]:
    """Return a method's name and those of its fields that are short."""
    from dataclasses import fields

    shown: dict[str, Any] = {"name": getattr(method, "name", type(method).__name__)}
    for field in fields(method):
        value = getattr(method, field.name)
        if field.name == "heads":
            shown["heads"] = value if isinstance(value, str) else [list(pair) for pair in value]
        elif isinstance(value, (str, int, float, bool)) or (
            isinstance(value, tuple) and all(isinstance(part, (str, int, float)) for part in value)
        ):
            shown[field.name] = value
    return shown


def show(
    model: Any,
    prompt: Prompt,
    regions: list[str],
    methods: tuple[Any, ...],
    found: Comparison,
    notes: list[str],
    file: Path | None,
) -> None:
    """Print the comparison."""
    from rich.markup import escape

    console = out()
    console.print(f"[bold]{escape(model.name)}[/bold], prompt of {len(prompt)} tokens")
    for method in methods:
        console.print(escape(_summary(method)), soft_wrap=True)
    for name in regions:
        shown = " ".join(prompt.region_text(name).split())
        shown = shown if len(shown) <= 70 else f"{shown[:34]} … {shown[-34:]}"
        console.print(f"[dim]{name}: {len(prompt.positions(name))} tokens, “{escape(shown)}”[/dim]", soft_wrap=True)
    sides = table("without", "steered")
    sides.show_lines = True
    sides.add_row(_side(found.base, found.diverges), _side(found.steered, found.diverges))
    console.print(sides)
    console.print(_steps(found))
    console.print("[dim]log p: without the method; log p′: under it; in nats.[/dim]")
    for name, part in (("without", found.base), ("steered", found.steered)):
        totals = f"log p {part.base.sum():.2f} without, {part.steered.sum():.2f} steered"
        console.print(f"Text “{name}”: {totals} ({part.gain:+.2f} nats)")
    where = "The texts are the same." if found.diverges is None else f"The texts part at token {found.diverges + 1}."
    console.print(f"{where} KL(steered ‖ without) of the first token: {found.kl:.3g} nats.")
    for note in notes:
        console.print(note, style="yellow", markup=False)
    if file is not None:
        console.print(f"Edit: {file}", soft_wrap=True, markup=False)


def _summary(method: Any) -> str:
    """Return a method in one line."""
    facts = described(method)
    heads = facts.pop("heads", None)
    parts = [f"{key}={value}" for key, value in facts.items() if key != "name"]
    if heads is not None:
        listed = "all heads" if heads == "all" else f"{len(heads)} heads"
        few = heads != "all" and len(heads) <= 6
        parts.insert(0, "heads " + " ".join(f"L{layer}H{head}" for layer, head in heads) if few else listed)
    return f"{facts['name']}: {', '.join(parts)}"


def _side(part: Continuation, diverges: int | None) -> Text:
    """Return a text with a mark where it leaves the other."""
    from rich.text import Text

    tokens = list(part.tokens)
    if diverges is None:
        return Text(part.text or "(nothing)")
    whole = Text("".join(tokens[:diverges]), style="dim")
    whole.append(" ▸", style="bold yellow")
    whole.append("".join(tokens[diverges:]) or "(ends)", style="bold")
    return whole


def _steps(found: Comparison) -> Any:
    """Return the table of log-probabilities, a row for each step; those from where the texts part are marked."""
    from rich.text import Text

    numbers = ("log p", "log p′", "change")
    shown = table("", "without", *numbers, "steered", *numbers, right=numbers)
    for step in range(max(len(found.base.ids), len(found.steered.ids))):
        cells: list[Any] = ["▸" if step == found.diverges else ""]
        for part in (found.base, found.steered):
            if step < len(part.ids):
                values = part.base[step], part.steered[step], part.difference[step]
                cells += [
                    Text(repr(part.tokens[step])[1:-1]),
                    f"{values[0]:.2f}",
                    f"{values[1]:.2f}",
                    f"{values[2]:+.2f}",
                ]
            else:
                cells += [""] * 4
        shown.add_row(*cells)
    return shown


def _told(part: Continuation) -> dict[str, Any]:
    rows = zip(part.tokens, part.ids, part.base, part.steered, strict=True)
    return {
        "text": part.text,
        "logprob": part.base.sum(),
        "logprob_steered": part.steered.sum(),
        "gain": part.gain,
        "tokens": [{"token": t, "id": i, "logprob": a, "logprob_steered": b} for t, i, a, b in rows],
    }
