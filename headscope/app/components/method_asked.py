"""What the Steer page is asked to do: a method with its values, checked before a model runs, then built."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.app.components.heads import chosen, describe_heads, resolve_heads
from headscope.app.components.method_fields import LEARNT, NEEDED, VALUED, Field, about, fields_of, takes_heads, text_of
from headscope.app.runs import Recipe
from headscope.commands.methods import kinds_of, read
from headscope.errors import HeadscopeError, RequestError
from headscope.files import canonical_json, sha256_file, sha256_text
from headscope.interventions.registry import METHODS, find_method
from headscope.interventions.store import FORMAT

if TYPE_CHECKING:
    from headscope.app.desk import Desk

SAVED = "saved"
"""Stands for a method: whatever an edit file of the workspace holds."""
EDITS = "edits"
NAMES = ("all", "bos", "generated", "last", "rest", "prompt")
"""Names that every prompt knows."""

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Asked:
    """A prompt and what to put in force on it.

    Parameters
    ----------
    recipe
        Model and prompt.
    method
        Of ``METHODS``, or ``"saved"``.
    fields
        Values that differ from the defaults, as text; see ``method_fields.text_of``.
    heads
        What the picker of heads holds.
    file
        Edit file of the workspace: of a trained method, or any.
    before
        Edit file that is in force throughout, under the method.
    """

    recipe: Recipe
    method: str
    fields: Mapping[str, str] = field(default_factory=dict)
    heads: Mapping[str, Any] = field(default_factory=dict)
    file: str | None = None
    before: str | None = None

    @property
    def valued(self) -> bool:
        """Whether the method is made from values, not read from a file."""
        return self.method in VALUED

    @classmethod
    def read(cls, document: Any) -> Asked:
        """Return what a page sends.

        Raises
        ------
        RequestError
            If it is of the wrong kind, or there is no such method.
        """
        if not isinstance(document, Mapping):
            raise RequestError("Nothing was asked for.")
        method = str(document.get("method") or "")
        if method not in METHODS and method != SAVED:
            raise RequestError(f"There is no method {method!r:.40}.")
        fields = document.get("fields")
        known = {one.name: one for one in fields_of(method)} if method in VALUED else {}
        values = {
            name: _clean(value)
            for name, value in (fields.items() if isinstance(fields, Mapping) else ())
            if name in known and _clean(value) not in ("", known[name].default)
        }
        return cls(
            replace(Recipe.read(document.get("recipe")), edit=None),
            method,
            dict(sorted(values.items())),
            chosen(document.get("heads")) if takes_heads(method) and method in VALUED else {},
            str(document.get("file") or "") or None if method not in VALUED else None,
            str(document.get("before") or "") or None,
        )

    def document(self) -> dict[str, Any]:
        """Return it as JSON values, which ``read`` takes."""
        return {**asdict(self), "recipe": asdict(self.recipe)}

    def name(self, desk: Desk, what: str = "", **more: Any) -> str:
        """Return a name for what comes of it: files that it depends on are part of it by their content."""
        files = [found for found in (self.file, self.before, self.heads.get("file")) if found]
        prints = [_print(desk, file) for file in files]
        return sha256_text(canonical_json([what, self.document(), prints, more]))[:16]


def _clean(value: Any) -> str:
    text = text_of([one for one in value if one not in (None, "")] if isinstance(value, list) else value)
    return text.strip()


def _print(desk: Desk, file: str) -> str:
    try:
        return sha256_file(desk.workspace.path(file))
    except (HeadscopeError, OSError):
        return ""  # told when it is opened


# -- before a model runs ---------------------------------------------------------------------------------------------

GENERAL = ""
"""Key of a message that belongs to no field."""


def wrong(desk: Desk, asked: Asked, *, prompt: bool = True) -> dict[str, str]:
    """Return what is wrong, by field, in words of the page; nothing if the model may be asked.

    Parameters
    ----------
    prompt
        Whether the prompt will be run.
    """
    said: dict[str, str] = {}
    if prompt:
        if not asked.recipe.text.strip():
            said["prompt"] = "The prompt is empty: type or open one."
        elif asked.recipe.new_tokens < 1:
            said["prompt"] = "Tokens to write: at least 1, or there is nothing to compare."
    if not asked.valued:
        if asked.file is None:
            said["file"] = "Choose the file of an edit."
        return said
    values, faults = _values(asked)
    said |= faults
    if asked.heads:
        said |= _heads_wrong(desk, asked)
    regions = {name for name, _, _ in asked.recipe.regions}
    for one in fields_of(asked.method):
        if one.name in faults or one.kind not in ("keys", "region", "names"):
            continue
        if one.name not in values:
            if _needs(asked, one):
                said[one.name] = _choose(one, regions)
        elif one.name == "segments" and len(values[one.name]) < 2:
            said[one.name] = "One segment has one order: choose two regions or more."
        elif prompt:
            given = values[one.name]
            names = [given] if isinstance(given, str) else [key for key in given if isinstance(key, str)]
            unknown = [name for name in names if name not in regions and not _own(name)]
            if unknown:
                said[one.name] = f"The prompt has no region {unknown[0]!r}. " + _mark(regions)
    return said or _refused(asked, values)


def _own(name: str) -> bool:
    return name in NAMES or name.startswith("after:")


def _needs(asked: Asked, one: Field) -> bool:
    if one.name not in NEEDED or one.default:
        return False
    mode = asked.fields.get("mode")
    if asked.method == "ablation":
        return mode == "mask"
    return not (asked.method == "pasta" and mode == "generation")


def _choose(one: Field, regions: set[str]) -> str:
    if one.name == "segments" and len(regions) > 1:
        return "Choose two regions or more, which follow each other without a gap."
    if regions and one.name != "segments":
        return "Choose a region of the prompt."
    what = "Two regions or more" if one.name == "segments" else "A region"
    return f"{what} must be marked in the prompt first: select text there, then “Mark selection”."


def _mark(regions: set[str]) -> str:
    return f"Choose {' or '.join(sorted(regions))}." if regions else "Mark it: select text, then “Mark selection”."


def _values(asked: Asked) -> tuple[dict[str, Any], dict[str, str]]:
    kinds = kinds_of(find_method(asked.method))
    values, said = {}, {}
    for name, text in asked.fields.items():
        try:
            values[name] = read(text, kinds[name], name)
        except RequestError as error:
            said[name] = _capital(str(error).removeprefix(f"{name}: ")) + "."
    return values, said


def _heads_wrong(desk: Desk, asked: Asked) -> dict[str, str]:
    data = chosen(asked.heads)
    if asked.method == "ablation" and data["kind"] == "typed" and not data["text"].strip():
        others = any(asked.fields.get(name) for name in ("layers", "mlps", "neurons"))
        return {} if others else {"heads": "Say what to remove: list heads, or give layers, mlps or neurons."}
    try:
        if data["kind"] in ("set", "top") and not data["file"]:
            raise RequestError(f"Choose a {'head set' if data['kind'] == 'set' else 'ranking'}, or other heads.")
        describe_heads(desk, data)
    except HeadscopeError as error:
        return {"heads": str(error)}
    return {}


def _refused(asked: Asked, values: dict[str, Any]) -> dict[str, str]:
    """Ask the method itself, on made-up heads: it knows which values go together."""
    method = find_method(asked.method)
    given = dict(values)
    if asked.method == "ablation":
        given["heads"] = ((0, 0),)
        if given.get("mode") in ("mean", "resample"):
            given["mode"] = "zero"  # their values are collected in the model
        if given.get("mode") != "mask":
            given.pop("region", None)  # as the command line leaves it out
    elif takes_heads(asked.method):
        given["heads"] = "all"
    for name in LEARNT.get(asked.method, {}):
        given.setdefault(name, (0,) if name == "dimensions" else 1.0)
    try:
        method(**given)
    except RequestError as error:
        text = str(error)
        at = re.match(rf"{method.__name__}\((\w+)=", text)
        known = {one.name for one in fields_of(asked.method)}
        name = at[1] if at and at[1] in known and text.count("=") == 1 else GENERAL
        return {name: paged(text)}
    return {}


def paged(text: str) -> str:
    """Return a message without the words that only a command line understands.

    >>> paged("PASTA(alpha=-1.0): give a finite number above 0. Give --region.")
    'PASTA(alpha=-1.0): give a finite number above 0.'
    """
    text = re.sub(r" Give --region\.", "", text)
    text = re.sub(r"give --region\b", "choose a region of the prompt", text)
    text = re.sub(r"--heads '([^']*)'", r"heads “\1”", text)
    return text.replace("leave out region=", "clear the region").replace("leave out --heads", "choose all heads")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


# -- with a model ----------------------------------------------------------------------------------------------------


def parts(desk: Desk, asked: Asked, model: Any, tell: Tell, region: str | None = None) -> tuple[Any, ...]:
    """Return the methods and edits that are asked for, in the order in which they apply.

    Parameters
    ----------
    region
        Takes the place of the regions that the method is about; a task has its own.

    Raises
    ------
    HeadscopeError
        In words of the page.
    """
    before = desk.edits(asked.before, model) if asked.before else ()
    if not asked.valued:
        if asked.file is None:
            raise RequestError("Choose the file of an edit.")
        return (*before, *desk.edits(asked.file, model))
    try:
        return (*before, _method(desk, asked, model, tell, region))
    except RequestError as error:
        raise RequestError(paged(str(error))) from error


def _method(desk: Desk, asked: Asked, model: Any, tell: Tell, region: str | None) -> Any:
    from headscope.commands.methods import build

    values = {name: text for name, text in asked.fields.items() if region is None or name not in NEEDED}
    heads: Any = None
    if asked.heads:
        empty = chosen(asked.heads)["kind"] == "typed" and not chosen(asked.heads)["text"].strip()
        heads = None if empty and asked.method == "ablation" else resolve_heads(desk, model, asked.heads)
    if asked.method == "var" and "dimensions" not in values:
        dimensions, tau = learnt(model, tell)
        values = {"dimensions": text_of(dimensions), "tau": text_of(tau), **values}
    elif asked.method == "ablation" and values.get("mode") in ("mean", "resample"):
        tell("Collecting what stands in for removed parts", 0, 1)
    settings = [f"{name}={text}" for name, text in values.items()]
    return build(asked.method, settings, heads=heads, region=region, model=model)


_LEARNT: dict[str, tuple[tuple[int, ...], float]] = {}
"""By the fingerprint of a model."""


def learnt(model: Any, tell: Tell) -> tuple[tuple[int, ...], float]:
    """Return the dimensions that mark sinks in a model, and tau; learnt once."""
    from headscope.data import texts
    from headscope.interventions.var import LENGTH, sink_dimensions

    if model.fingerprint not in _LEARNT:
        # As many and as long as sink_dimensions takes by itself, so that the command line learns the same.
        length = LENGTH if model.spec.n_ctx is None else min(LENGTH, int(model.spec.n_ctx))
        samples = texts(model, 100, length, 0)
        prompts = _Told([samples[i].prompt(model) for i in range(len(samples))], tell)
        found = sink_dimensions(model, prompts)
        _LEARNT[model.fingerprint] = found.dimensions, found.tau
    return _LEARNT[model.fingerprint]


class _Told(list[Any]):
    """A list that tells how far one has gone through it."""

    def __init__(self, items: list[Any], tell: Tell) -> None:
        super().__init__(items)
        self._tell = tell

    def __iter__(self) -> Any:
        for done, item in enumerate(super().__iter__()):
            self._tell("Learning which dimensions mark sinks", done, len(self))
            yield item


# -- edit files ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EditFile:
    """An edit file of the workspace: what is in it, and the model that it was made for."""

    file: str
    kinds: tuple[str, ...]
    model: str

    @property
    def label(self) -> str:
        """Its name without folder and ending."""
        return self.file.removeprefix(f"{EDITS}/").removesuffix(".json")


def edit_files(desk: Desk, method: str = SAVED) -> list[EditFile]:
    """Return the edit files, newest first: those that hold a trained method, or all."""
    found = []
    for file in desk.workspace.files(".json"):
        path = desk.workspace.path(file)
        try:
            known = _peek(str(path), path.stat().st_mtime_ns)
        except OSError:
            continue  # gone by now
        if known is not None and (method == SAVED or method in known[0]):
            found.append(EditFile(file, *known))
    return sorted(found, key=lambda one: not one.file.startswith(f"{EDITS}/"))


@functools.lru_cache(maxsize=512)
def _peek(path: str, _when: int) -> tuple[tuple[str, ...], str] | None:
    head = b""
    with Path(path).open("rb") as opened:
        head = opened.read(400)
    if FORMAT.encode() not in head:
        return None  # other JSON, perhaps large
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        kinds = tuple(str(one["type"]) for one in document["interventions"])
        return kinds, str(document["model"]["name"])
    except (ValueError, KeyError, TypeError):
        return None


def how_to_make(method: str, root: Path) -> tuple[str, str]:
    """Say how to make a file of a trained method: a sentence, and a command or Python."""
    out = root / EDITS / f"{method}.json"
    label = about(method).label
    if method in ("lofit", "iti", "lora", "steering"):
        return (
            f"{label} holds trained numbers. Train it on a task; what --out writes appears here:",
            f"headscope tune {method} --task sentiment --no-baselines --out {out}",
        )
    return (
        f"{label} needs a sparse autoencoder in SAELens' format. Choose a feature in Python and save it here:",
        f"hs.interventions.save({str(out)!r}, feature, model=model)",
    )


def from_query(query: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an address says of the method: method, fields, heads, file, before."""
    fields = {str(key)[4:]: str(value) for key, value in query.items() if str(key).startswith("set.")}
    file = str(query.get("edit") or "") or None
    method = str(query.get("method") or (SAVED if file else "pasta"))
    if method not in METHODS and method != SAVED:
        method = "pasta"
    return {
        "method": method,
        "fields": fields,
        "heads": heads_from(query.get("heads"), query.get("top")),
        "file": file,
        "before": str(query.get("before") or "") or None,
    }


def heads_from(text: Any, top: Any = None) -> dict[str, Any]:
    """Read heads from an address: ``all``, pairs, or a file of a head set or a ranking.

    >>> heads_from("heads/a.json")["kind"], heads_from("r/b.parquet", "5")["kind"], heads_from("8-20.*")["kind"]
    ('set', 'top', 'typed')
    """
    text = str(text or "").strip()
    if not text or text == "all":
        return chosen({"kind": "all"})
    if text == "none":
        return chosen({"kind": "typed"})
    if not text.endswith((".json", ".parquet", ".csv")):
        return chosen({"kind": "typed", "text": text})
    ranked = top is not None or not text.startswith("heads/")
    return chosen({"kind": "top" if ranked else "set", "file": text, "top": top})
