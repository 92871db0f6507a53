"""Put the application together, and serve it."""

from __future__ import annotations

import logging
import socket
from functools import partial
from importlib.resources import files
from typing import Any

import dash
from dash import Dash
from flask import current_app

from headscope.app.api import blueprint
from headscope.app.components.shell import shell
from headscope.app.desk import Desk
from headscope.app.page import Page, find_pages
from headscope.app.safety import protect
from headscope.app.settings import Settings
from headscope.errors import RequestError

THREADS = 8
"""Requests that are answered at once; long work has threads of its own."""
CONNECTIONS = 512
"""A browser keeps up to six open for each window."""

_INDEX = """<!DOCTYPE html>
<html lang="en">
<head>
{%metas%}
<title>{%title%}</title>
<link rel="icon" type="image/svg+xml" href="/assets/favicon.svg">
{%css%}
<script src="/assets/scheme.js"></script>
</head>
<body>
{%app_entry%}
<footer>
{%config%}
{%scripts%}
{%renderer%}
</footer>
</body>
</html>"""


def create(settings: Settings) -> tuple[Dash, Desk]:
    """Return the application, and the desk that its pages share; nothing is loaded yet."""
    desk = Desk(settings)
    app = Dash(
        "headscope",
        title="headscope",
        update_title="",
        assets_folder=str(files("headscope.app") / "assets"),
        assets_ignore=r"(scheme|login)\..*",
        use_pages=True,
        pages_folder="",
        suppress_callback_exceptions=True,
        background_callback_manager=desk.jobs,
        external_stylesheets=["/view/palette.css", "/view/view.css"],
        external_scripts=["/view/view.js"],
        index_string=_INDEX,
        serve_locally=True,
        add_log_handler=False,
        enable_mcp=False,
        include_pages_meta=False,
    )
    app.server.extensions["headscope"] = desk
    pages = find_pages()
    dash.page_registry.clear()
    for page in pages:
        dash.register_page(
            page.layout.__module__,
            path=page.path,
            name=page.name,
            order=page.order,
            title=page.name if page.path != "/" else "headscope",
            description=page.about,
            layout=partial(_layout, page),
        )
        page.callbacks(app, desk)
    app.layout = partial(shell, desk, pages)
    desk.jobs.seal()
    app.server.register_blueprint(blueprint(desk))
    protect(app.server, settings, app.csp_hashes)
    for chatty in ("werkzeug", "waitress.queue"):  # a request that waits its turn is no event
        logging.getLogger(chatty).setLevel(logging.ERROR)
    return app, desk


def _layout(page: Page, **query: Any) -> Any:
    """Return a page of the application that was asked: Dash's list of pages is one for the whole process."""
    return page.layout(current_app.extensions["headscope"], **query)


class Server:
    """An application that listens; ``url`` is where."""

    def __init__(self, app: Dash, settings: Settings) -> None:
        from waitress import create_server

        # One address: with port 0 the two of "localhost" would get different ports.
        host = "127.0.0.1" if settings.host == "localhost" else settings.host
        self._sockets: dict[int, Any] = {}
        try:
            self._server: Any = create_server(
                app.server,
                map=self._sockets,
                host=host,
                port=settings.port,
                threads=THREADS,
                connection_limit=CONNECTIONS,
                asyncore_use_poll=True,
                ident="headscope",
                clear_untrusted_proxy_headers=True,
                max_request_body_size=2 * settings.upload_bytes,
            )
        except (OSError, ValueError) as error:
            raise RequestError(
                f"Cannot listen on {settings.host}, port {settings.port} "
                f"({getattr(error, 'strerror', None) or error}). Choose another "
                "with --port, or --port 0 for any free one."
            ) from error
        # A name of several addresses has several sockets.
        listen = getattr(self._server, "effective_listen", None)
        port = listen[0][1] if listen else self._server.effective_port
        name = socket.gethostname() if settings.host in ("0.0.0.0", "::") else settings.host
        self.url = f"http://[{name}]:{port}/" if ":" in name else f"http://{name}:{port}/"

    def run(self) -> None:
        """Answer until interrupted, or closed."""
        try:
            self._server.run()
        finally:
            self._server.task_dispatcher.shutdown()

    def close(self) -> None:
        """Listen no more, from another thread; ``run`` returns."""
        from waitress import wasyncore
        from waitress.trigger import trigger

        for found in list(self._sockets.values()):
            if isinstance(found, trigger):
                # Inside the loop: a socket must not vanish while it is waited for.
                found.pull_trigger(lambda: wasyncore.close_all(self._sockets))
                return
