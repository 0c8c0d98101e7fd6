"""The supervisor: makes the channels, starts the processes, replaces those that end, stops in order.

Touches signals, children, channels and the published status.  Its loop is one poll() and a turn for each
wake-up; signal handlers only write into a pipe.  The supervisor is the subreaper of its descendants: it
reaps every one of them, and all end when it ends.

    turn:  signals -> ended children -> reports of replicas -> replicas that hang or are due -> status
"""

from __future__ import annotations

import json
import math
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from twofold.errors import ExitCode, TwofoldError
from twofold.logs import sinks, writer
from twofold.process import prctl
from twofold.process.backoff import Backoff
from twofold.process.child import Child, RestartPolicy
from twofold.process.exit_status import how
from twofold.process.forking import reap
from twofold.process.heartbeat import Heartbeat
from twofold.process.signals import STOP_SIGNALS, SignalPipe
from twofold.process.watchdog import Watchdog
from twofold.server.artifact.artifact import Artifact
from twofold.server.config import Config
from twofold.server.environment.environment import Environment
from twofold.server.front.dispatch import QueuePipes
from twofold.server.front.listeners import Listeners, listen
from twofold.server.machine import capacity
from twofold.server.replica import slots
from twofold.server.supervision import channels
from twofold.server.supervision.channels import Channels
from twofold.server.supervision.events import Announce, InstanceReady, Note, Stopped, Stopping
from twofold.server.supervision.fork_server import ForkServerSpec
from twofold.server.supervision.quarantine import Quarantine
from twofold.server.supervision.replica_pool import PoolContext, ReplicaPool
from twofold.server.supervision.reports import parse
from twofold.server.supervision.status import (
    InstanceIdentity,
    choose_preload,
    compose,
    instance_state,
    sample_text,
    shown_sample,
)  # fmt: skip
from twofold.server.telemetry import instance_status, metrics

FRONT, LOG_WRITER = "front", "log_writer"  # roles, and reasons of twofold_replica_restarts_total
RESTARTS = RestartPolicy(Backoff(first_s=0.4, most_s=10.0), healthy_s=10.0)
TURN_S = 0.1  # longest time between two turns
STATUS_EVERY_S = 1.0
LEAVE_TIMEOUT_S = 2.0  # for replicas and the log writer, after the fronts have drained
FAST_STOP_S = 0.5  # replaces every longer timeout after a second stop signal
REOPEN_SIGNALS = (signal.SIGHUP, signal.SIGUSR1)
READ_SIZE = 65536


@dataclass(slots=True)
class StopProgress:
    """Whether the instance is to stop, since when, and whether without draining."""

    requested_at_s: float = 0.0  # monotonic; 0: not requested
    fast: bool = False


@dataclass(slots=True)
class Supervisor:
    """The parent process of an instance."""

    config: Config
    artifact: Artifact
    announce: Announce
    pool: ReplicaPool
    quarantine: Quarantine
    identity: InstanceIdentity
    channels: Channels
    listeners: Listeners | None
    embedder: socket.socket | None
    children: list[Child] = field(default_factory=list)
    stop: StopProgress = field(default_factory=StopProgress)
    failed: TwofoldError | None = None
    announced: bool = False
    signals: SignalPipe = field(init=False)
    watchdog: Watchdog = field(init=False)
    _reports: bytes = b""
    _watched_pid: int = 0  # of the fork server
    _published_at_s: float = 0.0

    def run(self) -> ExitCode:
        """Serve until a stop signal. Raises TwofoldError if the instance cannot serve."""
        self.signals = SignalPipe()
        self.watchdog = Watchdog(metrics.heartbeats(self.channels.memory), now_s=time.monotonic())
        self.pool.step_availability()
        self._make_children()
        try:
            for child in self.children:
                self._start(child, time.monotonic())
            self.pool.start(time.monotonic())
            while not self.stop.requested_at_s:
                self._turn()
        except TwofoldError as error:
            self.failed, self.stop.fast = error, True
        finally:
            self._wind_down()
        if self.failed is not None:
            raise self.failed
        return ExitCode.OK

    def _turn(self) -> None:
        ready = select.poll()
        for fd in (
            self.signals.fd,
            self.channels.reports.read,
            *([self.embedder.fileno()] if self.embedder else []),
        ):
            ready.register(fd, select.POLLIN)
        woken = {fd for fd, _ in ready.poll(TURN_S * 1000)}
        if self.signals.fd in woken:
            self._handle_signals(self.signals.read())
        if self.embedder is not None and self.embedder.fileno() in woken:
            self.stop.requested_at_s = time.monotonic()  # the embedding process has gone
        now_s = time.monotonic()
        ended = reap()
        self._read_reports(now_s)
        for pid, status in ended:
            if not self._child_ended(pid, status, now_s):
                self.pool.died(pid, status, now_s)
        if not self.stop.requested_at_s:
            self._restart(now_s)
            self.pool.step(now_s)
            self._end_silent(now_s)
        if serves := not self.announced and self.pool.settled():
            self.pool.measure_sharing()
        self._publish(now_s)
        if serves:  # after the status: a reader of the announcement may ask for it at once
            self._announce_ready()

    # ------------------------------------------------------------------ wake-ups

    def _handle_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number in STOP_SIGNALS:
                self.stop.fast = bool(self.stop.requested_at_s)
                self.stop.requested_at_s = self.stop.requested_at_s or time.monotonic()
            elif number in REOPEN_SIGNALS:
                for child in self.children:
                    if child.role == LOG_WRITER:
                        child.send(signal.SIGUSR1)

    def _read_reports(self, now_s: float) -> None:
        """Read the reports, line by line; a read may end within a line."""
        try:
            self._reports += os.read(self.channels.reports.read, READ_SIZE)
        except BlockingIOError:
            return
        *lines, self._reports = self._reports.split(b"\n")
        for line in lines:
            self.pool.take_report(parse(line), now_s)

    def _announce_ready(self) -> None:
        self.announced = True
        sample, text = shown_sample(self.artifact, self.identity.sample)
        self.announce(
            InstanceReady(
                url=self.listeners.url if self.listeners else "",
                replicas=self.pool.ready_count(),
                start_s=time.time() - self.identity.started_s,
                sample=sample,
                sample_text=text,
            )
        )

    # ------------------------------------------------------------------ children

    def _make_children(self) -> None:
        self.children.append(Child(LOG_WRITER, RESTARTS, self._be_log_writer, beat=slots.LOG_WRITER_BEAT))
        if self.listeners is not None:
            for number in range(self.channels.layout.fronts):
                main = partial(self._be_front, number)
                self.children.append(Child(FRONT, RESTARTS, main, number, beat=number))
        elif self.embedder is not None:
            _send_channels(self.embedder, self.channels)

    def _be_front(self, number: int, ready: int) -> int:
        from twofold.server.front import process  # keeps uvloop and starlette out of the supervisor

        assert self.listeners is not None
        pipes = self.channels
        return process.run(
            process.FrontContext(
                number=number,
                listeners=self.listeners,
                memory=pipes.memory,
                layout=pipes.layout,
                queue_pipes=QueuePipes(pipes.queue.write, pipes.completions[number].read),
                access_log=pipes.access_logs[number].write if self.config.log.access_log else -1,
                config=self.config,
            )
        )

    def _be_log_writer(self, ready: int) -> int:
        pipes, settings = self.channels, self.config.log
        pipes.close_writers()  # inherited ones; open, they would hide the end of the input
        if self.listeners is not None:
            self.listeners.close()  # open, the kernel would accept connections after the fronts have ended
        counters = metrics.open_counters(pipes.memory, metrics.LOG_WRITER)
        cell = {"access": metrics.ACCESS_DROPPED, "predict": metrics.PREDICT_DROPPED}

        def dropped(stream: str, lines: int) -> None:
            counters.cells[cell[stream]] += lines
            counters.flush()

        inputs = [writer.LogInput(pipe.read, "access") for pipe in pipes.access_logs]
        if settings.predict_log:
            inputs += [
                writer.LogInput(pipes.predict_log.read, "predict"),
                writer.LogInput(pipes.native_log.read, "predict", wrap=True),
            ]
        destination = writer.LogDestination(
            settings.log_dir, int(settings.log_max_mb * channels.MEGABYTE), settings.log_keep,
            settings.deployment_id or "twofold",
        )  # fmt: skip
        heart = Heartbeat(metrics.heartbeats(pipes.memory), slots.LOG_WRITER_BEAT)
        writer.run(inputs, destination, dropped, heart.beat)
        return int(ExitCode.OK)

    def _child_ended(self, pid: int, status: int, now_s: float) -> bool:
        """A process was reaped; False if it is not a child of `children`."""
        child = next((child for child in self.children if child.pid == pid), None)
        if child is None:
            return False
        self.watchdog.forget(child.beat)
        child.ended(now_s)
        if not self.stop.requested_at_s:
            ending = how(os.waitstatus_to_exitcode(status))
            self.announce(Note(f"{child.name} ended ({ending}) and is replaced"))
            self.pool.incidents.count_restart(child.role)
        return True

    def _start(self, child: Child, now_s: float) -> None:
        try:
            child.start(now_s)
            self.watchdog.watch(child.beat, child.pid)
        except OSError as error:
            child.failed(now_s, child.failures + 1)
            self.announce(Note(f"cannot start {child.name}: {error.strerror}; trying again"))

    def _end_silent(self, now_s: float) -> None:
        """Signal children that hang. The fork server is watched from its first heartbeat on."""
        fork_server = self.pool.fork_server.pid
        if fork_server != self._watched_pid:
            self._watched_pid = fork_server
            self.watchdog.forget(slots.FORK_SERVER_BEAT)
            if fork_server:  # before its first heartbeat it may load a model until load_timeout
                self.watchdog.watch(slots.FORK_SERVER_BEAT, fork_server, math.inf)
        names = {child.beat: child.name for child in self.children}
        for alarm in self.watchdog.look(now_s):
            if alarm.number == signal.SIGABRT:
                name = names.get(alarm.index, "the fork server")
                self.pool.incidents.note(f"{name} hangs: no sign of life for {alarm.silent_s:.0f} s")
            os.kill(alarm.pid, alarm.number)

    def _restart(self, now_s: float) -> None:
        for child in self.children:
            if child.due(now_s):
                self._start(child, now_s)

    # ------------------------------------------------------------------ the published status

    def _publish(self, now_s: float) -> None:
        incidents = self.pool.incidents
        if incidents.changed or now_s - self._published_at_s > STATUS_EVERY_S:
            incidents.changed, self._published_at_s = False, now_s
            self.quarantine.expire(int(now_s * 1e9))
            pool = self.pool.snapshot()
            state = instance_state(pool, bool(self.stop.requested_at_s), self.announced)
            instance_status.publish(self.channels.memory, compose(self.identity, pool, state))

    # ------------------------------------------------------------------ stopping

    def _wind_down(self) -> None:
        """Report unready, drain the fronts, then end the replicas, then the log writer."""
        self.announce(Stopping(served=self.pool.ever_ready, failed=self.failed is not None))
        http = self.config.http
        slots.CONTROL.pack_into(self.channels.memory, slots.DRAINING, 1)
        self.pool.incidents.changed = True
        self._publish(time.monotonic())
        if not self.stop.fast:
            self._wait(lambda: False, http.drain_grace)
        if self.listeners is not None:
            self.listeners.retire()
        fronts = [child for child in self.children if child.role != LOG_WRITER]
        self._end(fronts, http.drain_timeout)
        self.pool.leave(signal.SIGTERM, time.monotonic())
        self._wait(lambda: not self.pool.alive(), LEAVE_TIMEOUT_S)
        self.pool.leave(signal.SIGKILL, time.monotonic())
        self.pool.fork_server.kill()
        self._wait(lambda: not self.pool.alive() and not self.pool.fork_server.pid, LEAVE_TIMEOUT_S)
        self.channels.close_writers()
        self._wait(lambda: not any(child.pid for child in self.children), LEAVE_TIMEOUT_S)
        self._end(self.children, 0.0)
        self.announce(Stopped(served=self.pool.ever_ready, failed=self.failed is not None))

    def _end(self, children: list[Child], patience_s: float) -> None:
        for number, wait_s in ((signal.SIGTERM, patience_s), (signal.SIGKILL, LEAVE_TIMEOUT_S)):
            for child in children:
                child.send(number)
            self._wait(lambda: not any(child.pid for child in children), wait_s)

    def _wait(self, done: Callable[[], bool], patience_s: float) -> None:
        """Run turns until `done()` or for `patience_s`; a second stop signal ends the wait at once."""
        until_s = time.monotonic() + (min(patience_s, FAST_STOP_S) if self.stop.fast else patience_s)
        self.stop.requested_at_s = self.stop.requested_at_s or time.monotonic()
        while not done() and time.monotonic() < until_s:
            fast = self.stop.fast
            try:
                self._turn()
            except TwofoldError:
                continue  # the reason of the stop is already recorded
            if self.stop.fast and not fast:
                return


def run(
    config: Config,
    environment: Environment,
    artifact: Artifact,
    announce: Announce,
    embedder: socket.socket | None = None,
) -> ExitCode:
    """Serve `artifact` until a stop signal. `embedder`: send the channels to this socket and run no front.

    Raises TwofoldError if the instance cannot serve; all started processes have ended by then.
    """
    prctl.adopt_orphans()
    sinks.require_folder(config.log.log_dir, writer.STREAMS)
    listeners = None if embedder else listen(config.http)
    plan = capacity.plan(config.replicas, capacity.cores(), capacity.visible_gpus(os.environ))
    fronts = config.http.fronts or max(1, plan.replicas // 8)
    pipes = channels.lay(config, 1 if embedder else fronts, plan.replicas + config.replicas.spare)
    why, preload = choose_preload(config, plan, artifact)
    spec = _spec(config, environment, artifact, preload, plan.threads)
    quarantine = Quarantine(
        pipes.memory,
        config.quarantine_folder(),
        config.replicas.quarantine_seconds,
        int(config.replicas.quarantine_mb * channels.MEGABYTE),
    )
    pool = ReplicaPool(PoolContext(config, plan, spec, pipes, quarantine, announce))
    if plan.reason:
        announce(Note(plan.reason))
    if why:
        pool.fork_server.fallback = why
        announce(Note(why))
    identity = _identity(environment, artifact, listeners)
    return Supervisor(
        config, artifact, announce, pool, quarantine, identity, pipes, listeners, embedder
    ).run()


def _identity(environment: Environment, artifact: Artifact, listeners: Listeners | None) -> InstanceIdentity:
    return InstanceIdentity(
        artifact=artifact.name,
        python=environment.version,
        environment=environment.name,
        started_s=time.time(),
        socket=listeners.local_name if listeners else "",
        sample=sample_text(artifact.sample),
    )


def _spec(
    config: Config, environment: Environment, artifact: Artifact, preload: str, threads: int
) -> ForkServerSpec:
    return ForkServerSpec(
        python=environment.python,
        variables={**capacity.thread_variables(threads), **environment.variables},
        artifact=artifact.path,
        preload=preload,
        threads=threads,
        # A replica that dies may have computed several answers without reporting them.  They are computed
        # again, which is a replay.
        claim=slots.MAX_CLAIM if config.replicas.replay == "once" else 1,
        source=config.log.deployment_id or "twofold",
        sample=artifact.sample,
    )


def _send_channels(embedder: socket.socket, pipes: Channels) -> None:
    fds = [pipes.memory_fd, pipes.queue.write, pipes.completions[0].read]
    socket.send_fds(embedder, [json.dumps(pipes.layout.as_tuple()).encode() + b"\n"], fds)
