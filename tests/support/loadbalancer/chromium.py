"""A real headless Chromium, spoken to over two pipes (--remote-debugging-pipe): messages end with NUL.

It speaks only to the page that it is shown; its profile is a folder of the test's.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

from tests.support.eventually import eventually

PROGRAM = shutil.which("chromium")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
)  # fmt: skip
PATIENCE = 20.0


class Browser:
    def __init__(self, profile: Path) -> None:
        assert PROGRAM is not None
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        self._partial = b""
        self._calls = 0
        self.exceptions: list[str] = []  # of scripts, and what the page's policy refused

        # The protocol's descriptors are 3 and 4; a shell puts them there, whatever numbers they have here.
        line = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", line, PROGRAM, *QUIET, f"--user-data-dir={profile}", "--remote-debugging-pipe"],
            pass_fds=(theirs_in, theirs_out), start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._session = ""

    def open(self, url: str) -> None:
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Page"):
            self._call(f"{domain}.enable")
        self._call("Page.navigate", url=url)

    def evaluate(self, script: str) -> Any:
        found = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script: str) -> Any:
        """Until it is true in the page."""
        return eventually(lambda: self.evaluate(script), lambda: f"{script}\n{self.text()}", PATIENCE)

    def text(self) -> str:
        return str(self.evaluate("document.body.innerText"))

    def picture(self) -> bytes:
        """PNG of what is to be seen."""
        return base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"])

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)
        os.close(self._out)
        os.close(self._in)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._calls += 1
        message: dict[str, Any] = {"id": self._calls, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            heard = self._hear()
            if heard.get("id") == self._calls:
                assert "error" not in heard, heard
                result: dict[str, Any] = heard["result"]
                return result
            self._note(heard)

    def _note(self, event: dict[str, Any]) -> None:
        if event["method"] == "Runtime.exceptionThrown":
            self.exceptions.append(str(event["params"]["exceptionDetails"]))
        elif event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
            self.exceptions.append(event["params"]["entry"]["text"])

    def _hear(self) -> dict[str, Any]:
        while b"\0" not in self._partial:
            assert select.select([self._in], [], [], PATIENCE)[0], "Chromium says nothing"
            piece = os.read(self._in, 1 << 16)
            assert piece, "Chromium has ended"
            self._partial += piece
        message, _, self._partial = self._partial.partition(b"\0")
        heard: dict[str, Any] = json.loads(message)
        return heard
