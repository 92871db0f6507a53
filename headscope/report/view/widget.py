"""What a notebook shows: a page in a cell, or as a file."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.errors import RequestError
from headscope.files import write_text
from headscope.report.view.html import Theme, frame, view_page

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from headscope.attention.edits import Edit
    from headscope.models.model import Editor, Model
    from headscope.models.prompt import Prompt
    from headscope.probes.scores import HeadScores
    from headscope.report.view.source import View

HEIGHT = 640
_LEAST = 120


class Shown:
    """A self-contained page that Jupyter, VS Code and exported HTML show in place, without a kernel or extension.

    Parameters
    ----------
    html
        The page.
    title
        What it is, in words.
    height
        Height of the frame in a notebook, in pixels.

    Raises
    ------
    RequestError
        If the height is too small to show anything.
    """

    def __init__(self, html: str, title: str, height: int = HEIGHT) -> None:
        if not height >= _LEAST:
            raise RequestError(f"height={height!r}: give at least {_LEAST} pixels.")
        self.html = html
        self.title = title
        self.height = int(height)

    def save(self, path: str | Path) -> Path:
        """Write the page as a file that opens offline, whole or not at all.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        return write_text(path, self.html)

    def __repr__(self) -> str:
        return f"<{self.title}: {len(self.html) / 1e6:.1f} MB of HTML; .save('name.html') writes it to a file>"

    def _repr_html_(self) -> str:
        return frame(self.html, self.height, self.title)


def show_view(
    view: View,
    *,
    heads: Iterable[tuple[int, int]] | None = None,
    layers: Iterable[int] | None = None,
    html: bool = False,
    height: int = HEIGHT,
    limit_mb: float = 25,
    theme: Theme = "auto",
    again: str = "model.view(prompt, heads=[{head}])",
) -> Shown | str:
    """Return the viewer of a view for a notebook, or its page as text; see ``headscope.report.view.html.view_page``."""
    page = view_page(view, heads=heads, layers=layers, limit_mb=limit_mb, theme=theme, again=again)
    return page if html else Shown(page, f"Attention of {view.meta()['model']} over {view.length} tokens", height)


def show_prompt(
    model: Model,
    prompt: Prompt | str,
    *,
    edits: Sequence[Edit | Editor] = (),
    max_new_tokens: int = 0,
    **options: Any,
) -> Shown | str:
    """Run a prompt, and more tokens that the model writes after it, and return the viewer; see ``Model.view``."""
    from headscope.report.view.capture import look

    return show_view(look(model, _read(model, prompt, edits, max_new_tokens), edits=edits), **options)


def show_run(run: Any, model: Model | None, **options: Any) -> Shown | str:
    """Return the viewer of a run that kept queries and keys; see ``Run.show``."""
    from headscope.report.view.source import View

    if not run.qk:
        raise RequestError(
            "This run kept no queries and keys, so there is nothing to show. Capture them: model.run(prompt, "
            "[hs.QK(), …]).show(); or let model.view(prompt) capture all that the viewer can show."
        )
    if model is None:
        raise RequestError(
            "The model of this run is gone, and what it is made of with it: give one, as run.show(model=model)."
        )
    return show_view(View(run, model), again="run.show(heads=[{head}])", **options)


def show_scores(
    scores: HeadScores, *, column: str = "score", html: bool = False, height: int = HEIGHT, theme: Theme = "auto"
) -> Shown | str:
    """Return the map and the table of a ranking for a notebook, or their page as text; see ``HeadScores.show``."""
    from headscope.report import words
    from headscope.report.view.scores import scores_page

    page = scores_page(scores, column=column, theme=theme)
    return page if html else Shown(page, f"{words.title_of(scores)} of {words.model_of(scores)}", height)


def _read(model: Model, prompt: Prompt | str, edits: Sequence[Edit | Editor], count: int) -> Prompt:
    """Return the prompt with what the model writes after it under the edits."""
    from headscope.models.prompt import Prompt

    if isinstance(prompt, str):
        prompt = Prompt.from_text(model._need_tokenizer(), prompt, n_ctx=model.spec.n_ctx)
    if not isinstance(prompt, Prompt):
        raise RequestError(
            f"A view is of one prompt: pass text or model.prompt(…), not {type(prompt).__name__}. For several, make a "
            "view of each."
        )
    if not count:
        return prompt
    if "encoder" in model.spec.stacks:
        raise RequestError(
            f"The view of {model.name} is of its encoder, which reads the prompt: what the decoder writes is not in "
            "it. Leave max_new_tokens out."
        )
    with contextlib.ExitStack() as around:
        if edits:
            around.enter_context(model.edited(*edits))
        trace = model.trace(prompt, max_new_tokens=count)
    return prompt.continued(trace.tokens, model.tokenizer)
