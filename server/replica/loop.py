"""A replica: take a descriptor, call predict(), put the answer into the slot, say so.

Standard library only, Python 3.7 to 3.14.  Touches the shared memory, the request queue, the
completion pipes and its own signals; everything else is the model's business.

The loop blocks in readv() and nowhere else.  SIGTERM ends it between two requests: the handler
looks into the mailbox, which the kernel fills in the same step as it takes the request from the
queue, so there is no moment in which a request could be taken and forgotten.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import sys
import time
import traceback
from typing import Any

from . import codec, frame, lineage, model, output, slots, threads
from .wiring import EXIT_LOAD_FAILED, EXIT_OUT_OF_MEMORY, Wiring

NO_DESCRIPTOR = bytes(frame.DESCRIPTOR_SIZE)
NOTHING = bytes(slots.MAILBOX_SIZE)
PATIENCE = 10.0  # seconds to wait for the subreaper to become the parent


_unpack_descriptor = frame.DESCRIPTOR.unpack_from
_unpack_header = slots.SLOT_HEADER.unpack_from
_pack_completion = frame.COMPLETION.pack
_clock = time.monotonic_ns


class Stop(Exception):
    """SIGTERM arrived while no request was in hand."""


class Replica:
    """One replica's view of the shared memory, and the request loop."""

    def __init__(self, wiring: Wiring, index: int, loaded: model.Model) -> None:
        self.layout = slots.Layout(*wiring.layout)
        self.memory = slots.attach(wiring.memory, self.layout)
        self.view = memoryview(self.memory)
        self.stride = self.layout.stride
        self.queue = wiring.queue
        self.completions = wiring.completions
        self.index = index
        self.predict = loaded.predict
        self.loads, self.dumps = codec.select()
        self.mailbox = slots.MAILBOX_OFFSET + index * slots.MAILBOX_SIZE
        words = slots.REPLICA_WORDS_OFFSET + index * slots.REPLICA_WORDS_SIZE
        self.words = self.view[words : words + slots.REPLICA_WORDS_SIZE].cast("Q")
        self.stopping = False
        self.exit_code = 0

    def terminate(self, signum: int, stack: Any) -> None:
        self.stopping = True
        if self.memory[self.mailbox : self.mailbox + slots.MAILBOX_SIZE] == NOTHING:
            raise Stop

    def run(self) -> int:
        """Serve until told to stop; the exit code."""
        cell, size = self.mailbox, frame.DESCRIPTOR_SIZE
        mailbox = [self.view[cell : cell + size]]
        readv, handle = os.readv, self.handle
        try:
            signal.signal(signal.SIGTERM, self.terminate)
            # Nothing read means that every writer is gone, and so is the server.
            while not self.stopping and readv(self.queue, mailbox):
                handle(cell)
        except Stop:
            pass
        return self.exit_code

    def handle(self, cell: int) -> None:
        """Serve the descriptor in a mailbox cell, then clear the cell: the claim is settled."""
        memory = self.memory
        slot, generation, length, kind, attempt, _ = _unpack_descriptor(memory, cell)
        base = slots.SLOTS_OFFSET + slot * self.stride
        life, state, id_size, _, deadline, handed_in = _unpack_header(memory, base)
        claimed = _clock()
        if life == generation:
            if state != slots.WAITING or claimed > deadline:
                outcome, size, decoded, predicted, encoded = frame.SKIPPED, 0, claimed, claimed, claimed
            else:
                id_start = base + slots.REQUEST_ID_OFFSET
                output.request_id = memory[id_start : id_start + id_size]
                outcome, size, decoded, predicted, encoded = self.answer(base, length, kind)
                output.request_id = b""
                self.words[0] += 1
            memory[base + slots.STATE_OFFSET] = slots.DONE
            completion = _pack_completion(
                slot, generation, size, outcome, attempt, self.index, (claimed - handed_in) // 1000,
                (predicted - decoded) // 1000, (encoded - predicted) // 1000, (decoded - claimed) // 1000,
            )  # fmt: skip
            os.write(self.completions[slot // self.layout.slots_per_front], completion)
        memory[cell : cell + frame.DESCRIPTOR_SIZE] = NO_DESCRIPTOR

    def answer(self, base: int, length: int, kind: int) -> tuple[Any, ...]:
        """(outcome, size of the answer, and when decoding, predict and encoding ended)."""
        start = base + slots.SLOT_HEADER_SIZE
        decoded = predicted = 0
        try:
            body = self.view[start : start + length]
            data = self.loads(body) if kind == frame.JSON else bytes(body)
            decoded = _clock()
            result = self.predict(data)
            predicted = _clock()
            payload = self.dumps(result)
        except BaseException as error:
            now = _clock()
            if not decoded and isinstance(error, ValueError):
                outcome, size = self.put(base, frame.MALFORMED, str(error).encode())
            else:
                self.blame(error)
                outcome, size = frame.RAISED, 0
            return outcome, size, decoded or now, predicted or now, now
        outcome, size = self.put(base, frame.ANSWERED, payload)
        return outcome, size, decoded, predicted, _clock()

    def put(self, base: int, outcome: int, payload: bytes) -> tuple[Any, ...]:
        size = len(payload)
        if size > self.layout.max_answer:
            print("the answer has %d bytes, max_answer_mb allows %d" % (size, self.layout.max_answer),
                  file=sys.stderr)  # fmt: skip
            return frame.TOO_LARGE, 0
        start = base + self.layout.answer_offset
        self.memory[start : start + size] = payload
        return outcome, size

    def blame(self, error: BaseException) -> None:
        """The traceback goes to the predict log; a process short of memory does not go on."""
        traceback.print_exception(type(error), error, error.__traceback__)
        if isinstance(error, MemoryError):
            self.exit_code = EXIT_OUT_OF_MEMORY
            self.stopping = True


def be_replica(wiring: Wiring, order: dict[str, Any], preloaded: model.Model | None) -> None:
    """The whole life of a freshly forked replica. Never returns."""
    code = EXIT_LOAD_FAILED
    index = order["replica"]
    try:
        settle(wiring, order)
        loaded = load(wiring, index, preloaded)
        if loaded is not None:
            gc.collect()
            gc.freeze()  # the model is no garbage: no collection during a request need look at it
            if order["spare"]:
                signal.sigwait([signal.SIGUSR1])  # the supervisor's word that this spare is needed
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
            code = Replica(wiring, index, loaded).run()
    except BaseException:
        traceback.print_exc()
    finally:
        output.finish()
        os._exit(code)


def settle(wiring: Wiring, order: dict[str, Any]) -> None:
    """Become a process of one's own: parent, group, signals, environment, streams."""
    index = order["replica"]
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    os.setpgid(0, 0)  # whatever predict() forks ends with this replica
    waited = time.monotonic() + PATIENCE
    while os.getppid() != wiring.supervisor and time.monotonic() < waited:
        time.sleep(0.001)
    lineage.die_with_parent(wiring.supervisor)
    with open("/proc/self/oom_score_adj", "w") as score:
        score.write("500")  # when memory runs out the kernel should choose a replica, not a front
    faulthandler.enable(wiring.crashes[index])
    os.environ.update(order["variables"])
    threads.limit_onnxruntime(wiring.threads)
    output.redirect(wiring.predict_log, wiring.source, index, _drop_counter(wiring, index))


def _drop_counter(wiring: Wiring, index: int) -> Any:
    """Counts a lost log line where everybody can see it."""
    memory = slots.attach(wiring.memory, slots.Layout(*wiring.layout))
    words = slots.REPLICA_WORDS_OFFSET + index * slots.REPLICA_WORDS_SIZE
    cells = memoryview(memory)[words : words + slots.REPLICA_WORDS_SIZE].cast("Q")

    def dropped() -> None:
        cells[slots.LOG_LINES_DROPPED] += 1

    return dropped


def load(wiring: Wiring, index: int, preloaded: model.Model | None) -> model.Model | None:
    """Load the model, try it where a sample is at hand, and report; None if it failed."""
    started = time.monotonic()
    wiring.report("loading", replica=index, pid=os.getpid())
    try:
        loaded = preloaded or model.Model.load(wiring.artifact)
        tried = try_sample(wiring.sample, loaded)
    except model.LoadFailure as failure:
        wiring.report("failed", replica=index, stage=failure.stage, error=str(failure))
        return None
    except BaseException:
        wiring.report("failed", replica=index, stage="sample", error=traceback.format_exc())
        return None
    wiring.report("ready", replica=index, pid=os.getpid(), seconds=time.monotonic() - started, tried=tried)
    return loaded


def try_sample(path: str, loaded: model.Model) -> bool:
    """One real predict() before any caller's: it warms the model up and proves the fork."""
    if not path:
        return False
    loads, dumps = codec.select()
    with open(path, "rb") as sample:
        dumps(loaded.predict(loads(memoryview(sample.read()))))
    return True
