"""locust: repeats one POST against a deployment.  See bench/README.md.

    locust -f bench/locustfile.py --host http://127.0.0.1:8080 --body sample.json --headless -u 50 -t 30s

Options, or the variables in brackets: --body FILE [TWOFOLD_BODY], --path PATH [TWOFOLD_PATH],
--content-type TYPE [TWOFOLD_CONTENT_TYPE], --pause SECONDS [TWOFOLD_PAUSE], --token TEXT [TWOFOLD_TOKEN].
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from locust import FastHttpUser, events, task

DEFAULT_BODY = b"[[5.1, 3.5, 1.4, 0.2]]"


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator,unused-ignore]
def add_options(parser: Any) -> None:
    add = parser.add_argument
    add("--body", env_var="TWOFOLD_BODY", default="", help="file that is sent (default: one row of numbers)")
    add("--path", env_var="TWOFOLD_PATH", default="/predict", help="path, /OCID/predict behind a gateway")
    add("--content-type", env_var="TWOFOLD_CONTENT_TYPE", default="application/json", help="type of the body")
    add("--pause", env_var="TWOFOLD_PAUSE", type=float, default=0.0, help="seconds between a user's requests")
    add("--token", env_var="TWOFOLD_TOKEN", default="", is_secret=True, help="sent as a bearer token")


class Caller(FastHttpUser):  # type: ignore[misc,unused-ignore]  # locust may be missing
    """One client with a connection of its own; anything but 200 counts as a failure."""

    connection_timeout = 10.0
    network_timeout = 70.0  # above the server's own deadline, so that its answer is seen

    def on_start(self) -> None:
        options = self.environment.parsed_options
        self.content = Path(options.body).read_bytes() if options.body else DEFAULT_BODY
        self.headers = {"Content-Type": options.content_type}
        if options.token:
            self.headers["Authorization"] = f"Bearer {options.token}"

    def wait_time(self) -> float:
        return float(self.environment.parsed_options.pause)

    @task
    def predict(self) -> None:
        path = self.environment.parsed_options.path
        sent: Any = self.content  # bytes are sent as they are, although the stub names str and dict only
        with self.client.post(path, data=sent, headers=self.headers, catch_response=True) as answer:
            if answer.status_code != 200:
                answer.failure(f"status {answer.status_code}: {(answer.text or '')[:200]}")
