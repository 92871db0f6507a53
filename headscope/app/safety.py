"""Who may ask, and what a page may do: hosts, token, content security policy.

The server runs models and reads files for whoever it answers, so a web page that the user happens to visit must not
reach it either: requests are answered under the server's own names only (no DNS rebinding), and changing ones only
from its own pages (no cross-site request).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence
from urllib.parse import urlencode, urlsplit

from flask import Flask, Response, make_response, redirect, request

from headscope.app.settings import Settings

LOGIN = "/login"
OPEN = ("/view/palette.css", "/assets/login.css", "/assets/favicon.svg")
"""What the login page is made of; it is the same for everybody and tells nothing."""

_YEAR = 365 * 24 * 3600

_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>headscope</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="stylesheet" href="/view/palette.css">
<link rel="stylesheet" href="/assets/login.css"><link rel="icon" href="/assets/favicon.svg">
<meta name="robots" content="noindex"></head><body class="login"><main><h1>headscope</h1>
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
    # Files travel as base64, and with other values of the page.
    most = server.config["MAX_CONTENT_LENGTH"] = 2 * settings.upload_bytes
    policy: list[str] = []

    @server.before_request
    def admit() -> Response | None:
        if not _own_name(settings):
            return _refuse("This server does not answer under that name. Open it as it was printed in the terminal.")
        if not _own_page():
            return _refuse("That request came from another site.")
        if (request.content_length or 0) > most:
            return _refuse(f"That is more than the {most / 1e6:.1f} MB that this server takes.", 413)
        if settings.token is None or request.path in OPEN:
            return None
        return _identify(settings.token)

    @server.after_request
    def seal(response: Response) -> Response:
        if not policy:
            policy.append(_policy(hashes()))
        response.headers["Content-Security-Policy"] = policy[0]
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["X-Frame-Options"] = "DENY"
        # Not "no-referrer": with it the login form would be sent from the origin "null".
        response.headers["Referrer-Policy"] = "same-origin"
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
    if not settings.local:
        return True  # reached under whatever name the network has for it: the token is what counts
    try:
        name = urlsplit(f"//{request.host}").hostname or ""
    except ValueError:
        return False
    return name in ("localhost", "127.0.0.1", "::1", settings.host)


def _own_page() -> bool:
    """Whether a browser that says where a request comes from says: from here. Scripts say nothing.

    Other sites may link to a page, which changes nothing here and tells them nothing. They may not send anything,
    nor have a page of theirs ask for data or pictures.
    """
    reads = request.method in ("GET", "HEAD")
    told = request.headers.get
    if told("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
        return reads and told("Sec-Fetch-Mode") == "navigate" and told("Sec-Fetch-Dest", "document") == "document"
    origin = told("Origin")
    try:
        return reads or origin is None or urlsplit(origin).netloc == request.host
    except ValueError:
        return False


def cookie_of(token: str) -> tuple[str, str]:
    """Return name and value of the cookie that stands for a token.

    The value does not give the token away. The name differs from that of another server on the same machine, whose
    port makes no difference to a browser's cookies.
    """
    derived = [hmac.new(token.encode(), part, hashlib.sha256).hexdigest() for part in (b"name", b"value")]
    return f"headscope-{derived[0][:8]}", derived[1]


def _equal(given: str | None, right: str) -> bool:
    # surrogatepass: what is no text must be refused like any other wrong token.
    return given is not None and hmac.compare_digest(given.encode("utf-8", "surrogatepass"), right.encode())


def _identify(token: str) -> Response | None:
    """Let those in who show the cookie; take the token from the address or the form, or ask for it."""
    name, value = cookie_of(token)
    known = _equal(request.cookies.get(name), value)
    form = request.method == "POST" and request.path == LOGIN
    given = request.form.get("token") if form else request.args.get("token")
    if known and given is None and request.path != LOGIN:
        return None
    if known or _equal(given, token):
        # The address is left at once: a token in it would stay in the history.
        rest = urlencode([pair for pair in request.args.items(multi=True) if pair[0] != "token"])
        path = "/" if request.path == LOGIN else "/" + request.path.lstrip("/\\")
        answer = make_response(redirect(f"{path}?{rest}" if rest else path, 303))
        answer.set_cookie(name, value, max_age=_YEAR, httponly=True, samesite="Lax", secure=request.is_secure)
        answer.headers["Cache-Control"] = "no-store"
        return answer
    if request.path.startswith(("/api", "/_dash")):
        return _refuse("This server wants its token: reload the page.", 401)
    answer = make_response(_PAGE.format(said="That is not the token." if given is not None else ""), 401)
    answer.headers["Cache-Control"] = "no-store"
    return answer


def _refuse(why: str, status: int = 403) -> Response:
    answer = make_response({"error": why}, status)
    answer.headers["Cache-Control"] = "no-store"
    return answer
