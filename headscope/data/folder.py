"""Text that the user gives: all text files of a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from headscope.errors import DataError

SUFFIXES = (".txt", ".md")


@dataclass(frozen=True)
class Document:
    """One text file: its path below the folder, and its text."""

    name: str
    text: str

    @property
    def domain(self) -> str:
        """First folder of the path, or ``"folder"`` for files at the top."""
        return self.name.split("/")[0] if "/" in self.name else "folder"


def read_folder(folder: str | Path) -> list[Document]:
    """Read all ``.txt`` and ``.md`` files below ``folder``, or one file, in the order of their paths.

    Raises
    ------
    DataError
        If there is nothing there, nothing to read in it, or a file is not UTF-8 text.
    """
    root = Path(folder).expanduser()
    if not root.exists():
        raise DataError(f"There is no folder {root}. Give one with {' or '.join(SUFFIXES)} files.")
    try:
        if root.is_file():
            paths, base = [root], root.parent
        else:
            paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
            base = root
        documents = [Document(path.relative_to(base).as_posix(), _read(path)) for path in paths]
    except OSError as error:
        raise DataError(f"Cannot read {error.filename or root}: {error.strerror or error}.") from error
    documents = [document for document in documents if document.text.strip()]
    if not documents:
        raise DataError(f"{root} holds no text: put {' or '.join(SUFFIXES)} files in UTF-8 there.")
    return documents


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text (byte {error.start} is {error.object[error.start]:#04x}). "
            "Convert it, or take it out of the folder."
        ) from error
