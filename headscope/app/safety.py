"""Who may ask, and what a page may do: hosts, token, content security policy.

The server runs models and reads files for whoever it answers, so a web page that the user happens to visit must not
reach it either: requests are answered under the server's own names only (no DNS rebinding), and changing ones only
from its own pages (no cross-site request).
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from flask import Flask, Response, make_response, redirect, request

from headscope.app.settings import Settings

COOKIE = "headscope-token"
LOGIN = "/login"
_YEAR = 365 * 24 * 3600

_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>headscope</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="stylesheet" href="/view/palette.css">
<link rel="stylesheet" href="/assets/login.css"></head><body class="login"><main><h1>headscope</h1>
<form method="post" action="/login"><label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<button>Open</button></form><p role="alert">{said}</p>
<p>The one who started the server with <code>--token</code> knows it.</p></main></body></html>"""


def protect(server: Flask, settings: Settings, hashes: Callable[[], Sequence[str]]) -> None:
    """Guard every route of ``server``.

    Parameters
    ----------
    hashes
        Returns the hashes of the inline scripts that the pages consist of.
    """
    server.config["MAX_CONTENT_LENGTH"] = 2 * settings.upload_bytes
    policy: list[str] = []

    @server.before_request
    def admit() -> Response | None:
        if not _own_name(settings):
            return _refuse("This server does not answer under that name. Open it as it was printed in the terminal.")
        if request.method not in ("GET", "HEAD", "OPTIONS") and not _own_page():
            return _refuse("That request came from another site.")
        if settings.token is None or _known(settings.token, request.cookies.get(COOKIE)):
            return None
        if request.path in ("/view/palette.css", "/assets/login.css"):
            return None
        return _introduce(settings.token)

    @server.after_request
    def seal(response: Response) -> Response:
        if not policy:
            policy.append(_policy(hashes()))
        response.headers["Content-Security-Policy"] = policy[0]
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["X-Frame-Options"] = "DENY"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cross-Origin-Opener-Policy"] = "same-origin"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        return response


def _policy(hashes: Sequence[str]) -> str:
    scripts = " ".join(["'self'", *hashes])
    return (
        f"default-src 'none'; script-src {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
        "font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    )


def _own_name(settings: Settings) -> bool:
    """Whether the request names this server; behind another name it is another site's page that asks."""
    name = urlsplit(f"//{request.host}").hostname or ""
    if not settings.local:
        return True  # reached under whatever name the network has for it: the token is what counts
    return name in ("localhost", "127.0.0.1", "::1", settings.host)


def _own_page() -> bool:
    """Whether a browser that says where a request comes from says: from here. Scripts say nothing."""
    if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = request.headers.get("Origin")
    return origin is None or urlsplit(origin).netloc == request.host


def _known(token: str, given: str | None) -> bool:
    return given is not None and hmac.compare_digest(given.encode(), token.encode())


def _introduce(token: str) -> Response:
    """Take the token from the address or the form, or ask for it."""
    given = request.form.get("token") if request.method == "POST" else request.args.get("token")
    if _known(token, given):
        # The address is left at once: tokens in it would stay in the history.
        answer = make_response(redirect("/" if request.path == LOGIN else request.path))
        answer.set_cookie(COOKIE, token, max_age=_YEAR, httponly=True, samesite="Strict", secure=request.is_secure)
        return answer
    if request.path.startswith(("/api", "/_dash")):
        return _refuse("This server wants its token: reload the page.", 401)
    said = "That is not the token." if given is not None else ""
    return make_response(_PAGE.format(said=said), 401)


def _refuse(why: str, status: int = 403) -> Response:
    answer = make_response({"error": why}, status)
    answer.headers["Cache-Control"] = "no-store"
    return answer
