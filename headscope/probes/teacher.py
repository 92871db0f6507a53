"""Teacher forcing: needles whose true answer is fed to the model, for models that do not give it themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headscope.errors import DataError
from headscope.files import sha256_text

if TYPE_CHECKING:
    from headscope.attention.requests import Request
    from headscope.probes.base import DataSet


def answer_ids(model: Any, prompt: Any, answer: str) -> list[int]:
    """Tokens of ``answer`` as a continuation of ``prompt``.

    Raises
    ------
    DataError
        If the answer has no token.
    """
    # A model continues text with a word that brings its own space; after markup or a space there is none to add.
    lead = "" if not prompt.text or prompt.text[-1].isspace() or prompt.text.endswith(">") else " "
    ids = [int(i) for i in model.tokenizer.encode(lead + answer, add_special_tokens=False)]
    if not ids:
        raise DataError(f"The answer {answer!r} has no token in {model.name}: there is nothing to force.")
    return ids


@dataclass(frozen=True)
class ForcedSample:
    """A needle sample that is run with its answer forced; everything else is the sample's own."""

    sample: Any
    forced: bool = True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "sample":  # not yet set while unpickled or copied
            raise AttributeError(name)
        return getattr(self.sample, name)

    def forward(self, model: Any, capture: list[Request]) -> Any:
        """Run the model over the prompt and the true answer, step by step."""
        prompt = self.sample.prompt(model)
        return model.trace(prompt, capture=list(capture), teacher=answer_ids(model, prompt, self.sample.answer))


class TeacherForced(Sequence[ForcedSample]):
    """A data set of needles with every answer forced.

    Parameters
    ----------
    data
        Samples of kind ``"needles"``.
    """

    def __init__(self, data: DataSet) -> None:
        self.data = data
        self.name = data.name
        self.parameters: Mapping[str, Any] = {**dict(data.parameters), "teacher": True}

    @property
    def hash(self) -> str:
        """SHA-256 that differs from that of the same needles answered freely."""
        return sha256_text(f"teacher-forced {self.data.hash}")

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Any) -> Any:
        return ForcedSample(self.data[index])
