"""What every HTML file has in common: nothing is loaded, and only its own scripts run."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from typing import Any


def policy(scripts: Iterable[str]) -> str:
    """Return the content security policy of a page: its own scripts, and nothing else."""
    hashes = " ".join(f"'sha256-{sha256(text)}'" for text in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def sha256(text: str) -> str:
    """Return the SHA-256 of a script, as a policy names it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def safe_script(text: str) -> str:
    """Return a script as a script element holds it."""
    # A parser of HTML reads CRLF as LF; the hash must be of what it reads.
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("</script", "<\\/script")


def safe_json(value: Any) -> str:
    """Return JSON that a script element may hold, whatever is in it."""
    return escape(json.dumps(value, ensure_ascii=True))


def escape(text: str) -> str:
    """Return JSON text without what would end the element around it."""
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
