"""Rankings that a page makes: from the values of a form to files, with progress, cancelled and gone on with.

What was asked for is kept as ``plan.json`` in the folder of the ranking, so that a list can tell which ones are not
finished, whatever ended them, and a reloaded page finds what is at work.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.app.jobs import Cancelled, check
from headscope.commands.ranking import Plan, carry_out
from headscope.errors import RequestError
from headscope.files import canonical_json, sha256_text, write_text

if TYPE_CHECKING:
    from headscope.app.desk import Desk

FOLDER = "rankings"
PLAN = "plan.json"
FORMAT = "headscope.plan/1"
ABLATIONS = ("mean", "zero", "resample", "mask")
MOST = {"n": 5000, "controls": 500, "trials": 500, "seed": 2**31 - 1}
"""Largest values that a page takes: what is beyond them is a slip of the finger."""

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Asked:
    """A ranking that is asked for: which model, what to do, and under which name the files lie."""

    model: str
    plan: Plan
    name: str

    @property
    def folder(self) -> str:
        """Folder inside the workspace."""
        return f"{FOLDER}/{self.name}"

    def save(self, desk: Desk) -> None:
        """Remember in the folder what it is for."""
        document = {"format": FORMAT, "model": self.model, "plan": _document(self.plan)}
        write_text(desk.workspace.path(f"{self.folder}/{PLAN}"), json.dumps(document, indent=1, ensure_ascii=False))

    @classmethod
    def load(cls, path: Path) -> Asked:
        """Read what ``save`` wrote.

        Raises
        ------
        RequestError
            If the file is missing or something else.
        """
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["format"] != FORMAT:
                raise ValueError(f"format is {document['format']!r}")
            plan: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value for name, value in document["plan"].items()
            }
            return cls(str(document["model"]), Plan(**plan), path.parent.name)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RequestError(f"{path} does not say what ranking it is for ({error}). Start it anew.") from error


def asked(desk: Desk, values: Mapping[str, Any]) -> Asked:
    """Return what the values of a form ask for.

    Raises
    ------
    RequestError
        If a value is missing, not a number, or out of bounds.
    ModelError
        If pages may not load the model.
    """
    model = desk.check_model(str(values.get("model") or ""))
    probes = tuple(str(probe) for probe in values.get("probes") or ())
    if not probes:
        raise RequestError("Choose at least one probe.")
    ablation = str(values.get("ablation") or "mean")
    if ablation not in ABLATIONS:
        raise RequestError(f"There is no ablation {ablation!r}. Known: {', '.join(ABLATIONS)}.")
    verify = bool(values.get("verify"))
    plan = Plan(
        probes=probes,
        n=_whole(values.get("n"), "Samples", 1, MOST["n"]),
        lengths=_list(values.get("lengths"), "Context lengths") if "retrieval" in probes else None,
        length=_whole(values.get("length"), "Text length", 8, None),
        teacher=bool(values.get("teacher")) and "retrieval" in probes,
        seed=_whole(values.get("seed"), "Seed", 0, MOST["seed"]) or 0,
        verify=verify,
        ablation=ablation,
        controls=(_whole(values.get("controls"), "Control sets", 1, MOST["controls"]) or 20) if verify else 20,
        k=_list(values.get("k"), "Heads to remove") if verify else None,
        trials=(_whole(values.get("trials"), "Trials", 2, MOST["trials"]) or 8) if verify else 8,
    )
    plan.found()
    name = str(values.get("name") or "").strip() or default_name(model, plan)
    desk.workspace.new(FOLDER, name, "")
    return Asked(model, plan, name)


def default_name(model: str, plan: Plan) -> str:
    """Return a name that the same settings always get, and others do not: starting again goes on with the same run."""
    plain = (
        re.sub(r"[^A-Za-z0-9._-]+", "-", model.replace("\\", "/").rstrip("/").rpartition("/")[2]).strip("-.") or "model"
    )
    probes = plan.probes[0] if len(plan.probes) == 1 else f"{len(plan.probes)} probes"
    return f"{plain[:40]} {probes} {sha256_text(canonical_json([model, _document(plan)]))[:6]}"


def words_of(plan: Plan) -> dict[str, Any]:
    """Return the values of a form that ask for a plan."""

    def joined(numbers: Sequence[int] | None) -> str:
        return ", ".join(map(str, numbers or ()))

    values = {**asdict(plan), "lengths": joined(plan.lengths), "k": joined(plan.k), "probes": list(plan.probes)}
    values.pop("haystack")
    return values


def command_line(asked: Asked, root: Path) -> str:
    """Return the command that makes the same ranking."""
    import shlex

    plan, default = asked.plan, Plan(())
    parts = ["headscope", "rank", *plan.probes, "--model", asked.model]
    for name in ("n", "lengths", "length", "seed"):
        value = getattr(plan, name)
        if value is not None and value != getattr(default, name):
            parts += [f"--{name}", ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    if plan.teacher:
        parts.append("--teacher")
    if not plan.verify:
        parts.append("--no-verify")
    else:
        for name in ("ablation", "controls", "k", "trials"):
            value = getattr(plan, name)
            if value is not None and value != getattr(default, name):
                parts += [f"--{name}", ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    return shlex.join([*parts, "--out", str(root / asked.folder)])


# -- at work ---------------------------------------------------------------------------------------------------------


@dataclass
class Work:
    """A ranking at work: what it does now, how far it is (0 to 1), and what ends it."""

    asked: Asked
    text: str = "Starting"
    share: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event)


class Works:
    """The rankings that are at work in this process, by folder."""

    def __init__(self) -> None:
        self._works: dict[tuple[int, str], Work] = {}
        self._lock = threading.Lock()

    def begin(self, desk: Desk, asked: Asked) -> Work:
        """Register one.

        Raises
        ------
        RequestError
            If one of that name is at work already.
        """
        with self._lock:
            key = id(desk), asked.name
            if key in self._works:
                raise RequestError(f"A ranking called {asked.name!r} is being made already. Wait, or stop it.")
            self._works[key] = work = Work(asked)
            return work

    def end(self, desk: Desk, asked: Asked) -> None:
        """Forget one."""
        with self._lock:
            self._works.pop((id(desk), asked.name), None)

    def of(self, desk: Desk) -> list[Work]:
        """Return those of an application."""
        with self._lock:
            return [work for (owner, _), work in self._works.items() if owner == id(desk)]


WORKS = Works()


def make(desk: Desk, wanted: Asked, tell: Tell, *, fresh: bool = False) -> str:
    """Make a ranking and return the file of the first probe; goes on where an earlier try stopped.

    Raises
    ------
    Cancelled
        If it was stopped; what is finished stays and is used the next time.
    HeadscopeError
        If it cannot be made; a folder of another run is told apart.
    """
    work = WORKS.begin(desk, wanted)
    try:
        wanted.save(desk)
        folder = desk.workspace.path(wanted.folder)

        def moved(text: str, done: int, total: int) -> None:
            work.text, work.share = (f"{text} · {done} of {total}" if total > 1 else text), done / max(total, 1)
            if work.stop.is_set():
                raise Cancelled
            tell(text, done, total)

        @contextlib.contextmanager
        def phase(text: str, counted: bool) -> Iterator[Tell]:
            check()
            moved(text, 0, 1)
            pace = Pace()
            yield lambda task, done, total: moved(f"{_said(text, task)}{pace.left(task, done, total)}", done, total)

        moved(f"Waiting for {wanted.model}", 0, 1)
        with desk.model(wanted.model) as model:
            _, files = carry_out(wanted.plan, model, folder, phase, fresh=fresh)
        first = next(iter(files.values()))
        return str(first.relative_to(desk.workspace.root.resolve()))
    finally:
        WORKS.end(desk, wanted)


class Pace:
    """How long work will still take, from how long it took so far: nothing is claimed before two steps are done."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun: dict[str, tuple[float, int]] = {}

    def left(self, task: str, done: int, total: int) -> str:
        """Return words such as ``", about 2 min left"``, or nothing while they would be a guess."""
        now = self._clock()
        start, before = self._begun.setdefault(task, (now, done))
        made = done - before
        if made < 2 or done >= total:
            return ""
        return f", about {duration((now - start) / made * (total - done))} left"


def duration(seconds: float) -> str:
    """Write a time the way one says it.

    >>> duration(4), duration(47), duration(130), duration(5400)
    ('5 s', '50 s', '2 min', '1.5 h')
    """
    if seconds < 57.5:
        return f"{max(5, 5 * round(seconds / 5))} s"
    return f"{round(seconds / 60)} min" if seconds < 3570 else f"{seconds / 3600:.1f} h"


def unfinished(desk: Desk) -> list[Asked]:
    """Return the rankings that were begun, are not at work, and lack a file; the newest first."""
    busy = {work.asked.name for work in WORKS.of(desk)}
    found = []
    for file in desk.workspace.files(".json", under=FOLDER):
        path = desk.workspace.path(file)
        if path.name != PLAN:
            continue
        try:
            wanted = Asked.load(path)
        except RequestError:
            continue
        if wanted.name not in busy and not all((path.parent / f"{p}.parquet").is_file() for p in wanted.plan.probes):
            found.append(wanted)
    return found


def workload(plan: Plan) -> str:
    """Say how much a plan runs, in samples: how long one takes depends on model, length and machine."""
    kinds = dict.fromkeys(probe.data for probe in plan.found())
    default = {"needles": 60, "texts": 28, "repeats": 24}
    names = {"needles": "long contexts, each answered", "texts": "texts", "repeats": "blocks of repeated tokens"}
    parts = [f"{plan.n or default[kind]} {names[kind]}" for kind in kinds]
    text = f"Runs {' and '.join(parts)} once."
    if plan.verify:
        many = "each probe" if len(plan.found()) > 1 else "the probe"
        count = f"{len(plan.k) * (plan.controls + 1) + 1}" if plan.k else f"{plan.controls + 1} or more"
        text += f" For {many}, {plan.trials} trials are then run under each of {count} removals: most of the time."
    return text


def _said(text: str, task: str) -> str:
    names = {"needles": "long contexts", "repeats": "repeated tokens", "removal": ""}
    task = names.get(task, task)
    return f"{text}: {task}" if task else text


def _document(plan: Plan) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(plan).items()}


def _whole(value: Any, name: str, least: int, most: int | None) -> int | None:
    if value in (None, ""):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if number != number or number != int(number) or number < least or (most is not None and number > most):
        bound = f"from {least} to {most}" if most is not None else f"of {least} or more"
        raise RequestError(f"{name}: {str(value)[:40]!r} is not a whole number {bound}.")
    return int(number)


def _list(value: Any, name: str) -> tuple[int, ...] | None:
    parts = [part for part in re.split(r"[,\s]+", str(value or "")) if part]
    if not parts:
        return None
    if not all(part.isdecimal() and 0 < int(part) < 10**9 for part in parts):
        raise RequestError(f"{name}: {str(value)[:60]!r} is not a list of whole numbers above zero, such as 512, 2048.")
    return tuple(dict.fromkeys(int(part) for part in parts))
