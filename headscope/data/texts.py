"""Texts of several domains, for what heads do wherever there is text: sinks, dormancy, entropy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, ClassVar

from headscope.data.dataset import DataSet, needs_tokenizer, positive
from headscope.data.documents import DOMAINS, document
from headscope.data.folder import read_folder
from headscope.errors import DataError, nearest


@dataclass(frozen=True)
class TextSample:
    """One document, cut to a number of tokens.

    Attributes
    ----------
    text
        The text that the model reads.
    length
        Tokens of the prompt, those that the tokenizer adds included.
    domain
        What kind of text it is.
    """

    id: str
    source: str
    text: str
    length: int
    domain: str
    factors: dict[str, str | int | float] = field(hash=False)

    kind: ClassVar[str] = "texts"

    def prompt(self, model: Any) -> Any:
        """Return the prompt."""
        return _prompt(model, self.text, self.length)

    def forward(self, model: Any, capture: Sequence[Any]) -> Any:
        """Run the model once over the text."""
        return model.run(self.prompt(model), capture=list(capture), logits=False)


def texts(
    model: Any,
    n: int = 28,
    length: int | None = None,
    seed: int = 0,
    *,
    domains: Sequence[str] | None = None,
    folder: str | Path | None = None,
) -> DataSet[TextSample]:
    """Make documents of several domains, each a source of its own.

    Parameters
    ----------
    n
        Number of documents, shared evenly between the domains.
    length
        Tokens of each; by default 512, or what the context allows.
    domains
        Which of prose, code, dialogue, tables, mathematics, german, french; all by default. With ``folder``, which
        of its subfolders.
    folder
        Folder of ``.txt`` and ``.md`` files to take the documents from in place of generated ones. Each file is a
        source; the domain is the first subfolder. Long files give several documents, which share their source.

    Raises
    ------
    DataError
        If a domain is unknown, the folder has too little text, or ``length`` passes the context.
    """
    needs_tokenizer(model, "texts")
    positive("n", n)
    room = None if model.spec.n_ctx is None else int(model.spec.n_ctx)
    if length is None:
        length = 512 if room is None else min(512, room)
    if room is not None and positive("length", length) > room:
        raise DataError(f"length={length} passes the model's context of {room} tokens.")
    parameters = {"n": n, "length": length, "seed": seed}
    if folder is not None:
        samples = _of_folder(model, n, length, seed, folder, domains)
        return DataSet("texts", samples, {**parameters, "folder": str(folder), "domains": _domains(samples)})
    chosen = list(DOMAINS) if domains is None else list(dict.fromkeys(domains))
    for name in chosen:
        if name not in DOMAINS:
            raise DataError(f"There is no domain {name!r}.{nearest(name, DOMAINS)}")
    if not chosen:
        raise DataError("domains=[] leaves nothing to read. Leave it out to take all.")
    samples = [_generated(model, chosen[i % len(chosen)], i, length, seed) for i in range(n)]
    return DataSet("texts", samples, {**parameters, "domains": _domains(samples)})


def _domains(samples: list[TextSample]) -> list[str]:
    return list(dict.fromkeys(sample.domain for sample in samples))


def _generated(model: Any, domain: str, index: int, length: int, seed: int) -> TextSample:
    blocks = document(domain, Random(f"texts/{seed}/{domain}/{index}"))
    text = ""
    for _ in range(8):
        goal = len(text) + 6 * length
        while len(text) < goal:
            text += next(blocks)
        if (cut := _cut(model, text, length)) is not None:
            name = f"text-{seed}-{index:04d}-{domain}"
            return TextSample(name, name, cut, length, domain, {"length": length, "domain": domain})
    raise DataError(f"The tokenizer makes fewer than {length} tokens of {len(text)} characters of {domain}.")


def _of_folder(
    model: Any, n: int, length: int, seed: int, folder: str | Path, domains: Sequence[str] | None
) -> list[TextSample]:
    documents = read_folder(folder)
    if domains is not None:
        known = sorted({document.domain for document in documents})
        for name in domains:
            if name not in known:
                raise DataError(f"{folder} has no subfolder {name!r} with text.{nearest(name, known)}")
        documents = [document for document in documents if document.domain in domains]
    rests = {document.name: document.text for document in documents}
    order = _interleaved(documents, Random(f"texts/{seed}/folder"))
    samples: list[TextSample] = []
    while len(samples) < n and rests:
        for found in order:
            text = rests.get(found.name, "")
            cut = _cut(model, text, length) if text else None
            if cut is None:
                rests.pop(found.name, None)
                continue
            rests[found.name] = text[len(cut) :].lstrip()
            name = f"text-{seed}-{len(samples):04d}-{found.domain}"
            factors: dict[str, str | int | float] = {"length": length, "domain": found.domain}
            samples.append(TextSample(name, found.name, cut, length, found.domain, factors))
            if len(samples) == n:
                break
    if len(samples) < n:
        raise DataError(
            f"{folder} gives {len(samples)} texts of {length} tokens, asked for {n}. Add text, or lower n or length."
        )
    return samples


def _interleaved(documents: list[Any], rng: Random) -> list[Any]:
    """Documents in random order, one domain after the other in turn."""
    queues: dict[str, list[Any]] = {}
    for found in rng.sample(documents, len(documents)):
        queues.setdefault(found.domain, []).append(found)
    out: list[Any] = []
    while any(queues.values()):
        out.extend(queue.pop() for _, queue in sorted(queues.items()) if queue)
    return out


def _cut(model: Any, text: str, length: int) -> str | None:
    """Return the start of ``text`` that makes ``length`` tokens, or None if there is not as much."""
    prompt = _prompt(model, text[: 48 * length + 100], length)
    # A character that is split into several tokens is never halved, which may cost a few tokens.
    return str(prompt.text) if len(prompt) >= length - 3 else None


def _prompt(model: Any, text: str, length: int) -> Any:
    literal = text.replace("{", "{{").replace("}", "}}")
    return model.prompt(literal, max_length=length, truncate="right")
