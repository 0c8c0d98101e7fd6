"""What a person sees of `twofold`, on standard error: start-up, notes, verdicts, failures.

Standard output stays free for the log records.  On a terminal, rich draws the start-up; everywhere
else, and for everything after the start, a line is a line of the operational log, which never
blocks: a stuck terminal must not stop the supervisor.  Formatting is pure; `rich` is imported only
for a terminal.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO
from urllib.parse import urlsplit

from twofold.errors import TRACEBACK, ExitCode, TwofoldError, raised
from twofold.logs.console import say
from twofold.server.machine.capacity import many
from twofold.server.supervision.events import (
    Event,
    ForkServerStarted,
    InstanceReady,
    Note,
    ReplicaChanged,
    Stopping,
)  # fmt: skip

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from twofold.server.artifact.diagnostics import Diagnostic

STYLES = {"ok": "green", "note": "dim", "warning": "yellow", "error": "bold red"}
LEVELS = {"dead": "warning"}  # of a replica's state
REPLICA_STYLES = {"loading": "dim", "ready": "green", "spare": "green", "dead": "bold red"}
PLAIN_STEPS = 4  # lines about one unpacking where no bar can be drawn
SHORT_WORK = 1_000_000  # bytes that take no time worth a line
MAX_INLINE = 200  # characters of a request that are shown in a command
WIDTH = 18  # of a diagnostic's subject
MARGIN = " " * (WIDTH + 10)  # of what stands below a diagnostic's first line
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}


def replica_line(event: ReplicaChanged) -> str:
    """One replica's change of state."""
    text = f"replica {event.index} {event.state}"
    if event.state in ("ready", "spare"):
        return f"{text}: loaded in {event.load_s:.2f} s, {event.memory_mb:.0f} MB"
    reason = str(TwofoldError(event.reason))  # of a traceback, what was raised
    again = event.state == "loading"  # it has been said when the last one died
    return f"{text}: {reason}" if reason and not again else text


def curl(url: str, sample: str, text: str = "") -> str:
    """A command that calls predict at `url`, to be pasted into a shell.

    `sample` is the path of a request, or empty; `text` its content where that file is not the user's.
    """
    host = urlsplit(url).netloc.rpartition(":")[0]
    target = url.replace(host, ANY_ADDRESS.get(host, host), 1) + "/predict"
    json = not sample or sample.lower().endswith(".json")
    kind = "application/json" if json else "application/octet-stream"
    text = text.strip()
    if text and len(text) <= MAX_INLINE and text.isprintable():
        data = shlex.quote(text)
    else:
        data = shlex.quote(f"@{_short(sample)}") if sample else "'[[1, 2, 3]]'"
    return f"curl -H 'content-type: {kind}' --data-binary {data} {target}"


def ready_line(event: InstanceReady) -> str:
    """Where it serves, or for an instance inside another server, that it does."""
    what = f"{many(event.replicas, 'replica')} ready in {event.start_s:.2f} s"
    if not urlsplit(event.url).hostname:
        return what
    return f"serving at {event.url} ({what}); try: {_example(event)}"


def _example(event: InstanceReady) -> str:
    return curl(event.url, event.sample, event.sample_text)


def sentence(event: Event) -> str:
    """The event in words; empty when it is not worth a line."""
    if isinstance(event, ReplicaChanged):
        return replica_line(event)
    if isinstance(event, InstanceReady):
        return ready_line(event)
    if isinstance(event, ForkServerStarted):
        return f"model's interpreter: Python {event.python}"
    if isinstance(event, Note):
        return event.message
    if not event.served:
        # What did not start does not stop either, and the reason follows.
        return "" if event.failed else "stopping" if isinstance(event, Stopping) else "stopped"
    if isinstance(event, Stopping):
        return "stopping: requests in flight may finish; a second signal ends them"
    return "stopped"


class Announcer:
    """Shows the supervisor's events, and how an unpacking goes on."""

    def __init__(self, stream: TextIO) -> None:
        self.console: Console | None = _console(stream) if stream.isatty() else None
        self.bar: tuple[Progress, TaskID] | None = None
        self.step = -1

    def __call__(self, event: Event) -> None:
        self.close()
        text = sentence(event)
        if not text:
            return
        state = event.state if isinstance(event, ReplicaChanged) else ""
        if self.console is None:
            say(LEVELS.get(state, "info"), text)
        elif isinstance(event, InstanceReady):
            self._draw_ready(self.console, event)
            self.console = None  # from now on nothing may block
        else:
            style = REPLICA_STYLES.get(state, "") if state else "dim"
            self.console.print(text, style=style, soft_wrap=True)

    def close(self) -> None:
        """Leave the terminal whole, whatever comes next."""
        if self.bar is not None:
            self.bar[0].stop()
            self.bar = None

    def unpacking(self, what: str, done: int, total: int) -> None:
        """Bytes `done` of `total`; a total of 0 is unknown."""
        if total and total < SHORT_WORK:
            return
        if self.console is None:
            step = PLAIN_STEPS * done // total if total else 0
            if step != self.step:
                self.step = step
                say("info", f"{what}: {done / 1e6:.0f} of {total / 1e6:.0f} MB" if total else what)
            return
        if self.bar is None:
            self.bar = _bar(self.console, what)
        progress, task = self.bar
        progress.update(task, description=what, completed=done, total=total or None, refresh=True)
        if total and done >= total:
            self.close()

    def _draw_ready(self, console: Console, event: InstanceReady) -> None:
        console.print(f"serving at {event.url}", style="bold green", end="  ")
        console.print(f"{event.replicas} ready in {event.start_s:.2f} s", style="dim")
        # Not wrapped: it is there to be copied.
        console.print(_example(event), soft_wrap=True)


def verdicts(stream: TextIO) -> Callable[[Diagnostic], None]:
    """A printer of diagnostics, one line each and its remedy below, in columns."""
    console = _console(stream) if stream.isatty() else None

    def show(diagnostic: Diagnostic) -> None:
        message = diagnostic.message.replace("\n", f"\n{MARGIN}")
        line = f"{diagnostic.subject:<{WIDTH}} {message}"
        remedy = f"{MARGIN}-> {diagnostic.remedy}" if diagnostic.remedy else ""
        if console is None:
            print(f"{diagnostic.level:<8} {line}" + f"\n{remedy}".rstrip(), file=stream, flush=True)
            return
        console.print(f"{diagnostic.level:<8}", style=STYLES[diagnostic.level], end=" ")
        console.print(line, soft_wrap=True)
        if remedy:
            console.print(remedy, style="cyan", soft_wrap=True)

    return show


def verdict(code: ExitCode, stream: TextIO) -> None:
    """The last line of a check."""
    fit = code == ExitCode.OK
    text = "fit to serve" if fit else f"not fit to serve: {code.meaning} (exit code {int(code)})"
    if stream.isatty():
        _console(stream).print(text, style="bold green" if fit else "bold red")
    else:
        print(text, file=stream)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], stream: TextIO) -> None:
    """Columns: fitted to a terminal, else one row a line with tabs between, for other programs."""
    if not stream.isatty():
        for row in (heads, *rows):
            print(*row, sep="\t", file=stream)
        return
    from rich.table import Table

    drawn = Table(*heads, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        drawn.add_row(*row)
    _console(stream).print(drawn)


def failure(error: TwofoldError, stream: TextIO) -> None:
    """Why it ends: one line, after the traceback where the message has one.

    What was raised is in that line, and is said twice only where it takes several.
    """
    first, *trace = error.message.strip().splitlines() or [""]
    if first.endswith(TRACEBACK):
        several = raised(trace) + 1 < len(trace)
        trace = [TRACEBACK, *(trace if several else trace[:-1])]
    else:
        trace = trace[:-1]
    if trace:
        print(*trace, sep="\n", file=stream)
    if stream.isatty():
        _console(stream).print(f"twofold: {error}", style="bold red", soft_wrap=True)
    else:
        print(f"twofold: {error}", file=stream)


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    return Console(file=stream, markup=False, highlight=False, emoji=False)


def _bar(console: Console, what: str) -> tuple[Progress, TaskID]:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    text = TextColumn("{task.description}", markup=False)
    # Redrawn by hand: a thread of the bar's own would still be there when the supervisor forks.
    progress = Progress(
        text, BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=console, auto_refresh=False
    )
    progress.start()
    return progress, progress.add_task(what, total=None)


def _short(path: str) -> str:
    """Relative to here, where that is shorter."""
    try:
        relative = str(Path(path).absolute().relative_to(Path.cwd()))
    except ValueError:
        return path
    return relative if len(relative) < len(path) else path


def stderr() -> TextIO:
    """Standard error, or a sink when it was closed before we started."""
    return sys.stderr or Path("/dev/null").open("w")
