"""``headscope steer``: what a model writes without a method and under it, side by side."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headscope.commands.console import JsonOption, emit, err, quiet_libraries, share_processors
from headscope.commands.options import Device, Dtype, Precision, Revision, Threads
from headscope.errors import RequestError

if TYPE_CHECKING:
    from headscope.models.prompt import Prompt

TEXT = "Text"
_NAMED = re.compile(r"([A-Za-z_]\w*)=(.+)", re.DOTALL)


def steer(
    prompt: Annotated[
        str, typer.Option("--prompt", "-p", help="The text, or @FILE that holds it.", show_default=False)
    ],
    method: Annotated[
        str | None,
        typer.Argument(
            help="pasta, act, zerotuning, spotlight, knockout, var, temperature, pai, ablation or pine.",
            show_default=False,
        ),
    ] = None,
    region: Annotated[
        list[str] | None,
        typer.Option(
            "--region",
            "-r",
            help="Text in the prompt that the method is about, or NAME=TEXT; may be given several times.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Short name, hub id, local folder or GGUF file.")
    ] = "smollm2-135m",
    heads: Annotated[
        str | None,
        typer.Option(
            help="Heads such as 18.6,23.2, all, or a file of scores that headscope profile or rank wrote.",
            show_default="the method's own",
        ),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(min=1, help="How many heads of the file, best first.", show_default="those that pass"),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A field of the method, such as alpha=0.05.", show_default=False),
    ] = None,
    edit: Annotated[
        Path | None, typer.Option(help="Apply this saved edit in place of a METHOD.", show_default=False)
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--out", "-o", help="Save the method to this file.", show_default=False)
    ] = None,
    json: JsonOption = False,
    occurrence: Annotated[
        int, typer.Option(help="Which occurrence of a region's text, from 0; -1 is the last.", rich_help_panel=TEXT)
    ] = 0,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--no-chat",
            help="Send the prompt as a user message.",
            show_default="where there is a chat template",
            rich_help_panel=TEXT,
        ),
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="System message, or @FILE.", show_default=False, rich_help_panel=TEXT)
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest continuation.", rich_help_panel=TEXT)] = 40,
    device: Device = None,
    dtype: Dtype = Precision.float32,
    threads: Threads = None,
    revision: Revision = None,
) -> None:
    """Write on from a prompt without a method and under it, and compare the two texts token by token.

    [dim]Examples:[/dim]

      headscope steer pasta --prompt "Answer in French. What is the sky like?" --region "Answer in French."

      headscope steer pasta -p @letter.txt -r "in capitals" --heads runs/pasta/heads.parquet --top 20 --set alpha=0.05

      headscope steer knockout -p @letter.txt -r source="the code is 7421" -r target="What is the code?"

      headscope steer --edit lofit.json --prompt "The film was a joy to watch. Sentiment:"
    """
    if (method is None) == (edit is None):
        raise typer.BadParameter("Give a METHOD, or a saved one with --edit; not both.", param_hint="METHOD")
    quiet_libraries()
    share_processors()
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    text, told = _text(prompt, "--prompt"), None if system is None else _text(system, "--system")
    with err().status(f"Loading {model}"):
        from headscope.commands import steered
        from headscope.commands.methods import build, takes_region
        from headscope.interventions.continuation import compare_continuations
        from headscope.interventions.store import load as load_edit
        from headscope.interventions.store import save as save_edit
        from headscope.models.load import load

        loaded = load(model, device=device, dtype=dtype, revision=revision)
    asked, regions = marked(loaded, text, region or [], occurrence, chat=chat, system=told)
    methods: tuple[Any, ...]
    if edit is not None:
        if settings or heads is not None:
            raise RequestError("--set and --heads belong to a METHOD: a saved edit is applied as it is.")
        methods = load_edit(edit, loaded)
    else:
        assert method is not None
        used = {name for setting in settings or () for name in setting.partition("=")[2].split(",")}
        if not (takes_region(method) or used.issuperset(regions)):
            raise RequestError(f"{method} is not about a region of the prompt: leave out --region.")
        methods = (build(method, settings or (), heads=heads, top=top, region=regions, model=loaded),)
    with err().status("Writing"), _warned() as notes:
        found = compare_continuations(loaded, asked, *methods, max_new_tokens=max_new_tokens)
    if not found.changed:
        notes.append("The edit changed no log-probability: it does nothing at this strength, on these heads, here.")
    file = None if save is None else save_edit(save, *methods, model=loaded)
    if json:
        emit(steered.document(loaded, asked, regions, methods, found, notes, file))
    else:
        steered.show(loaded, asked, regions, methods, found, notes, file)


def marked(
    model: Any, text: str, regions: list[str], occurrence: int, *, chat: bool | None, system: str | None
) -> tuple[Prompt, list[str]]:
    """Return the prompt with its regions, and their names in order; text without a name is the ``region``.

    Raises
    ------
    PromptError
        If the prompt does not hold a region's text, or not as often as ``occurrence`` asks.
    """
    if chat is None:
        chat = getattr(model.tokenizer, "chat_template", None) is not None
    prompt = model.prompt("{prompt}", prompt=text, chat=chat, system=system)
    places: dict[str, list[int]] = {}
    for given in regions:
        named = _NAMED.fullmatch(given)
        name, wanted = (named[1], named[2]) if named else ("region", given)
        places.setdefault(name, []).extend(prompt.find(wanted, occurrence))
    return (prompt.with_regions(places) if places else prompt), list(places)


def _text(given: str, option: str) -> str:
    """Return the text, or that of the file that ``@`` points to, without the line ends that close it."""
    if not given.startswith("@"):
        found = given
    else:
        try:
            found = Path(given[1:]).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeError) as error:
            raise RequestError(f"{option} {given}: the file cannot be read ({error}).") from error
    if not found:
        raise RequestError(f"{option} is empty: give text, or @FILE.")
    return found


@contextlib.contextmanager
def _warned() -> Iterator[list[str]]:
    """Collect what the engine warns of inside the block."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield notes
    notes += dict.fromkeys(str(warning.message) for warning in caught if warning.category is UserWarning)
