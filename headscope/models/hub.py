"""Models from the Hugging Face hub, without ever waiting for a network that is not there."""

from __future__ import annotations

import logging
import threading
from functools import cache
from pathlib import Path

from headscope.errors import ModelError, nearest

log = logging.getLogger(__name__)

PROBE_SECONDS = 4.0
_FILES = ["*.json", "model*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken"]


@cache
def online() -> bool:
    """Tell whether the hub can be reached; asked once per process, answered within seconds.

    ``HF_HUB_OFFLINE=1`` is respected without asking. Name resolution can block for longer than any timeout of a
    connection, so the question is asked in a thread that is left behind if it does not answer.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    answered: list[bool] = []

    def ask() -> None:
        import httpx

        try:
            httpx.head(constants.ENDPOINT, timeout=PROBE_SECONDS, follow_redirects=False)
        except httpx.HTTPError:
            answered.append(False)
        else:
            answered.append(True)

    thread = threading.Thread(target=ask, daemon=True, name="hub-probe")
    thread.start()
    thread.join(PROBE_SECONDS + 1)
    reached = bool(answered and answered[0])
    if not reached:
        log.warning("The Hugging Face hub (%s) cannot be reached: using local copies only.", constants.ENDPOINT)
    return reached


def snapshot(repository: str, revision: str | None = None, *, code: bool = False) -> Path:
    """Return the folder of a hub model: its cached copy, or a new download.

    Parameters
    ----------
    repository
        Hub id, ``"owner/name"`` or one of the old names without owner.
    revision
        Branch, tag or commit.
    code
        Also download the model's own Python files.

    Raises
    ------
    ModelError
        If there is no such model or revision, it needs permission, or it is not cached and the hub cannot be
        reached; the message says what to do.
    """
    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download

    connected = online()
    at = f" at revision {revision}" if revision else ""
    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=_FILES + (["*.py"] if code else []),
                local_files_only=not connected,
                etag_timeout=PROBE_SECONDS,
            )
        )
    except hub.GatedRepoError as error:
        raise ModelError(
            f"{repository} asks for permission: accept its terms on its page on the hub, then log in with "
            "`hf auth login`."
        ) from error
    except hub.RevisionNotFoundError as error:
        raise ModelError(f"{repository} has no revision {revision!r}. See its list of commits on the hub.") from error
    except (hub.RepositoryNotFoundError, hub.HFValidationError) as error:
        raise ModelError(unknown(repository)) from error
    except hub.LocalEntryNotFoundError as error:
        raise ModelError(
            f"{repository}{at} is not on this machine and the Hugging Face hub "
            + ("did not answer" if connected else "cannot be reached (offline)")
            + f". Copy the model's folder here and pass its path, or load a model that a package carries: {_carried()}."
            + _suggestion(repository)
        ) from error
    except (hub.HfHubHTTPError, OSError) as error:
        raise ModelError(f"Cannot download {repository}{at}: {error}. Try again; finished files are kept.") from error


def unknown(name: str) -> str:
    """Say that there is no such model, with the nearest name that there is."""
    from headscope.models.carried import CARRIED

    return (
        f"There is no model {name!r}: not a short name, local folder or GGUF file, nor an id on the hub that you may "
        f"see.{nearest(name, CARRIED)}"
    )


def _carried() -> str:
    from headscope.models.carried import CARRIED

    return ", ".join(CARRIED)


def _suggestion(name: str) -> str:
    from headscope.models.carried import CARRIED

    hint = nearest(name, CARRIED)
    return hint if "Did you mean" in hint else ""
