"""The supervisor: owns the resources, starts the child processes, restarts them, reloads, stops.

Touches its children, signals, and the resources.  There is no event loop: one poll(), then one turn.  Signal
handlers only write their number into a pipe.  Children end when the supervisor ends.

    turn:  reports and signals -> ended children -> children past their deadline -> the next step

A reload (SIGHUP) also upgrades the program.  The new program checks the new settings in a process of its own;
then this process executes the new program (exec_handover.py), which starts a second generation of children
and stops the first when the second accepts.  There are at most two generations: an earlier SIGHUP is
deferred.  There is at most one log writer and one controller, so the old ones stop first.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from twofold.errors import ExitCode, TwofoldError
from twofold.loadbalancer import shared_memory
from twofold.loadbalancer.config import CATALOGUE, Config
from twofold.loadbalancer.supervision import reload_check
from twofold.loadbalancer.supervision.exec_handover import ExecHandover
from twofold.loadbalancer.supervision.resources import NUMBERS, ChildEntries, Resources
from twofold.native import load
from twofold.process.backoff import Backoff
from twofold.process.child import Child, EntryPoint, RestartPolicy
from twofold.process.exit_status import how
from twofold.process.forking import reap
from twofold.process.signals import STOP_SIGNALS, SignalPipe
from twofold.process.watchdog import Watchdog

LOG_WRITER, CONTROLLER, PROXY = "log_writer", "controller", "proxy"  # roles
RESTARTS = RestartPolicy(Backoff(first_s=0.2, most_s=10.0), healthy_s=1.0, reports=True)
TURN_S = 0.1  # longest time between two checks of deadlines
CONTROLLER_FIRST_S = 3.0  # longest wait of the first proxies for an endpoint table
START_PATIENCE_S = 20.0  # after which a generation that does not accept may be replaced by a reload
LEAVE_PATIENCE_S = 2.0  # for the controller and the log writer
DRAIN_MARGIN_S = 1.0  # for a proxy, beyond drain_timeout
FAST_STOP_S = 0.5
BEATS = range(shared_memory.MAX_PROXIES, shared_memory.HEARTBEATS)  # heartbeats of log writer and controller
MAX_FAILURES = 5  # consecutive failures of one child before the first generation accepts

Announce = Callable[[str, str], object]  # level, message


@dataclass(slots=True)
class GenerationProgress:
    """The state of this generation."""

    began_s: float
    first: bool  # there was no generation before it
    settled: bool = False  # every proxy of it accepts
    again: bool = False  # a reload was requested
    stopping: bool = False
    fast: bool = False
    failed: ExitCode = ExitCode.OK


@dataclass(slots=True)
class Supervisor:
    resources: Resources
    announce: Announce
    progress: GenerationProgress
    command: list[str]  # the command line of this program
    children: list[Child] = field(default_factory=list)
    reload_check: reload_check.ReloadCheck | None = None
    signals: SignalPipe = field(init=False)
    watchdog: Watchdog = field(init=False)

    def run(self) -> ExitCode:
        """Run until a stop signal; return the exit code. Raises AddressError if a socket cannot be bound."""
        resources = self.resources
        resources.sockets.bind(resources.texts(), resources.config.listen.backlog)
        self.watchdog = Watchdog(shared_memory.heartbeats(resources.shared), now_s=time.monotonic())
        for child in self.children:  # of the previous generation
            if child.beat >= 0:
                self.watchdog.adopt(child.beat, child.pid)
        self._make_generation()
        for module in resources.lives.preload:
            importlib.import_module(module)
        gc.collect()
        gc.freeze()  # frozen objects stay in pages that are shared with the children
        self.signals = SignalPipe()
        try:
            while self.children:
                self._turn()
        finally:
            for child in self.children:
                child.send(signal.SIGKILL)
            resources.sockets.release()
        return self.progress.failed

    def _turn(self) -> None:
        ready = select.poll()
        reports = {child.ready_fd: child for child in self.children if child.ready_fd >= 0}
        for fd in (self.signals.fd, *reports):
            ready.register(fd, select.POLLIN)
        for fd, _ in ready.poll(TURN_S * 1000):
            if fd in reports:
                reports[fd].read_readiness()
            else:
                self._handle(self.signals.read())
        now_s = time.monotonic()
        for pid, status in reap():
            self._ended(pid, status, now_s)
        for child in self.children:
            if child.leave_by_s and now_s > child.leave_by_s:
                child.send(signal.SIGKILL)
        self._end_hung(now_s)
        if self.reload_check is not None and now_s > self.reload_check.until_s:
            self.reload_check.stop()
        if self.progress.stopping:
            self._step_down(now_s)
        else:
            self._step(now_s)

    def _end_hung(self, now_s: float) -> None:
        for alarm in self.watchdog.look(now_s):
            child = next(child for child in self.children if child.beat == alarm.index)
            if alarm.number == signal.SIGABRT:
                shared_memory.count_hung(self.resources.shared)
                self.announce("error", f"{child.name} hangs: no sign of life for {alarm.silent_s:.0f} s")
            child.send(alarm.number)

    def _handle(self, numbers: bytes) -> None:
        for number in numbers:
            if number in STOP_SIGNALS:
                self._stop()
            elif number == signal.SIGHUP:
                self.progress.again = True
            elif number == signal.SIGUSR1:
                for child in self.children:
                    if child.role == LOG_WRITER:
                        child.send(signal.SIGUSR1)

    def _step(self, now_s: float) -> None:
        if not self.progress.settled and all(child.ready for child in self._own(PROXY)):
            self._settle(now_s)
        patience_s = self.resources.config.timeouts.drain_timeout + DRAIN_MARGIN_S
        for child in self.children:
            if not child.retired:
                if child.due(now_s) and self._may_start(child, now_s):
                    self._start(child, now_s)
            elif child.role == LOG_WRITER:
                child.leave(signal.SIGUSR2, now_s, LEAVE_PATIENCE_S)
            elif child.role == CONTROLLER:
                child.leave(signal.SIGTERM, now_s, LEAVE_PATIENCE_S)
            elif self.progress.settled:
                child.leave(signal.SIGTERM, now_s, patience_s)
        if self.progress.again and self.reload_check is None and self._may_reload(now_s):
            self._begin_check(now_s)

    # ------------------------------------------------------------------ the generation

    def _own(self, role: str) -> list[Child]:
        return [child for child in self.children if child.role == role and not child.retired]

    def _make_generation(self) -> None:
        taken = {child.number for child in self.children}
        free = [number for number in NUMBERS if number not in taken]
        numbers = free[: self.resources.config.listen.proxies]
        for number in numbers:
            self.resources.lay_pipe(number)
        beats = [beat for beat in BEATS if beat not in {child.beat for child in self.children}]
        for role, beat in zip((LOG_WRITER, CONTROLLER), beats, strict=False):
            self.children.append(_child(self.resources, role, beat=beat))
        self.children += [_child(self.resources, PROXY, number) for number in numbers]

    def _may_start(self, child: Child, now_s: float) -> bool:
        if child.role != PROXY:
            return not any(other.retired and other.role == child.role for other in self.children)
        # A proxy without an endpoint table responds 503; until there is one, connections wait in the kernel.
        controller, progress = self._own(CONTROLLER)[0], self.progress
        waited = controller.ready or controller.failures > 0 or now_s - progress.began_s > CONTROLLER_FIRST_S
        return progress.settled or waited

    def _start(self, child: Child, now_s: float) -> None:
        try:
            child.start(now_s)
            self.watchdog.watch(child.beat, child.pid)
        except OSError as error:
            child.failed(now_s, child.failures + 1)
            self.announce("error", f"cannot start {child.name}: {error.strerror}; trying again")

    def _settle(self, now_s: float) -> None:
        """The generation accepts: close the sockets of addresses that its settings no longer name."""
        self.progress.settled = True
        self.resources.sockets.release(keep=self.resources.texts())
        what = self.resources.sentence()
        if self.progress.first:
            self.announce("info", f"{what}; try: {self.resources.example()}")
        else:
            self.announce("info", f"reloaded in {now_s - self.progress.began_s:.1f} s: {what}")

    def _ended(self, pid: int, status: int, now_s: float) -> None:
        if self.reload_check is not None and self.reload_check.pid == pid:
            self._end_check(status)
            return
        child = next((child for child in self.children if child.pid == pid), None)
        if child is None:
            return
        if child.role == PROXY:
            shared_memory.forget_gauges(self.resources.shared, child.number)
        self.watchdog.forget(child.beat)
        child.ended(now_s)
        if child.retired:
            self.children.remove(child)
        elif not self.progress.stopping:
            self._lost(child, status)

    def _lost(self, child: Child, status: int) -> None:
        """Report the child's end; stop if the first generation cannot start."""
        code, progress = os.waitstatus_to_exitcode(status), self.progress
        what = f"{child.name} ended ({how(code)})"
        hopeless = code > ExitCode.INTERNAL or child.failures >= MAX_FAILURES
        if progress.first and not progress.settled and hopeless:
            self.announce("error", f"{what} before anything was served")
            progress.failed = ExitCode(code) if code in list(ExitCode) else ExitCode.INTERNAL
            progress.fast = True
            self._stop()
        else:
            self.announce("warning", f"{what} and is replaced")

    # ------------------------------------------------------------------ reload

    def _may_reload(self, now_s: float) -> bool:
        progress = self.progress
        if progress.settled:
            return not any(child.retired for child in self.children)
        return now_s - progress.began_s > START_PATIENCE_S or any(
            child.failures > 1 for child in self._own(PROXY)
        )

    def _begin_check(self, now_s: float) -> None:
        self.progress.again = False
        try:
            self.reload_check = reload_check.begin(self.command, now_s)
        except OSError as error:
            self._refuse(f"cannot run {self.command[0]}: {error.strerror}")

    def _end_check(self, status: int) -> None:
        assert self.reload_check is not None
        settings, why = self.reload_check.verdict(status)
        self.reload_check = None
        if self.progress.stopping:
            return
        if why:
            self._refuse(why)
            return
        facts = json.loads(settings)
        texts = [*facts["listen"], *([facts["status"]] if facts["status"] else [])]
        try:
            self.resources.sockets.bind(texts, facts["backlog"])
        except TwofoldError as error:
            self._refuse(str(error))
            return
        self._exec(settings)

    def _refuse(self, why: str) -> None:
        shared_memory.RefusedReloads(self.resources.shared).add(why)
        self.announce("error", f"not reloaded, and nothing has changed: {why}")

    def _exec(self, settings: str) -> None:
        """Execute the new program in this process; signals stay blocked until it handles them."""
        with self.signals.blocked():
            self._handle(self.signals.read())
            if self.progress.stopping:
                return
            for child in self.children:
                if not child.retired and child.role != LOG_WRITER and not child.ready:
                    # It may have accepted connections just now, so it is stopped gracefully, in little time.
                    child.leave(signal.SIGTERM, time.monotonic(), LEAVE_PATIENCE_S)
            error = self._handover(settings).execute(self.command)
            self.resources.sockets.release(keep=self.resources.texts())
            self._refuse(f"cannot run {self.command[0]}: {error.strerror}")

    def _handover(self, settings: str) -> ExecHandover:
        resources = self.resources
        return ExecHandover(
            config=settings,
            memory=resources.memory_fd,
            sockets={text: each.fileno() for text, each in resources.sockets.held.items()},
            pipes={str(number): ends for number, ends in resources.pipes.items()},
            children=[
                {
                    "role": child.role,
                    "number": child.number,
                    "pid": child.pid,
                    "leave_by": child.leave_by_s,
                    "beat": child.beat,
                }
                for child in self.children
                if child.pid
            ],
            again=self.progress.again,
        )

    # ------------------------------------------------------------------ the end

    def _stop(self) -> None:
        """The first call drains; the second call stops without draining."""
        progress = self.progress
        progress.fast = progress.fast or progress.stopping
        if not progress.stopping:
            progress.stopping = True
            self.resources.sockets.release()
            if self.reload_check is not None:
                self.reload_check.stop()
            if not progress.fast:
                self.announce("info", "stopping: requests in flight may finish; a second signal ends them")

    def _step_down(self, now_s: float) -> None:
        """First the proxies leave, then the controller, then the log writer."""
        self.children = [child for child in self.children if child.pid]
        alive = {child.role for child in self.children}
        for child in self.children:
            if self.progress.fast and child.role != LOG_WRITER:
                child.send(signal.SIGKILL)
            elif child.role == PROXY:
                patience_s = self.resources.config.timeouts.drain_timeout + DRAIN_MARGIN_S
                child.leave(signal.SIGTERM, now_s, patience_s)
            elif child.role == CONTROLLER and PROXY not in alive:
                child.leave(signal.SIGTERM, now_s, LEAVE_PATIENCE_S)
            elif child.role == LOG_WRITER and alive == {LOG_WRITER}:
                # It ends at EOF of its inputs; SIGCONT has no effect on it.
                self.resources.close_writers()
                child.leave(signal.SIGCONT, now_s, FAST_STOP_S if self.progress.fast else LEAVE_PATIENCE_S)
        if not self.children and not self.progress.failed:
            self.announce("info", "stopped")


def _child(resources: Resources, role: str, number: int = -1, beat: int = -1) -> Child:
    lives: dict[str, EntryPoint] = {
        LOG_WRITER: partial(resources.be_log_writer, beat),
        CONTROLLER: partial(resources.be_controller, beat),
        PROXY: partial(resources.be_proxy, number),
    }
    return Child(role, RESTARTS, lives[role], number, beat=number if role == PROXY else beat)


def _retired(resources: Resources, facts: dict[str, Any]) -> Child:
    """A child of the previous generation, which is to stop."""
    child = _child(resources, facts["role"], facts["number"], facts.get("beat", -1))
    child.retired, child.pid, child.leave_by_s = True, facts["pid"], facts["leave_by"]
    return child


def start(config: Config, lives: ChildEntries, announce: Announce) -> ExitCode:
    """Run a supervisor until a stop signal; return the exit code. Raises AddressError."""
    if not load.used() and not os.environ.get(load.SWITCH):
        announce(
            "info", "the hot path is interpreted: `python -m twofold.native.build` compiles it, in a minute"
        )
    fd = shared_memory.create()
    resources = Resources(config, lives, fd, shared_memory.attach(fd))
    return Supervisor(resources, announce, GenerationProgress(time.monotonic(), first=True), _command()).run()


def resume(left: ExecHandover, lives: ChildEntries, announce: Announce) -> ExitCode:
    """Continue in the same process with the state that the previous program passed by exec."""
    fd = left.memory
    if os.fstat(fd).st_size != shared_memory.SIZE:  # another version's layout: its counts cannot be read
        os.close(fd)
        fd = shared_memory.create()
    resources = Resources(CATALOGUE.from_json(left.config), lives, fd, shared_memory.attach(fd))
    resources.sockets.held = {text: socket.socket(fileno=each) for text, each in left.sockets.items()}
    resources.pipes = {int(number): (ends[0], ends[1]) for number, ends in left.pipes.items()}
    progress = GenerationProgress(time.monotonic(), first=False, again=left.again)
    before = [_retired(resources, facts) for facts in left.children]
    if fd != left.memory:
        for child in before:
            child.beat = -1  # its heartbeat is in the old memory
    return Supervisor(resources, announce, progress, _command(), before).run()


def _command() -> list[str]:
    return [sys.executable, *sys.orig_argv[1:]]
