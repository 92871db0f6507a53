"""The harness itself notices what it is there to notice."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.app.harness import start

pytestmark = pytest.mark.slow


def test_opens_a_page_and_finds_nothing_amiss(page: Any, tiny: Any, axe: Any, shoot: Any) -> None:
    page.goto(tiny.url)
    page.wait_for_selector(".page")
    axe(page)
    assert shoot(page, "harness").stat().st_size > 1000


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("console.error('something broke')", "something broke"),
        ("setTimeout(() => { throw new Error('thrown later') })", "thrown later"),
        ("fetch('/api/run/none/meta').then(() => 0)", "status 410"),
        ("fetch('http://127.0.0.1:9/elsewhere').catch(() => 0)", "policy"),
        ("document.head.append(Object.assign(document.createElement('script'), {text: 'window.x = 1'}))", "policy"),
        ("document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:9/x.png'}))", "policy"),
    ],
)
def test_trouble_is_noticed(new_page: Any, tiny: Any, script: str, said: str) -> None:
    page = new_page()
    page.goto(f"{tiny.url}?of={abs(hash(script))}")
    page.wait_for_selector(".page")
    page.evaluate(f"() => {{ {script} }}")
    page.wait_for_timeout(300)
    with pytest.raises(AssertionError, match=said):
        page.watch.check()
    page.watch.trouble.clear()


def test_requests_to_anybody_else_are_noticed_without_a_policy_too(new_page: Any, tiny: Any) -> None:
    page = new_page(bypass_csp=True)
    page.goto(tiny.url)
    page.evaluate("fetch('http://127.0.0.1:9/elsewhere').catch(() => 0)")
    with pytest.raises(AssertionError, match="other origin"):
        page.watch.check()
    page.watch.trouble.clear()


def test_what_keeps_people_out_is_found(page: Any, tiny: Any, axe: Any) -> None:
    page.goto(tiny.url)
    page.wait_for_selector(".page")
    page.evaluate("document.querySelector('.page').insertAdjacentHTML('beforeend', '<input><img src=\"data:,\">')")
    with pytest.raises(AssertionError, match="image-alt"):
        axe(page)
    page.watch.trouble.clear()


def test_the_real_command_starts_answers_and_ends(page: Any, server: Any) -> None:
    page.goto(server.url)
    page.wait_for_selector(".page")
    assert server.process.poll() is None


@pytest.mark.skipif(
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN, reason="Ctrl-C is ignored here, and is inherited"
)
def test_it_ends_on_ctrl_c(tiny_folder: Path, tmp_path: Path) -> None:
    with start(tmp_path, model=str(tiny_folder)) as started:
        started.process.send_signal(signal.SIGINT)
        started.process.wait(20)
    assert started.process.returncode == 0
