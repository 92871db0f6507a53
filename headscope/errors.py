"""Every error that headscope raises on purpose.

A message says what is wrong, where, and what to do about it. The command line prints the message
without a traceback and exits with ``exit_code``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HeadscopeError(Exception):
    """Base class of all deliberate errors."""

    exit_code = 1


class ModelError(HeadscopeError):
    """A model cannot be found, read, trusted or served."""


class WeightsError(ModelError):
    """Weights are truncated, tampered with, pickled, or not finite."""


class UnsupportedError(ModelError):
    """The model's architecture cannot give what was asked; the message names the part."""


class PromptError(HeadscopeError):
    """A prompt or one of its regions is missing, ambiguous, lost or too long."""


class RequestError(HeadscopeError):
    """A capture request does not fit the model or the prompt."""


class MemoryBudgetError(RequestError):
    """A request would need more memory than there is; the message names a cheaper one."""


class DataError(HeadscopeError):
    """A data set is empty, unreadable or of the wrong kind."""


class CheckpointError(HeadscopeError):
    """A stored shard or run folder is corrupt or belongs to another run."""


class OutputError(HeadscopeError):
    """Results cannot be written where they were asked for."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``' Did you mean …?'`` for the closest known names, or the list of them all."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f" Did you mean {' or '.join(map(repr, close))}?"
    return f" Known: {', '.join(names)}." if names else ""
