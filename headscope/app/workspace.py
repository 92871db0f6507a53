"""The one folder that pages read and write, and nothing outside it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from headscope.errors import RequestError

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
        found = (home / name).resolve()
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
        if path.suffix not in suffixes:
            raise RequestError(f"{name!r} is none of the files that can be opened here: {', '.join(suffixes)}.")
        if not path.is_file():
            raise RequestError(f"There is no file {name!r} in the workspace {self.root}.")
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
        """Return the files with one of the suffixes, newest first; what begins with a dot is left out."""
        home = self.root.resolve()
        found = [path for path in _walk(home / under) if path.suffix in suffixes]
        found.sort(key=lambda path: (-path.stat().st_mtime, str(path)))
        return [str(path.relative_to(home)) for path in found]


def _walk(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.is_symlink():
            continue
        if path.is_dir():
            yield from _walk(path)
        elif path.is_file():
            yield path
