"""Models that a page may choose from, and what can be said of them without loading one."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.models import carried

if TYPE_CHECKING:
    from headscope.app.desk import Desk

LOADED, HERE, ABSENT, UNKNOWN = "in memory", "on disk", "not fetched", ""


@dataclass(frozen=True)
class AtHand:
    """What a list says of a model.

    Parameters
    ----------
    name
        As pages and the command line call it.
    about
        What it is, in a line.
    layers, heads, context
        Where they are known.
    state
        ``LOADED``, ``HERE``, ``ABSENT``, or ``UNKNOWN`` for one that would be looked for on the hub.
    licence
        Its licence's usual name, where a package carries it.
    fetch
        The command that fetches it, if it is absent.
    allowed
        Whether pages may load it.
    """

    name: str
    about: str = ""
    layers: int | None = None
    heads: int | None = None
    context: int | None = None
    state: str = UNKNOWN
    licence: str = ""
    fetch: str = ""
    allowed: bool = True


def models(desk: Desk) -> list[AtHand]:
    """Return the models that pages may load, then those that packages carry and that are not fetched yet."""
    known = {str(row["name"]): row for row in carried.list_models()}
    names = desk.names()
    found = [_allowed(desk, name, known.get(name)) for name in names]
    return found + [_absent(name, row) for name, row in known.items() if name not in names and not row["fetched"]]


def _allowed(desk: Desk, name: str, row: dict[str, Any] | None) -> AtHand:
    about, licence = (str(row["what"]), str(row["licence"])) if row else (_where(name), "")
    if (spec := desk.spec(name)) is not None:
        return AtHand(name, about, spec.n_layers, spec.n_heads, spec.n_ctx, LOADED, licence)
    folder = carried.folder_of(name) if row else Path(name).expanduser()
    if row and not row["fetched"]:
        return _absent(name, row)
    facts = _facts(folder) if folder.is_dir() else {}
    state = HERE if folder.exists() else UNKNOWN
    return AtHand(name, about, facts.get("layers"), facts.get("heads"), facts.get("context"), state, licence)


def _absent(name: str, row: dict[str, Any]) -> AtHand:
    terms = " --accept-licence" if carried.CARRIED[name].terms else ""
    command = f"headscope models fetch {name}{terms}"
    about, licence = f"{row['what']} ({row['megabytes']} MB)", str(row["licence"])
    return AtHand(name, about, state=ABSENT, licence=licence, fetch=command, allowed=False)


def _where(name: str) -> str:
    path = Path(name).expanduser()
    return (
        f"Folder {path.parent}" if path.is_dir() else f"File in {path.parent}" if path.is_file() else "Hugging Face hub"
    )


def _facts(folder: Path) -> dict[str, int]:
    """Read sizes from a configuration, under the names that families give them."""
    file = folder / "config.json"
    try:
        return dict(_read(str(file), file.stat().st_mtime_ns))
    except OSError:
        return {}


_NAMES = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "encoder_layers"),
    "heads": ("num_attention_heads", "n_head", "num_heads", "encoder_attention_heads"),
    "context": ("max_position_embeddings", "n_positions", "max_target_positions", "max_sequence_length"),
}


@functools.lru_cache(maxsize=256)
def _read(file: str, _: int) -> tuple[tuple[str, int], ...]:
    try:
        config = json.loads(Path(file).read_text(encoding="utf-8"))
    except ValueError:
        return ()
    if not isinstance(config, dict):
        return ()
    text = config.get("text_config")
    parts = [part for part in (text, config) if isinstance(part, dict)]
    found = {
        what: next((part[name] for part in parts for name in names if isinstance(part.get(name), int)), None)
        for what, names in _NAMES.items()
    }
    return tuple((what, value) for what, value in found.items() if value is not None)
