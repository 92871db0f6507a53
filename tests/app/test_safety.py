"""Who is let in, what other sites can do, and what a page may load."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import logging
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from headscope.app import safety
from tests.app.harness import start

TOKEN = "correct-horse-battery"
HOST = {"Host": "127.0.0.1:8321"}


@pytest.fixture
def client(make_app: Callable[..., Any]) -> Any:
    return make_app()[0].server.test_client()


@pytest.fixture
def guarded(make_app: Callable[..., Any]) -> Any:
    return make_app(host="0.0.0.0", token=TOKEN)[0].server.test_client()


def cookie(client: Any) -> Any:
    return client.get_cookie(safety.cookie_of(TOKEN)[0], domain="localhost")


# -- token ------------------------------------------------------------------------------------------------------------


def test_without_the_token_nothing_is_given_away(guarded: Any) -> None:
    for path in ("/", "/explore", "/login", "/_dash-layout", "/_dash-dependencies", "/api/run/x/meta", "/view/view.js"):
        answer = guarded.get(path)
        assert answer.status_code == 401, path
        assert "react-entry-point" not in answer.text
    assert guarded.post("/_dash-update-component", json={}).status_code == 401
    assert guarded.get("/api/run/x/meta").json == {"error": "This server wants its token: reload the page."}
    assert "no-store" in guarded.get("/").headers["Cache-Control"]


def test_what_the_login_page_is_made_of_is_open_to_all(guarded: Any) -> None:
    page = guarded.get("/").text
    needed = re.findall(r'href="([^"]+)"', page)
    assert set(needed) == set(safety.OPEN)
    assert [guarded.get(name).status_code for name in needed] == [200] * len(needed)
    assert guarded.get("/assets/../api.py").status_code in (401, 404)


def test_the_token_in_the_address_leaves_it_and_the_rest_stays(guarded: Any) -> None:
    answer = guarded.get(f"/explore?run=abc&token={TOKEN}&layer=3&x=%26%3D")
    assert answer.status_code == 303
    assert answer.headers["Location"] == "/explore?run=abc&layer=3&x=%26%3D"
    assert guarded.get("/").status_code == 200
    # Somebody who is known already and follows such a link leaves it too.
    assert guarded.get(f"/?token={TOKEN}").headers["Location"] == "/"
    assert guarded.get("/?token=other").headers["Location"] == "/"


@pytest.mark.parametrize("path", ["//evil.example/", "/\\evil.example/", "///evil.example"])
def test_the_address_is_not_left_for_another_site(guarded: Any, path: str) -> None:
    answer = guarded.get(path, query_string={"token": TOKEN}, base_url="http://localhost")
    assert answer.status_code in (303, 308, 404)
    assert not re.match(r"(https?:)?[/\\]{2}(?!localhost)", answer.headers.get("Location", "/"))


def test_the_form_takes_the_token(guarded: Any) -> None:
    assert guarded.post("/login", data={"token": TOKEN}).headers["Location"] == "/"
    assert guarded.get("/").status_code == 200
    assert guarded.get("/login").headers["Location"] == "/"


@pytest.mark.parametrize("wrong", ["", "x", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "\ud800", "täter" * 5])
def test_wrong_tokens_are_refused(guarded: Any, wrong: str) -> None:
    for answer in (
        guarded.get("/", query_string={"token": wrong.encode("utf-8", "surrogatepass")}),
        guarded.post("/login", data={"token": wrong.encode("utf-8", "surrogatepass")}),
    ):
        assert answer.status_code == 401
        assert "That is not the token." in answer.text
        assert "Set-Cookie" not in answer.headers
    assert guarded.get("/").status_code == 401


def test_the_cookie_is_kept_from_scripts_and_other_sites_and_does_not_tell_the_token(guarded: Any) -> None:
    header = guarded.get(f"/?token={TOKEN}").headers["Set-Cookie"]
    assert "HttpOnly" in header
    assert "SameSite=Lax" in header
    assert TOKEN not in header
    assert len(cookie(guarded).value) == 64


def test_cookies_that_others_made_up_are_refused(guarded: Any) -> None:
    name, value = safety.cookie_of(TOKEN)
    for wrong in ("", TOKEN, value[:-1], value.upper(), hashlib.sha256(TOKEN.encode()).hexdigest(), "ä"):
        guarded.set_cookie(name, wrong)
        assert guarded.get("/").status_code == 401
    guarded.set_cookie(name, value)
    assert guarded.get("/").status_code == 200


def test_two_servers_on_one_machine_have_cookies_of_their_own() -> None:
    assert safety.cookie_of(TOKEN)[0] != safety.cookie_of(TOKEN + "2")[0]


def test_tokens_are_compared_in_constant_time(guarded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[Any, Any]] = []
    original = hmac.compare_digest

    def remember(a: Any, b: Any) -> bool:
        compared.append((a, b))
        return original(a, b)

    monkeypatch.setattr(safety.hmac, "compare_digest", remember)
    guarded.get("/?token=wrong-wrong-wrong-wrong")
    assert (b"wrong-wrong-wrong-wrong", TOKEN.encode()) in compared
    guarded.set_cookie(safety.cookie_of(TOKEN)[0], "wrong")
    guarded.get("/")
    assert (b"wrong", safety.cookie_of(TOKEN)[1].encode()) in compared


def test_the_token_is_in_no_log_and_on_no_page(make_app: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    guarded = make_app(host="0.0.0.0", token=TOKEN)[0].server.test_client()
    said = [guarded.get(f"/?token={TOKEN}"), guarded.post("/login", data={"token": TOKEN})]
    said += [guarded.get(path) for path in ("/", "/_dash-layout", "/_dash-dependencies", "/api/none", "/login")]
    for answer in said:
        assert TOKEN not in answer.text
        assert TOKEN not in str(answer.headers)
    assert TOKEN not in caplog.text


@pytest.mark.slow
def test_the_real_server_does_not_print_the_token(tmp_path: Path, tiny_folder: Path) -> None:
    with start(tmp_path, "--host", "0.0.0.0", "--token", TOKEN, model=str(tiny_folder)) as started:
        port = int(started.url.rstrip("/").rsplit(":", 1)[1])
        for path, status in ((f"/?token={TOKEN}", 303), ("/?token=wrong", 401), ("/api/run/x/meta", 401)):
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("GET", path)
            assert connection.getresponse().status == status
    assert TOKEN not in started.log


# -- other names, other sites -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8321", 200),
        ("localhost:8321", 200),
        ("localhost", 200),
        ("[::1]:8321", 200),
        ("evil.example", 403),
        ("evil.example:8321", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1@evil.example", 403),
        ("evil.example#127.0.0.1", 403),
        ("169.254.169.254", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
def test_a_server_of_this_machine_answers_under_its_own_names_only(client: Any, host: str, status: int) -> None:
    assert client.get("/", headers={"Host": host}).status_code == status
    assert client.get("/api/run/x/meta", headers={"Host": host}).status_code == (410 if status == 200 else status)


CROSS = [
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:9999"},
    {"Origin": "http://[::1"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
]


@pytest.mark.parametrize("headers", CROSS, ids=str)
def test_other_sites_can_change_nothing(client: Any, headers: dict[str, str]) -> None:
    for method in ("post", "put", "patch", "delete"):
        answer = getattr(client, method)("/_dash-update-component", json={}, headers=HOST | headers)
        assert answer.status_code == 403
        assert answer.json == {"error": "That request came from another site."}


@pytest.mark.parametrize("mode", ["no-cors", "cors", "websocket"])
@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_other_sites_cannot_have_a_page_ask_for_data(client: Any, site: str, mode: str) -> None:
    headers = HOST | {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": "image"}
    assert client.get("/api/run/x/meta", headers=headers).status_code == 403
    assert client.get("/assets/favicon.svg", headers=headers).status_code == 403


def test_other_sites_can_link_to_a_page_but_not_frame_it(client: Any) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert client.get("/", headers=HOST | link).status_code == 200
    assert client.get("/", headers=HOST | link | {"Sec-Fetch-Dest": "iframe"}).status_code == 403


def test_its_own_pages_may_ask(client: Any) -> None:
    own = HOST | {"Sec-Fetch-Site": "same-origin", "Origin": "http://127.0.0.1:8321"}
    assert client.post("/_dash-update-component", json={}, headers=own).status_code != 403
    assert client.get("/", headers=HOST | {"Sec-Fetch-Site": "none"}).status_code == 200


# -- what a page may load ---------------------------------------------------------------------------------------------


class Scripts(HTMLParser):
    """All inline scripts, attributes that are scripts, and addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.inline: list[str] = []
        self.handlers: list[str] = []
        self.addresses: list[str] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self._inside = tag == "script" and "src" not in given and given.get("type") != "application/json"
        self.handlers += [name for name in given if name.startswith("on")]
        self.addresses += [str(given[name]) for name in ("src", "href", "action") if name in given]

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.inline.append(data)
            self._inside = False


def policy(answer: Any) -> dict[str, list[str]]:
    parts = (part.split() for part in answer.headers["Content-Security-Policy"].split(";"))
    return {name: values for name, *values in parts}


def test_every_answer_carries_the_policy(client: Any, guarded: Any) -> None:
    answers = [
        client.get("/api/run/x/meta"),  # first: the policy must be whole before any page was asked for
        client.get("/"),
        client.get("/assets/scheme.js"),
        client.get("/assets/none.js"),
        client.get("/view/none"),
        client.get("/", headers={"Host": "evil.example"}),
        client.post("/_dash-update-component", data="{"),
        client.open("/", method="BREW"),
        guarded.get("/"),
        guarded.get(f"/?token={TOKEN}"),
    ]
    for answer in answers:
        found = policy(answer)
        assert found["default-src"] == ["'none'"]
        assert found["frame-ancestors"] == ["'none'"]
        assert found["base-uri"] == ["'none'"]
        assert not {"'unsafe-inline'", "'unsafe-eval'", "*", "http:", "https:", "data:"} & set(found["script-src"])
        assert found["connect-src"] == ["'self'"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "same-origin"
    assert len({answer.headers["Content-Security-Policy"] for answer in answers[:8]}) == 1


def test_inline_scripts_are_those_of_the_policy_and_nothing_comes_from_elsewhere(client: Any) -> None:
    answer = client.get("/")
    page, allowed = Scripts(answer.text), policy(answer)["script-src"]
    assert page.inline
    for script in page.inline:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in allowed
    assert page.handlers == []
    assert len(page.addresses) > 10
    assert [a for a in page.addresses if not a.startswith("/") or a.startswith("//")] == []
    for address in page.addresses:
        assert client.get(address).status_code == 200, address


def test_the_login_page_has_no_script(guarded: Any) -> None:
    page = Scripts(guarded.get("/").text)
    assert page.inline == []
    assert page.handlers == []


def test_large_uploads_are_refused_before_they_are_read(make_app: Callable[..., Any]) -> None:
    app, desk = make_app(upload_bytes=1 << 16)
    client = app.server.test_client()
    limit = 2 * desk.settings.upload_bytes
    for path in ("/_dash-update-component", "/login", "/"):
        answer = client.post(path, data=b"x" * (limit + 1), content_type="application/json")
        assert answer.status_code == 413
    assert client.post("/_dash-update-component", data=b"x" * limit, content_type="application/json").status_code != 413


def test_an_error_that_nobody_foresaw_tells_a_page_its_kind_alone(
    make_app: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app, desk = make_app()

    def broken(run: str) -> Any:
        raise ZeroDivisionError("/home/user/secret")

    monkeypatch.setattr(desk.runs, "tag", broken)
    answer = app.server.test_client().get("/api/run/x/stat/sink")
    assert answer.status_code == 500
    assert answer.json == {"error": "Something went wrong inside the server (ZeroDivisionError)."}
    assert "secret" in caplog.text


@pytest.mark.slow
def test_no_page_asks_anybody_else_for_anything(new_page: Callable[..., Any], tiny: Any) -> None:
    from headscope.app.page import find_pages

    page = new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for known in find_pages():
        page.goto(tiny.url.rstrip("/") + known.path)
        page.wait_for_selector(".page")
        page.wait_for_load_state("networkidle")
    assert len(asked) > 20
    assert [url for url in asked if not url.startswith((tiny.url, "data:", "blob:"))] == []


@pytest.mark.slow
def test_a_browser_logs_in_and_stays_so(new_page: Callable[..., Any], tiny_folder: Path, tmp_path: Path) -> None:
    with start(tmp_path, "--token", TOKEN, model=str(tiny_folder)) as started:
        page = new_page()
        page.watch.expect("401")
        page.goto(started.url)
        page.get_by_label("Token").fill("not the token at all")
        page.get_by_role("button", name="Open").click()
        page.get_by_text("That is not the token.").wait_for()
        page.get_by_label("Token").fill(TOKEN)
        page.get_by_role("button", name="Open").click()
        page.wait_for_selector(".page")
        assert TOKEN not in page.content()
        page.reload()
        page.wait_for_selector(".page")
        page.goto(f"{started.url}?token={TOKEN}")
        page.wait_for_selector(".page")
        assert "token" not in page.url
