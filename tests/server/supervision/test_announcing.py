"""Who hears that an instance serves may ask it: the news does not come before the fronts have it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from tests.support.instance_process import descendants, free_port, kill

ECHO = Path(__file__).parents[3] / "examples" / "echo"
# The supervisor does nothing else while it announces, so that nothing is made up for meanwhile.
ASKS_AT_ONCE = """
import sys, urllib.request
from twofold.server.cli import display
from twofold.server.supervision.events import InstanceReady
from twofold.__main__ import main

class Asking(display.Announcer):
    def __call__(self, event):
        if isinstance(event, InstanceReady):
            fields = {"content-type": "application/json"}
            request = urllib.request.Request(event.url + "/predict", b"[1]", fields)
            print("answered with", urllib.request.urlopen(request, timeout=10).status, flush=True)
        super().__call__(event)

display.Announcer = Asking
sys.argv[0] = "twofold"
sys.exit(main())
"""


def test_a_request_at_the_moment_of_the_announcement_is_answered(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ASKS_AT_ONCE, "serve", str(ECHO), "--port", str(free_port())]
    command += [
        "--replicas",
        "1",
        "--log-dir",
        str(tmp_path / "logs"),
        "--cache-dir",
        str(tmp_path / "cache"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    below: set[int] = set()
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "answered with 200\n"
        below = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
    finally:
        kill(process.pid)
        for pid in below:
            kill(pid)
        process.communicate(timeout=5)
