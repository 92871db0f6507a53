"""Many users at once: ``python -m tests.app.load --seconds 120 --users 20``.

Each user is a thread with one connection that stays open. It opens pages, looks at tiles of all levels, rows, columns
and neurons of a long run, changes heads, and now and then runs a short prompt of its own or cancels one, with pauses as
people make them. Times are those of whole answers, on this machine, with the users on the same processors.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import psutil

from tests.app.harness import start

KINDS = ("page", "meta", "stat", "thumbs", "tile", "row", "column", "neuron", "head change", "run", "cancel")
OFTEN = (4, 4, 6, 4, 24, 24, 8, 8, 12, 3, 1)
"""How often each kind comes, beside the others."""
WORDS = (
    *("the", "harbour", "keeper", "walked", "over", "cold", "stones", "and", "found", "a", "small", "lamp"),
    *("behind", "old", "letters", "nobody", "had", "read"),
)


class Trouble(Exception):
    """Something that must not happen under load."""


class Client:
    """One connection that stays open."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=120)

    def ask(self, path: str, body: Any = None) -> tuple[int, bytes, Any]:
        method = "GET" if body is None else "POST"
        headers = {} if body is None else {"Content-Type": "application/json"}
        for again in (True, False):
            try:
                self.connection.request(method, path, None if body is None else json.dumps(body), headers)
                answer = self.connection.getresponse()
                return answer.status, answer.read(), answer.headers
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                # A server may close a connection that has rested; browsers open another.
                self.connection.close()
                if not again:
                    raise
        raise AssertionError

    def get(self, path: str) -> bytes:
        status, body, _ = self.ask(path)
        if status != 200:
            raise Trouble(f"{status} at {path}: {body[:200]!r}")
        return body


class Work:
    """Background work of the page Explore, asked for as Dash's renderer does."""

    def __init__(self, client: Client) -> None:
        self.client = client
        page = client.get("/explore").decode()
        config = json.loads(page.split('<script id="_dash-config" type="application/json">')[1].split("</script>")[0])
        self.end = config["end_id"]
        known = json.loads(client.get("/_dash-dependencies"))
        self.look = next(
            one for one in known if [i["id"] for i in one["inputs"]] == ["explore-ask"] and one["background"]
        )
        self.stop = next(one for one in known if one["output"] == "explore-look-cancel.id")

    def run(self, asked: dict[str, Any]) -> dict[str, Any]:
        handle = self.begin(asked)
        while True:
            time.sleep(0.25)
            found = self._send(self.look, asked, cacheKey=handle["cacheKey"], job=handle["job"])
            if "response" in found:
                return found["response"]

    def begin(self, asked: dict[str, Any]) -> dict[str, Any]:
        return self._send(self.look, asked)

    def cancel(self, handle: dict[str, Any]) -> None:
        self._send(self.stop, 1, cancelJob=handle["job"])

    def _send(self, what: dict[str, Any], value: Any, **query: str) -> dict[str, Any]:
        names = what["output"].strip(".").split("...")
        outputs = [dict(zip(("id", "property"), name.rsplit(".", 1), strict=True)) for name in names]
        inputs = [{**what["inputs"][0], "value": value}]
        body = {
            "output": what["output"],
            "outputs": outputs if len(outputs) > 1 else outputs[0],
            "inputs": inputs,
            "changedPropIds": [f"{inputs[0]['id']}.{inputs[0]['property']}"],
            "state": [],
        }
        path = f"/_dash-update-component?{urlencode({'endId': self.end, **query})}"
        status, answer, _ = self.client.ask(path, body)
        if status == 204:
            return {"response": {}}
        if status != 200:
            raise Trouble(f"{status} at {path[:60]}: {answer[:300]!r}")
        found: dict[str, Any] = json.loads(answer)
        return found


@dataclass
class Report:
    """What was seen: seconds by kind, errors, and the server's memory in bytes."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: list[str] = field(default_factory=list)
    gone: int = 0
    memory: list[int] = field(default_factory=list)
    before: int = 0
    limit: int = 0
    jobs_left: int = 0
    lasted: float = 0.0

    def table(self) -> str:
        """Return answers and percentiles by kind, in milliseconds."""
        rows = [f"{'kind':<12} {'answers':>8} {'p50':>8} {'p95':>8} {'p99':>8} {'most':>8}   ms"]
        for kind in KINDS:
            times = sorted(self.seconds[kind])
            if times:
                shown = [1000 * times[min(len(times) - 1, int(share * len(times)))] for share in (0.5, 0.95, 0.99, 1)]
                rows.append(f"{kind:<12} {len(times):>8} " + " ".join(f"{value:>8.1f}" for value in shown))
        total = sum(map(len, self.seconds.values()))
        rows.append(f"{total} actions in {self.lasted:.0f} s, {len(self.errors)} errors, {self.gone} runs made again")
        rows.append(
            f"memory of the server: {self.before / 1e6:.0f} MB before, at most {max(self.memory) / 1e6:.0f} MB "
            f"(runs are kept up to {self.limit / 1e6:.0f} MB), {self.memory[-1] / 1e6:.0f} MB at the end"
        )
        return "\n".join(rows)


class User(threading.Thread):
    """One user."""

    def __init__(
        self, number: int, url: str, model: str, text: str, until: float, pause: float, report: Report
    ) -> None:
        super().__init__(name=f"user-{number}")
        self.number, self.model, self.text, self.until, self.pause = number, model, text, until, pause
        self.random = random.Random(number)
        self.report = report
        self.client = Client(url)
        self.work: Work | None = None
        self.run_id = ""
        self.meta: dict[str, Any] = {}

    def run(self) -> None:
        try:
            self.work = Work(self.client)
            self._see(self.text)
            while time.monotonic() < self.until:
                kind = self.random.choices(KINDS, OFTEN)[0]
                self._timed(kind, getattr(self, "_" + kind.replace(" ", "_")))
                time.sleep(self.random.expovariate(1 / self.pause))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the result of the test
            self.report.errors.append(f"{self.name}: {type(error).__name__}: {error}")

    def _timed(self, kind: str, work: Callable[[], Any]) -> None:
        began = time.monotonic()
        try:
            work()
        except Trouble as error:
            if not str(error).startswith("410"):
                raise
            # Others filled the memory; a page asks for the run again.
            self.report.gone += 1
            self._see(self.text)
            return
        self.report.seconds[kind].append(time.monotonic() - began)

    def _see(self, text: str) -> None:
        assert self.work is not None
        recipe = {"model": self.model, "text": text}
        found = self.work.run({"recipe": recipe, "at": time.time()})
        data = found.get("explore-run", {}).get("data")
        if not data:
            raise Trouble(f"no run: {json.dumps(found)[:400]}")
        if text is self.text:
            self.run_id = data["run"]
            self.meta = json.loads(self.client.get(f"/api/run/{self.run_id}/meta"))

    # -- what users do -----------------------------------------------------------------------------------------------

    def _get(self, path: str) -> bytes:
        return self.client.get(f"/api/run/{self.run_id}/{path}")

    def _head(self) -> str:
        layer = self.random.randrange(self.meta["layers"])
        return f"{layer}/{self.random.randrange(self.meta['heads'][layer])}"

    def _token(self) -> int:
        return self.random.randrange(self.meta["length"])

    def _page(self) -> None:
        self.client.get(self.random.choice(("/", "/explore", f"/explore?run={self.run_id}", "/rank")))
        self.client.get("/_dash-layout")
        self.client.get("/_dash-dependencies")

    def _meta(self) -> None:
        self._get("meta")

    def _stat(self) -> None:
        self._get(f"stat/{self.random.choice(self.meta['stats'])['name']}")

    def _thumbs(self) -> None:
        self._get(f"thumbs/{self.random.randrange(self.meta['layers'])}")

    def _tile(self) -> None:
        level = self.random.randrange(self.meta["levels"])
        count = -(-self.meta["length"] // (self.meta["tile"] << level))
        row, col = self.random.randrange(count), self.random.randrange(count)
        body = self._get(f"tile/{self._head()}/{level}/{row}/{col}?reduce={self.random.choice(('max', 'mean'))}")
        if len(body) % 4 or not body:
            raise Trouble(f"a tile of {len(body)} bytes")

    def _row(self) -> None:
        if len(self._get(f"row/{self._head()}/{self._token()}")) != 4 * self.meta["length"]:
            raise Trouble("a row of the wrong length")

    def _column(self) -> None:
        self._get(f"column/{self._head()}/{self._token()}")

    def _neuron(self) -> None:
        query = self._token()
        found = json.loads(self._get(f"neuron/{self._head()}/{query}/{self.random.randrange(query + 1)}"))
        if not found["visible"]:
            raise Trouble("a pair that a causal head sees was called hidden")

    def _head_change(self) -> None:
        head, query = self._head(), self._token()
        self._get(f"tile/{head}/{self.meta['levels'] - 1}/0/0")
        self._get(f"row/{head}/{query}")
        self._get(f"neuron/{head}/{query}/0")

    def _run(self) -> None:
        count = self.random.randrange(10, 60)
        self._see(" ".join(self.random.choices(WORDS, k=count)) + f" {self.random.randrange(10**6)}.")

    def _cancel(self) -> None:
        assert self.work is not None
        text = " ".join(self.random.choices(WORDS, k=400)) + f" {self.random.randrange(10**6)}."
        handle = self.work.begin({"recipe": {"model": self.model, "text": text, "new_tokens": 40}, "at": time.time()})
        time.sleep(self.random.random() * 0.3)
        self.work.cancel(handle)


def prompt(words: int) -> str:
    """Return a text of so many words."""
    chosen = random.Random(0)
    return " ".join(chosen.choices(WORDS, k=words)) + "."


def press(
    url: str, process: int, *, users: int, seconds: float, words: int, pause: float = 0.3, model: str = "smollm2-135m"
) -> Report:
    """Let users loose on a server and return what was seen.

    Parameters
    ----------
    process
        Id of the server's process, whose memory is sampled.
    words
        Length of the prompt that all look at.
    pause
        Mean seconds between two actions of a user.
    """
    watched, report, text = psutil.Process(process), Report(), prompt(words)
    client = Client(url)
    # The long run is made before the clock starts, and memory is measured with it.
    Work(client).run({"recipe": {"model": model, "text": text}, "at": 0})
    report.limit = json.loads(client.get("/api/status"))["limit"]
    report.before = watched.memory_info().rss
    began = time.monotonic()
    crowd = [User(n, url, model, text, began + seconds, pause, report) for n in range(users)]
    for user in crowd:
        user.start()
    while any(user.is_alive() for user in crowd):
        report.memory.append(watched.memory_info().rss)
        time.sleep(0.2)
    report.lasted = time.monotonic() - began
    # What was cancelled notices within a layer or a token.
    for _ in range(100):
        report.jobs_left = json.loads(client.get("/api/status"))["jobs"]
        if not report.jobs_left:
            break
        time.sleep(0.1)
    report.memory.append(watched.memory_info().rss)
    return report


def main() -> int:
    """Run from the command line; 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--words", type=int, default=1800, help="length of the prompt that all look at")
    parser.add_argument("--pause", type=float, default=0.3, help="mean seconds between two actions of a user")
    parser.add_argument("--cache-gb", type=float, default=1.0)
    given = parser.parse_args()
    with ExitStack() as stack:
        workspace = stack.enter_context(tempfile.TemporaryDirectory())
        server = stack.enter_context(start(Path(workspace), "--cache-gb", str(given.cache_gb)))
        report = press(
            server.url,
            server.process.pid,
            users=given.users,
            seconds=min(given.seconds, 3600),
            words=given.words,
            pause=given.pause,
        )
        sys.stdout.write(report.table() + "\n")
    for error in report.errors[:20]:
        sys.stdout.write(f"error: {error}\n")
    return 1 if report.errors or report.jobs_left else 0


if __name__ == "__main__":
    sys.exit(main())
