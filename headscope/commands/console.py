"""What all commands share: where text goes, how progress looks, how machines are answered.

Results go to standard output; progress, notes and errors go to standard error. With ``--json`` standard output
holds one JSON document and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

JsonOption: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on standard output, for machines.")
]

Advance: TypeAlias = "Callable[[str, int, int], None]"
"""Called with (task, done, total) after every step."""


def out() -> Console:
    """Return the console for results."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False)


def err() -> Console:
    """Return the console for progress, notes and errors."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def emit(document: Any) -> None:
    """Print ``document`` as JSON; numbers that JSON does not know become null."""
    typer.echo(json.dumps(_plain(document), indent=2, ensure_ascii=False, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):  # a numpy scalar
        return _plain(value.item())
    if isinstance(value, float):
        return value if value - value == 0 else None
    if value is None or isinstance(value, (str, int, bool)):
        return value
    return str(value)


def table(*columns: str, title: str | None = None, right: tuple[str, ...] = ()) -> Table:
    """Return an empty table in the house style."""
    from rich import box
    from rich.table import Table

    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", no_wrap=column in right)
    return made


def interval(value: float, low: float, high: float) -> str:
    """Return ``0.532 (0.41 to 0.61)``; without bounds the value alone, a dash where there is none."""
    if value != value:
        return "–"
    return f"{value:.3f}" if low != low or high != high else f"{value:.3f} ({low:.2f} to {high:.2f})"


@contextlib.contextmanager
def progress(description: str) -> Iterator[Advance]:
    """Show a bar on standard error while the block runs; yield the function that moves it.

    Where standard error is no terminal, as in logs, each task says once that it began.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    console = err()
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:

        def advance(task: str, done: int, total: int) -> None:
            if task not in tasks:
                tasks[task] = bar.add_task(f"{description}: {task}" if task else description)
                if not console.is_terminal:
                    console.print(f"{description}: {task} ({total})" if task else description)
            bar.update(tasks[task], completed=done, total=total)

        yield advance


def numbers(text: str | None, option: str) -> tuple[int, ...] | None:
    """Read ``512,2048`` as numbers above zero; ``None`` stays ``None``."""
    if text is None:
        return None
    try:
        values = tuple(int(part) for part in text.replace(" ", "").split(",") if part)
    except ValueError:
        values = ()
    if not values or min(values) < 1:
        raise typer.BadParameter(
            f"{text!r} is not a list of whole numbers above zero, such as 512,2048.", param_hint=option
        )
    return values


def quiet_libraries() -> None:
    """Keep the loading bars and advice of libraries off the screen; their errors still show."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("headscope").setLevel(logging.WARNING)


def share_processors() -> None:
    """Let threads that wait for each other sleep; call before torch is imported.

    By default they spin. Decoding waits hundreds of times per token: on a machine with one busy neighbour per two
    cores spinning made it six times slower, on an idle one sleeping costs next to nothing.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
