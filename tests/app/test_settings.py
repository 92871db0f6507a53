"""Nothing starts that others could reach without a token, or with one that can be guessed."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from headscope.app.settings import Settings
from headscope.errors import RequestError

TOKEN = "correct-horse-battery"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.3.2.1"])
def test_hosts_of_this_machine_need_no_token(host: str) -> None:
    assert Settings(host=host).local


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.7", "", "example.org", "127.1", "::ffff:0.0.0.0", "2130706433"]
)
def test_all_others_need_one(host: str) -> None:
    with pytest.raises(RequestError, match="--token"):
        Settings(host=host)
    assert not Settings(host=host, token=TOKEN).local


@pytest.mark.parametrize(
    "token",
    ["", "short", "a" * 40, "abab" * 10, "with a space in it", "täglich-ein-neuer-täter", "new\nline-in-the-token"],
)
def test_tokens_that_are_easy_to_guess_or_no_header_can_carry_are_refused(token: str) -> None:
    with pytest.raises(RequestError, match="--token") as error:
        Settings(token=token)
    assert not token or token not in str(error.value)


@pytest.mark.parametrize("port", [-1, 65536])
def test_ports_that_are_none_are_refused(port: int) -> None:
    with pytest.raises(RequestError, match="port"):
        Settings(port=port)


def test_the_command_ends_with_one_line_where_a_token_is_missing() -> None:
    from headscope.cli import app

    result = CliRunner().invoke(app, ["app", "--host", "0.0.0.0"], env={"HEADSCOPE_TOKEN": None})
    assert result.exit_code == 1
    assert "can be reached from other machines" in result.output
    assert "Traceback" not in result.output
