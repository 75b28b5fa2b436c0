"""A real browser with a real clock: virtual time draws a frame now and then only, and scrolling is told with frames."""

import json
import os
import re
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest


SCRIPTS = Path(__file__).parent  # what a visitor does, in JavaScript
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync "
    "--no-first-run --disable-quic --disable-dev-shm-usage --window-size=1280,900 --remote-debugging-pipe"
).split()
RESULT = "document.getElementById('result')?.textContent ?? null"
SEEN = "JSON.stringify(window.seen ?? null)"
PATIENCE_S = 180


class Browser:
    """A browser driven over two pipes by the DevTools protocol."""

    def __init__(self, folder: Path, log: Path) -> None:
        program = next(filter(None, map(shutil.which, BROWSERS)), None)
        if program is None:
            pytest.skip(f"no browser is installed: none of {', '.join(BROWSERS)} is on the PATH")
        commands, self._to = os.pipe()
        self._from, answers = os.pipe()
        # The protocol's pipes are numbers 3 and 4 of the browser, whatever they are here.
        moved = f'exec 3<&{commands} 4>&{answers}; exec "$@"'
        command = ["bash", "-c", moved, "browser", program, *FLAGS, f"--user-data-dir={folder}", f"--log-net-log={log}"]
        command.append("about:blank")  # not its own start page, which asks the network
        self._errors = (folder.parent / "browser.err").open("w+")
        self._process = subprocess.Popen(command, pass_fds=(commands, answers), stderr=self._errors)
        os.close(commands)
        os.close(answers)
        self._buffer, self._calls = b"", 0

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        """Ask it to go, so that its log of the network is complete; then make it."""
        try:
            os.write(self._to, b'{"id": 0, "method": "Browser.close"}\0')
            self._process.wait(timeout=30)
        finally:
            self._process.kill()
            self._process.wait()
            self._errors.close()
            os.close(self._to)
            os.close(self._from)

    def call(self, method: str, session: str | None = None, **params: object) -> dict:
        """The answer to one call."""
        self._calls += 1
        message = {"id": self._calls, "method": method, "params": params}
        os.write(self._to, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        while True:
            answer = self._answer(method)
            if answer.get("id") == self._calls:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _answer(self, method: str) -> dict:
        end = time.monotonic() + PATIENCE_S
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], max(0.0, end - time.monotonic()))
            read = os.read(self._from, 1 << 20) if ready else b""
            if not read:
                self._errors.seek(0)
                pytest.fail(f"the browser did not answer {method}: {self._errors.read()[-2000:]}")
            self._buffer += read
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)


def browse(path: Path, folder: Path, act: str = "act.js") -> tuple[dict, list[str]]:
    """What a script saw in the page, opened from disk, and every address that it asked for."""
    page = path.read_text(encoding="utf8")
    nonce = re.search(r'<script nonce="([^"]+)"', page)[1]
    before, after = (
        f'<script nonce="{nonce}">{(SCRIPTS / name).read_text(encoding="utf8")}</script>' for name in ("watch.js", act)
    )
    page = page.replace("<style>", f"{before}<style>", 1)
    end = page.rindex("</body>")  # the charting library has one, too
    watched = folder / "watched.html"
    watched.write_text(page[:end] + after + page[end:], encoding="utf8")
    log = folder / "net.json"
    with Browser(folder / "profile", log) as browser:
        target = browser.call("Target.createTarget", url=watched.as_uri())["targetId"]
        session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        end_of_patience = time.monotonic() + PATIENCE_S
        while (found := _value(browser, session, RESULT)) is None:
            assert time.monotonic() < end_of_patience, f"the page never finished: {_value(browser, session, SEEN)}"
            time.sleep(0.1)
    return json.loads(found), requested(log)


def _value(browser: Browser, session: str, expression: str) -> str | None:
    return browser.call("Runtime.evaluate", session, expression=expression)["result"].get("value")


def requested(log: Path) -> list[str]:
    """Addresses that a page asked for, from the browser's log of the network; what it asks for itself has no origin."""
    events = []
    for line in log.read_text(errors="replace").splitlines():
        try:
            events.append(json.loads(line.rstrip(",")))
        except ValueError:  # the frame around the events
            continue
    parameters = [event["params"] for event in events if isinstance(event, dict) and "params" in event]
    assert len(parameters) > 10, "the browser logged nothing"
    own = "not an origin"
    return [entry["url"] for entry in parameters if "url" in entry and entry.get("initiator", own) != own]
