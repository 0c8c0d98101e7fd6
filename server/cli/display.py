"""The messages of `twofold` for the operator, on standard error: start-up, notes, diagnostics, failures.

Touches standard error, and standard output for results; log records go to standard output.  On a terminal,
rich draws the start-up.  After the start, and without a terminal, each line is a line of the operational
log.  That log never blocks, because a blocked terminal must not stop the supervisor.  Formatting is pure;
`rich` is imported only for a terminal.
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
PLAIN_STEPS = 4  # progress lines of one step without a terminal
SHORT_WORK = 1_000_000  # bytes; less work is not shown
MAX_INLINE = 200  # characters of a sample request that are shown in a command
WIDTH = 18  # of a diagnostic's subject
MARGIN = " " * (WIDTH + 10)  # before every line of a diagnostic but the first
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}


def replica_line(event: ReplicaChanged) -> str:
    """The line for a replica's change of state."""
    text = f"replica {event.index} {event.state}"
    if event.state in ("ready", "spare"):
        return f"{text}: loaded in {event.load_s:.2f} s, {event.memory_mb:.0f} MB"
    reason = str(TwofoldError(event.reason))  # of a traceback, the exception
    shown = event.state == "loading"  # the reason was shown when the last process died
    return f"{text}: {reason}" if reason and not shown else text


def curl(url: str, sample: str, text: str = "") -> str:
    """A shell command that posts a request to /predict at `url`.

    `sample`: the path of a sample request, or empty; `text`: its content, if its file comes out of a zip.
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
    """The line for a ready instance; without an address for an instance inside another server."""
    what = f"{many(event.replicas, 'replica')} ready in {event.start_s:.2f} s"
    if not urlsplit(event.url).hostname:
        return what
    return f"serving at {event.url} ({what}); try: {_example(event)}"


def _example(event: InstanceReady) -> str:
    return curl(event.url, event.sample, event.sample_text)


def sentence(event: Event) -> str:
    """The line for an event; empty if the event is not shown."""
    if isinstance(event, ReplicaChanged):
        return replica_line(event)
    if isinstance(event, InstanceReady):
        return ready_line(event)
    if isinstance(event, ForkServerStarted):
        return f"model's interpreter: Python {event.python}"
    if isinstance(event, Note):
        return event.message
    if not event.served:
        # A failed start is shown as a failure, which follows, and not as a stop.
        return "" if event.failed else "stopping" if isinstance(event, Stopping) else "stopped"
    if isinstance(event, Stopping):
        return "stopping: requests in flight may finish; a second signal ends them"
    return "stopped"


class Announcer:
    """Shows the supervisor's events and the progress of unpacking."""

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
            self.console = None  # writing to a terminal may block
        else:
            style = REPLICA_STYLES.get(state, "") if state else "dim"
            self.console.print(text, style=style, soft_wrap=True)

    def close(self) -> None:
        """Remove the progress bar."""
        if self.bar is not None:
            self.bar[0].stop()
            self.bar = None

    def unpacking(self, what: str, done: int, total: int) -> None:
        """Show the progress of the step `what`: bytes `done` of `total`, which is 0 if unknown."""
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
        # Not wrapped, so that it can be copied.
        console.print(_example(event), soft_wrap=True)


def verdicts(stream: TextIO) -> Callable[[Diagnostic], None]:
    """A function that prints a diagnostic: one line in columns, and the remedy below."""
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
    """Print a table: aligned columns on a terminal, else one line for each row, separated by tabs."""
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
    """Print the error in one line, after the traceback if the message has one.

    The line contains the exception.  The traceback repeats the exception only if it has several lines.
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
    # Without auto_refresh: a refresh thread would still run when the supervisor forks.
    progress = Progress(
        text, BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=console, auto_refresh=False
    )
    progress.start()
    return progress, progress.add_task(what, total=None)


def _short(path: str) -> str:
    """The path relative to the working directory, if that is shorter."""
    try:
        relative = str(Path(path).absolute().relative_to(Path.cwd()))
    except ValueError:
        return path
    return relative if len(relative) < len(path) else path


def stderr() -> TextIO:
    """Standard error, or /dev/null if it was closed before the start."""
    return sys.stderr or Path("/dev/null").open("w")
