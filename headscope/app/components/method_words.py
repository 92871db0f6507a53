"""What was steered, as Python and as a command line that do the same."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from headscope.app.cell import WIDTH, prompt_lines
from headscope.app.components.heads import heads_argument
from headscope.app.components.method_asked import Asked
from headscope.app.components.method_fields import NEEDED
from headscope.commands.methods import PLACES, REFERENCE_TOKENS, REFERENCES
from headscope.errors import OutputError, PromptError
from headscope.files import write_text

if TYPE_CHECKING:
    from headscope.app.desk import Desk
    from headscope.models.prompt import Prompt

SHORT = 240
"""Characters of a prompt that a command line holds itself; longer ones lie in a file."""
PROMPTS = ".app/steer"


# -- Python ----------------------------------------------------------------------------------------------------------


def python(desk: Desk, asked: Asked, prompt: Prompt, methods: Sequence[Any], model: Any, *, cell: bool = False) -> str:
    """Return Python that loads the model, makes prompt and method, and compares both continuations.

    Parameters
    ----------
    cell
        End in the comparison itself, which notebooks show, and print nothing.
    """
    names, lines = method_lines(desk, asked, methods, model)
    call = [*names, f"max_new_tokens={asked.recipe.new_tokens}"]
    shown = (
        ["found"]
        if cell
        else ["for part in (found.base, found.steered):", "    print(f'{part.gain:+.2f} {part.text}')"]
    )
    return "\n".join(
        [
            *opening(desk, asked),
            *prompt_lines(asked.recipe, Marked(prompt)),
            *lines,
            f"found = hs.interventions.compare_continuations(model, prompt, {', '.join(call)})",
            *shown,
            "",
        ]
    )


def opening(desk: Desk, asked: Asked) -> list[str]:
    """Return the lines that load the model as this server did."""
    settings, own = desk.settings, asked.recipe.model == desk.settings.model
    options = [repr(asked.recipe.model)]
    options += [f"device={settings.device!r}"] if settings.device else []
    options += [f"dtype={settings.dtype!r}"] if settings.dtype != "float32" else []
    options += [f"revision={settings.revision!r}"] if settings.revision and own else []
    return ["import headscope as hs", "", f"model = hs.load({', '.join(options)})"]


def method_lines(desk: Desk, asked: Asked, methods: Sequence[Any], model: Any) -> tuple[list[str], list[str]]:
    """Return how the methods are called, and the lines that make them."""
    names, lines = [], []
    for name, file in (("before", asked.before), ("edits", None if asked.valued else asked.file)):
        if file:
            path = str(desk.settings.workspace / file)
            names.append(f"*{name}")
            lines.append(f"{name} = hs.interventions.load({path!r}, model)")
    if asked.valued:
        names.append("method")
        lines += made(methods[-1], model)
    return names, lines


def made(method: Any, model: Any) -> list[str]:
    """Return the lines that make a method, with what differs from its defaults."""
    kind = type(method)
    values = {
        field.name: getattr(method, field.name)
        for field in fields(method)
        if field.init and not _same(getattr(method, field.name), field.default)
    }
    fitted = values.get("mode") in ("mean", "resample") and kind.__name__ == "Ablation"
    lines, first = [], [] if not fitted else ["model", "texts"]
    if fitted:
        length = min(REFERENCE_TOKENS, int(model.spec.n_ctx or REFERENCE_TOKENS))
        lines.append(f"texts = [text.prompt(model) for text in hs.data.texts(model, n={REFERENCES}, length={length})]")
        values = {name: value for name, value in values.items() if name not in ("values", "units")}
    call = f"hs.interventions.{kind.__name__}{'.fit' if fitted else ''}"
    arguments = [*first, *(f"{name}={_value(name, value, model)}" for name, value in values.items())]
    whole = f"method = {call}({', '.join(arguments)})"
    if len(whole) <= WIDTH:
        return [*lines, whole]
    return [*lines, f"method = {call}(", *(textwrap.indent(f"{one},", "    ") for one in arguments), ")"]


def _same(value: Any, default: Any) -> bool:
    return type(value) is type(default) and value == default


def _value(name: str, value: Any, model: Any) -> str:
    if name == "heads" and not isinstance(value, str):
        return _heads(value, model)
    if isinstance(value, tuple) and len(value) == 1 and isinstance(value[0], str):
        return repr(value[0])
    if isinstance(value, np.generic):
        value = value.item()
    return repr(value)


def _heads(pairs: Sequence[tuple[int, int]], model: Any) -> str:
    """Write heads; whole layers in a row, all with as many heads, as the loop that they are."""
    counts = {layer: site.heads for layer, site in model.sites.stack(None).items()}
    layers = sorted({layer for layer, _ in pairs})
    heads = {counts.get(layer) for layer in layers}
    whole = layers == list(range(layers[0], layers[-1] + 1)) and len(heads) == 1 and len(layers) > 1
    if whole and len(set(pairs)) == len(layers) * (count := heads.pop() or 0):
        return f"[(layer, head) for layer in range({layers[0]}, {layers[-1] + 1}) for head in range({count})]"
    text = repr([tuple(map(int, pair)) for pair in pairs])
    if len(text) <= WIDTH - 20:
        return text
    rows = textwrap.wrap(" ".join(f"({layer},~{head})," for layer, head in pairs), WIDTH - 12)
    return "\n".join(["[", *(f"    {row.replace('~', ' ')}" for row in rows), "]"])


class Marked:
    """A prompt's regions in the shape in which views tell them."""

    def __init__(self, prompt: Prompt) -> None:
        self.prompt = prompt

    def meta(self) -> dict[str, Any]:
        """Return the regions as runs of positions."""
        return {"regions": {name: list(_runs(places)) for name, places in self.prompt.regions.items()}}


def _runs(places: Sequence[int]) -> Iterable[tuple[int, int]]:
    start = None
    for at, place in enumerate(places):
        if start is None:
            start = place
        if at + 1 == len(places) or places[at + 1] != place + 1:
            yield start, place + 1
            start = None


# -- command line ----------------------------------------------------------------------------------------------------


def command(desk: Desk, asked: Asked, prompt: Prompt) -> tuple[str | None, str]:
    """Return ``headscope steer`` with everything that does the same, or None and why there is none."""
    if asked.before:
        return None, "The command line takes one method: save this edit, and it takes that (steer --edit)."
    regions, why = _regions(asked, prompt)
    if regions is None:
        return None, why
    recipe, settings = asked.recipe, desk.settings
    words = ["headscope", "steer"]
    if asked.valued:
        words += [asked.method, *_settings(asked)]
        words += heads_argument(desk, asked.heads) if asked.heads and not _no_heads(asked) else []
    else:
        words += ["--edit", str(settings.workspace / str(asked.file))]
    text = _text(desk, recipe.text)
    system = None if recipe.system is None else _text(desk, recipe.system)
    if text is None or (recipe.system is not None and system is None):
        return None, "The command line drops line ends that close a text from a file: use the Python."
    words += ["--model", recipe.model, "--prompt", text, *regions]
    words += ["--chat" if recipe.chat else "--no-chat"]
    words += ["--system", system] if recipe.chat and system else []
    words += ["--max-new-tokens", str(recipe.new_tokens)]
    words += ["--device", settings.device] if settings.device else []
    words += ["--dtype", settings.dtype] if settings.dtype != "float32" else []
    words += ["--revision", settings.revision] if settings.revision and recipe.model == settings.model else []
    return shlex.join(words), ""


def _no_heads(asked: Asked) -> bool:
    return asked.heads.get("kind") == "typed" and not str(asked.heads.get("text") or "").strip()


def _settings(asked: Asked) -> list[str]:
    """Return the ``--set`` of all fields that ``--region`` does not fill by itself."""
    used = _used(asked)
    home = next((name for name in NEEDED if name in asked.fields), None)
    rest = [name for name in used if name not in PLACES]
    out = []
    for name, text in asked.fields.items():
        # build() gives a region called source or target to the field of that name, and the others to the first field.
        by_itself = (name == home and text == ",".join(rest)) or (name in PLACES and text == name and name in used)
        if not by_itself:
            out += ["--set", f"{name}={text}"]
    return out


def _used(asked: Asked) -> list[str]:
    """Return the marked regions that the method speaks of, in the order of its words; of an edit file, all."""
    marked = dict.fromkeys(name for name, _, _ in asked.recipe.regions)
    if not asked.valued:
        return list(marked)
    words = [
        word.removeprefix("after:")
        for name in ("region", "source", "target", "segments", "token")
        for word in asked.fields.get(name, "").split(",")
    ]
    return list(dict.fromkeys(word for word in words if word in marked))


def _regions(asked: Asked, prompt: Prompt) -> tuple[list[str] | None, str]:
    used, text = _used(asked), asked.recipe.text
    spans = [(name, text[start:end]) for name, start, end in asked.recipe.regions if name in used]
    spans.sort(key=lambda one: used.index(one[0]))
    if not spans:
        return [], ""
    for occurrence in range(64):
        places: dict[str, set[int]] = {name: set() for name in used}
        try:
            for name, piece in spans:
                places[name].update(prompt.find(piece, occurrence))
        except PromptError:
            break
        if all(places[name] == set(prompt.positions(name)) for name in used):
            words = [word for name, piece in spans for word in ("--region", f"{name}={piece}")]
            return words + (["--occurrence", str(occurrence)] if occurrence else []), ""
    return None, "The command line finds regions by their text, and here that is in several places: use the Python."


def _text(desk: Desk, text: str) -> str | None:
    """Return a text as an option takes it: itself, or a file that holds it; None if neither can."""
    if len(text) <= SHORT and not text.startswith("@"):
        return text
    if text != text.rstrip("\r\n"):
        return None if text.startswith("@") else text
    from headscope.files import sha256_text

    name = f"{PROMPTS}/prompt-{sha256_text(text)[:12]}.txt"
    try:
        write_text(desk.workspace.path(name), text)
    except OutputError:
        return None if text.startswith("@") else text
    return f"@{desk.settings.workspace / name}"
