"""The one folder that pages read and write, and nothing outside it."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from headscope.errors import RequestError

MOST, DEEPEST = 20_000, 8
"""A workspace may be somebody's home folder by mistake: a list of its files ends all the same."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,79}")


@dataclass(frozen=True)
class Workspace:
    """Files inside ``root``, named by paths relative to it."""

    root: Path

    def path(self, name: str) -> Path:
        """Return where a file lies.

        Raises
        ------
        RequestError
            If the path leads out of the folder, by ``..``, from the root, or over a link.
        """
        if not name or "\x00" in name:
            raise RequestError("A file inside the workspace needs a name.")
        home = self.root.resolve()
        try:
            found = (home / name).resolve()
        except (OSError, RuntimeError, ValueError) as error:  # too long, a link to itself, not a text
            raise RequestError(f"{name!r:.80} is no name of a file.") from error
        if not found.is_relative_to(home) or found == home:
            raise RequestError(f"{name!r} is outside the workspace {self.root}. Copy the file into it.")
        return found

    def existing(self, name: str, suffixes: tuple[str, ...]) -> Path:
        """Return a file that is there and has one of the suffixes.

        Raises
        ------
        RequestError
            If it is outside, missing, or of another kind.
        """
        path = self.path(name)
        hidden = any(part.startswith(".") for part in path.relative_to(self.root.resolve()).parts)
        if path.suffix not in suffixes or hidden:
            raise RequestError(f"{name!r} is none of the files that can be opened here: {', '.join(suffixes)}.")
        try:
            there = path.is_file()
        except (OSError, ValueError):
            there = False
        if not there:
            raise RequestError(f"There is no file {name!r:.200} in the workspace {self.root}.")
        return path

    def new(self, folder: str, name: str, suffix: str) -> Path:
        """Return the path for a file that a user named.

        Raises
        ------
        RequestError
            If the name has anything but letters, digits, spaces, dots, dashes and underscores.
        """
        if not _NAME.fullmatch(name.strip()):
            raise RequestError(f"{name!r} is no name for a file: use up to 80 letters, digits, spaces, . - and _.")
        return self.path(f"{folder}/{name.strip()}{suffix}")

    def files(self, *suffixes: str, under: str = "") -> list[str]:
        """Return the files with one of the suffixes, newest first; what begins with a dot is left out.

        Of a very large or deep folder, the first ``MOST`` files that are met, no deeper than ``DEEPEST`` folders.
        """
        home = self.root.resolve()
        found = []
        for path in itertools.islice(_walk(self.path(under) if under else home, DEEPEST), MOST):
            if path.suffix in suffixes:
                with contextlib.suppress(OSError):  # it may go while we look
                    found.append((-path.stat().st_mtime, str(path.relative_to(home))))
        return [name for _, name in sorted(found)]


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    try:
        inside = sorted(folder.iterdir())
    except OSError:  # it is not there, or not ours to read
        return
    for path in inside:
        if path.name.startswith(".") or path.is_symlink():
            continue
        if path.is_dir():
            if depth:
                yield from _walk(path, depth - 1)
        elif path.is_file():
            yield path
