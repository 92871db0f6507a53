"""Methods and heads from the words of a command line."""

from __future__ import annotations

import re
import sys
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from headscope.errors import RequestError, nearest

if TYPE_CHECKING:
    from headscope.interventions.base import Heads, Method

TRAINED = {
    "lofit": "headscope tune lofit",
    "iti": "headscope tune iti",
    "lora": "headscope tune lora",
    "steering": "SteeringVector.fit (docs/interventions/steering.md)",
    "sae": "SaeFeature (docs/interventions/sae.md)",
}
"""Methods whose numbers no command line can hold, and what makes them."""

REGIONS = ("region", "regions", "source", "segments")
"""Fields that hold the region that a method is about, in the order in which they are looked for."""
PLACES = ("source", "target")
"""Fields that a region of the same name goes to."""

REFERENCES, REFERENCE_TOKENS = 14, 128
"""Texts, and tokens of each, that mean and resample ablations take their values from."""

_PAIR = re.compile(r"L?(\d+)(?:-(\d+))?[.H](\d+|\*)", re.IGNORECASE)


def build(
    name: str,
    settings: Sequence[str] = (),
    *,
    heads: str | Iterable[tuple[int, int]] | None = None,
    top: int | None = None,
    region: str | Sequence[str] | None = None,
    model: Any,
) -> Method:
    """Make a method.

    Parameters
    ----------
    name
        Of ``headscope.interventions.METHODS``.
    settings
        ``field=value``: read as the type that the field of the method has. A tuple's values are separated by commas.
    heads
        Pairs, or text for ``heads_of``; all heads where the method wants some and none are named.
    top
        How many heads of a file of scores; those that it selects by default.
    region
        Names of regions of the prompt. One called ``source`` or ``target`` goes to the field of that name, the
        others to the method's region. Methods without regions take no notice.
    model
        Where heads are looked up.

    Raises
    ------
    RequestError
        If there is no such method or field, a value cannot be read, or something is missing.
    """
    from headscope.interventions.registry import find_method

    method = find_method(name)
    if name.lower() in TRAINED:
        raise RequestError(
            f"{method.__name__} holds trained numbers: make it with {TRAINED[name.lower()]}, then --edit."
        )
    known = {field.name: field for field in fields(method) if field.init}  # type: ignore[arg-type]
    kinds = kinds_of(method)
    values = _regions(method, known, kinds, [region] if isinstance(region, str) else list(region or ()))
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise RequestError(f"--set {setting!r}: give it as field=value, such as --set alpha=0.05.")
        if key not in known:
            raise RequestError(f"{method.__name__} has no field {key!r}.{nearest(key, known)}")
        values[key] = heads_of(text, model, top) if key == "heads" else read(text, kinds[key], f"--set {setting}")
    if "heads" in known and "heads" not in values:
        if heads is not None:
            values["heads"] = heads_of(heads, model, top) if isinstance(heads, str) else tuple(heads)
        elif required(known["heads"]):
            values["heads"] = "all"
    elif heads is not None and "heads" not in known:
        raise RequestError(f"{method.__name__} does not act on heads: leave out --heads.")
    if name.lower() == "ablation":
        return _ablation(method, values, model)
    if name.lower() == "var" and "dimensions" not in values:
        from headscope.interventions.var import sink_dimensions

        learnt = sink_dimensions(model)
        values = {"dimensions": learnt.dimensions, "tau": learnt.tau, **values}
    missing = [key for key, field in known.items() if required(field) and key not in values]
    if missing:
        how = "--region" if missing[0] in REGIONS else f"--set {missing[0]}=…"
        raise RequestError(f"{method.__name__} needs {' and '.join(missing)}: give {how}.")
    try:
        return method(**values)
    except RequestError as error:
        if known.keys().isdisjoint(REGIONS) or not values.keys().isdisjoint(REGIONS):
            raise
        raise RequestError(f"{error} Give --region.") from error


def takes_region(name: str) -> bool:
    """Whether a method has a region, to be told which."""
    from headscope.interventions.registry import find_method

    names = {field.name for field in fields(find_method(name))}  # type: ignore[arg-type]
    return not names.isdisjoint(REGIONS)


def heads_of(text: str, model: Any, top: int | None = None) -> Heads:
    """Read heads: ``all``, pairs such as ``18.6,23.2`` (or ``L18H6``; ``5.*`` is a layer, ``8-20.*`` are
    some), or a file: a head set, or scores.

    Parameters
    ----------
    top
        Of a file: the best ``top`` heads; by default the whole set, or those that the scores select.

    Raises
    ------
    RequestError
        If a file is of another model, or its scores select no head and ``top`` is not given.
    """
    text = text.strip()
    if text.lower() == "all":
        return "all"
    parts = [part for part in re.split(r"[,\s]+", text) if part]
    found = [_PAIR.fullmatch(part) for part in parts]
    if parts and all(found):
        return _pairs([match.groups() for match in found if match], model)
    if Path(text).suffix not in (".parquet", ".json", ".csv"):
        raise RequestError(f"--heads {text!r} is neither 'all', nor heads such as 18.6,23.2, nor a file of heads.")
    from headscope.probes.head_sets import read_heads

    return read_heads(text, model, top)


def read(text: str, kind: Any, where: str) -> Any:
    """Read ``text`` as a value of a type: number, text, choice, or several of those separated by commas.

    Raises
    ------
    RequestError
        If it is none.
    """
    try:
        return _value(text.strip(), kind)
    except ValueError:
        raise RequestError(f"{where}: {text!r} is not {_shown(kind)}.") from None


def _regions(method: Any, known: dict[str, Any], kinds: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Return the fields that names of regions go to."""
    values: dict[str, Any] = {name: name for name in names if name in known and name in PLACES}
    rest = [name for name in names if name not in values]
    home = next((name for name in REGIONS if name in known and name not in values), None)
    if rest and home is not None:
        values[home] = ",".join(rest)
    return {key: read(text, kinds[key], f"{method.__name__}: {key}") for key, text in values.items()}


def _ablation(method: Any, values: dict[str, Any], model: Any) -> Method:
    """Return an ablation: masks alone have a region, and what replaces an output is read off generated texts."""
    mode = values.get("mode", "zero")
    if mode != "mask":
        values.pop("region", None)
    if mode not in ("mean", "resample"):
        return method(**values)  # type: ignore[no-any-return]
    from headscope.data import texts

    length = min(REFERENCE_TOKENS, int(model.spec.n_ctx or REFERENCE_TOKENS))
    prompts = [sample.prompt(model) for sample in texts(model, n=REFERENCES, length=length)]
    return method.fit(model, prompts, **values)  # type: ignore[no-any-return]


def _pairs(groups: Sequence[Sequence[Any]], model: Any) -> tuple[tuple[int, int], ...]:
    sites = model.sites.stack(None)
    pairs: list[tuple[int, int]] = []
    for first, last, head in groups:
        for layer in range(int(first), int(last or first) + 1):
            model.sites.check_heads(((layer, 0 if head == "*" else int(head)),))
            pairs += [(layer, h) for h in range(sites[layer].heads)] if head == "*" else [(layer, int(head))]
    return tuple(dict.fromkeys(pairs))


def required(field: Any) -> bool:
    """Whether a field of a dataclass has no default."""
    return field.default is MISSING and field.default_factory is MISSING


def kinds_of(method: type) -> dict[str, Any]:
    """Return the type of each field of a method; Any where it cannot be worked out."""
    kinds: dict[str, Any] = {}
    for owner in reversed(method.__mro__):
        names = {**vars(typing), **vars(sys.modules[owner.__module__])}
        for key, written in vars(owner).get("__annotations__", {}).items():
            try:
                # Annotations are text of our own source; names under TYPE_CHECKING are not there to look up.
                kinds[key] = eval(written, names) if isinstance(written, str) else written
            except (NameError, TypeError):
                kinds[key] = Any
    return kinds


def _value(text: str, kind: Any) -> Any:
    origin, options = get_origin(kind), get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _first(text, sorted(options, key=lambda option: _rank(option, "," in text)))
    if kind is type(None):
        return _matched(text.lower() == "none", None)
    if origin is Literal:
        return _matched(text in map(str, options), next((x for x in options if str(x) == text), None))
    if origin in (tuple, list) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        inner = [option for option in options if option is not Ellipsis] or [Any]
        parts = [part for part in text.split(",") if part]
        if get_origin(inner[0]) is tuple:  # pairs, such as 3.17
            parts = [part.replace(".", ",") for part in parts]
        if inner == [int]:
            parts = [str(n) for part in parts for n in _range(part)]
        return tuple(_value(part.strip(), inner[min(i, len(inner) - 1)]) for i, part in enumerate(parts))
    if kind is bool:
        return _matched(text.lower() in ("true", "false", "yes", "no"), text.lower() in ("true", "yes"))
    if kind in (int, float):
        return kind(text)
    if kind is str:
        return text
    return _first(text, (type(None), int, float, str))


def _first(text: str, kinds: Iterable[Any]) -> Any:
    for kind in kinds:
        try:
            return _value(text, kind)
        except ValueError:
            continue
    raise ValueError(text)


def _rank(kind: Any, comma: bool) -> int:
    """Narrow types first: what reads as a number is one, and only a comma makes several."""
    order = [type(None), bool, int, float]
    if kind in order:
        return order.index(kind)
    return 4 if get_origin(kind) is Literal else 6 if kind is str else 5 if comma else 7


def _matched(fits: bool, value: Any) -> Any:
    if not fits:
        raise ValueError(value)
    return value


def _range(text: str) -> range:
    """Read ``2-5`` as 2, 3, 4, 5."""
    first, dash, last = text.strip().partition("-")
    return range(int(first), int(last or first) + 1) if dash else range(int(text), int(text) + 1)


def _shown(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(_shown(option) for option in get_args(kind))
    names = {int: "a whole number", float: "a number", bool: "true or false", type(None): "none", str: "text"}
    if get_origin(kind) is tuple:
        return f"a list, separated by commas, of {_shown(get_args(kind)[0])}"
    return names.get(kind, f"a {getattr(kind, '__name__', kind)}")
