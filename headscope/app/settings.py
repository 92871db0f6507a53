"""What the application is started with, as data, and the checks that come before anything is loaded."""

from __future__ import annotations

import ipaddress
import secrets
from dataclasses import dataclass
from pathlib import Path

from headscope.errors import RequestError

SHORTEST_TOKEN, FEWEST_CHARACTERS = 16, 6
"""Length, and different characters: what can be tried out over a network must not be easy to guess."""


@dataclass(frozen=True)
class Settings:
    """How one application runs.

    Parameters
    ----------
    model
        The model that pages begin with.
    allowed
        Further models that a page may load, beside ``model`` and the fetched ones that packages carry.
    any_model
        Let pages load whatever they name. For your own machine only: a model is a large download.
    workspace
        The one folder that pages read and write.
    host, port
        Where to listen; port 0 takes a free one.
    token
        What a browser must show first. Needed wherever others can reach ``host``.
    device, dtype, revision
        As for ``headscope.load``.
    cache_bytes
        Most memory of runs that are kept; those used least recently leave first.
    models_kept
        Models that stay loaded.
    upload_bytes
        Largest file, and largest text, that a page takes.
    """

    model: str = "smollm2-135m"
    allowed: tuple[str, ...] = ()
    any_model: bool = False
    workspace: Path = Path("runs")
    host: str = "127.0.0.1"
    port: int = 8321
    token: str | None = None
    device: str | None = None
    dtype: str = "float32"
    revision: str | None = None
    cache_bytes: int = 4 << 30
    models_kept: int = 2
    upload_bytes: int = 4 << 20

    def __post_init__(self) -> None:
        if not self.local and self.token is None:
            raise RequestError(
                f"--host {self.host} can be reached from other machines: give --token (of {SHORTEST_TOKEN} characters "
                f"or more, such as {secrets.token_urlsafe(18)}), or leave --host out to serve this machine alone."
            )
        if self.token is not None:
            _check_token(self.token)
        if not 0 <= self.port < 1 << 16:
            raise RequestError(f"--port {self.port}: a port is a number from 0 to {(1 << 16) - 1}.")

    @property
    def local(self) -> bool:
        """Whether nobody but this machine can reach the host."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def _check_token(token: str) -> None:
    # The token itself stays out of the message: it may end up in a log.
    if len(token) < SHORTEST_TOKEN or len(set(token)) < FEWEST_CHARACTERS:
        raise RequestError(
            f"--token has {len(token)} characters, {len(set(token))} of them different: give {SHORTEST_TOKEN} or more, "
            f"such as {secrets.token_urlsafe(18)}."
        )
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise RequestError("--token: use letters, digits and signs of ASCII, without spaces.")
