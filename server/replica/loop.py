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
from functools import partial
from typing import Any, Callable

from . import codec, frame, log_capture, malloc, model, onnx_threads, prctl, slots
from .inherited import EXIT_BROKEN, EXIT_LOAD_FAILED, EXIT_OUT_OF_MEMORY, Inherited

# A replica whose predicts are short takes several at once: so short a wait behind a neighbour costs
# nobody anything, and it saves a wake-up and two calls for each. One long predict ends that for some
# hundred requests; what lies between may as well be the scheduler's doing, and counts no more than CAP.
SHORT_PREDICT_NS = 50_000
CAP_NS = 500_000
LONG_PREDICT_NS = 20_000_000
DISTRUST_NS = 1 << 40
NOTHING = bytes(slots.MAILBOX_SIZE)
PATIENCE = 10.0  # seconds to wait for the subreaper to become the parent


class StopServing(Exception):
    """SIGTERM arrived while no request was in hand."""


class AnswerTooLarge(Exception):
    """The result, encoded, does not fit into its slot."""


class ReplicaLoop:
    """One replica's view of the shared memory, and the request loop."""

    def __init__(self, inherited: Inherited, index: int, loaded: model.Model) -> None:
        self.layout = slots.Layout(*inherited.layout)
        self.memory = slots.attach(inherited.memory, self.layout)
        self.view = memoryview(self.memory)
        self.stride = self.layout.stride
        self.queue = inherited.queue
        self.completions = inherited.completions
        self.index = index
        self.predict = loaded.predict
        self.loads, self.dumps = codec.select()
        self.mailbox = slots.MAILBOX_OFFSET + index * slots.MAILBOX_SIZE
        words = slots.REPLICA_WORDS_OFFSET + index * slots.REPLICA_WORDS_SIZE
        self.words = self.view[words : words + slots.REPLICA_WORDS_SIZE].cast("Q")
        self.claim = inherited.claim
        self.typical_ns = DISTRUST_NS  # a moving average of predict's time
        self.stopping = False
        self.exit_code = 0
        self.forks: list[int] = []  # not empty in a process that predict() has forked
        log_capture.follow(self.memory)

    def terminate(self, signum: int, stack: Any) -> None:
        self.stopping = True
        if self.memory[self.mailbox : self.mailbox + slots.MAILBOX_SIZE] == NOTHING:
            raise StopServing

    def run(self) -> int:
        """Serve until told to stop; the exit code."""
        start, size = self.mailbox, frame.DESCRIPTOR_SIZE
        one = [self.view[start : start + size]]
        several = [self.view[start : start + self.claim * size]]
        readv, queue, handle = os.readv, self.queue, self._handler()
        try:
            os.register_at_fork(after_in_child=partial(self.forks.append, os.getpid()))
            signal.signal(signal.SIGTERM, self.terminate)
            while not self.stopping:
                taken = readv(queue, several if self.typical_ns < SHORT_PREDICT_NS else one)
                if not taken:  # every writer is gone, and so is the server
                    break
                self._report([handle(cell) for cell in range(start, start + taken, size)])
                self.memory[start : start + taken] = NOTHING[:taken]  # the claims are settled
        except StopServing:
            pass
        return self.exit_code

    def _learn(self, spent_ns: int) -> None:
        if spent_ns > LONG_PREDICT_NS:
            self.typical_ns = DISTRUST_NS
        else:
            self.typical_ns += (min(spent_ns, CAP_NS) - self.typical_ns) >> 5

    def _report(self, completions: list[bytes]) -> None:
        """Tell the fronts, each in one write."""
        if self.layout.fronts == 1:
            os.write(self.completions[0], b"".join(completions))
            return
        for completion in completions:
            slot = frame.COMPLETION.unpack(completion)[0]
            os.write(self.completions[slot // self.layout.slots_per_front], completion)

    def _handler(self) -> Callable[[int], bytes]:
        """The hot path with all that it needs bound: looking attributes up was a third of it."""
        memory, index, stride = self.memory, self.index, self.stride
        unpack_descriptor, unpack_header = frame.DESCRIPTOR.unpack_from, slots.SLOT_HEADER.unpack_from
        pack, words, answer = frame.COMPLETION.pack, self.words, self._answerer()
        learn = self._learn
        first, state_offset, flag_offset = slots.SLOTS_OFFSET, slots.STATE_OFFSET, frame.FLAG_OFFSET
        waiting, done, handled, trim, large = (
            slots.WAITING,
            slots.DONE,
            frame.HANDLED,
            malloc.trimmer(),
            malloc.LARGE,
        )

        def handle(cell: int) -> bytes:
            """Serve the descriptor in a mailbox cell; its completion."""
            slot, generation, length, kind, attempt, _ = unpack_descriptor(memory, cell)
            base = first + slot * stride
            life, state, id_size, _, deadline, handed_in = unpack_header(memory, base)
            outcome, size = frame.SKIPPED, 0
            started = predicted = encoded = handed_in
            if life == generation:  # otherwise a front that is no more had handed it in
                if state == waiting:
                    log_capture.request = base, id_size
                    outcome, size, started, predicted, encoded = answer(base, length, kind, deadline)
                    log_capture.request = log_capture.NO_REQUEST
                    words[0] += 1
                    learn(predicted - started)
                    if length > large or size > large:
                        trim()
                memory[base + state_offset] = done
            memory[cell + flag_offset] = handled
            queued, spent, wrote = started - handed_in, predicted - started, encoded - predicted
            times = queued // 1000, spent // 1000, wrote // 1000
            return pack(slot, generation, size, outcome, attempt, index, *times, 0)

        return handle

    def _answerer(self) -> Callable[[int, int, int, int], tuple[int, int, int, int, int]]:
        memory, view, clock, json_kind = self.memory, self.view, time.monotonic_ns, frame.JSON
        loads, dumps, predict, failed = self.loads, self.dumps, self.predict, self.failed
        header, room, limit = slots.SLOT_HEADER_SIZE, self.layout.answer_offset, self.layout.max_answer
        forks = self.forks

        def answer(base: int, length: int, kind: int, deadline: int) -> tuple[int, int, int, int, int]:
            """(outcome, size of the answer, and when predict began and ended and its result was encoded)."""
            started = predicted = 0
            try:
                body = view[base + header : base + header + length]
                data = loads(body) if kind == json_kind else bytes(body)
                started = clock()
                if started > deadline:
                    return frame.SKIPPED, 0, started, started, started
                result = predict(data)
                predicted = clock()
                payload = dumps(result)
                size = len(payload)
                if forks:
                    end_of_fork(None)
                if size > limit:
                    raise AnswerTooLarge("the answer has %d bytes, max_answer_mb allows %d" % (size, limit))
                memory[base + room : base + room + size] = payload
                return frame.ANSWERED, size, started, predicted, clock()
            except BaseException as error:
                now = clock()
                outcome, size = failed(error, base, not started)
                return outcome, size, started or now, predicted or now, now

        return answer

    def failed(self, error: BaseException, base: int, decoding: bool) -> tuple[int, int]:
        """(outcome, size of the reason in the slot); the log learns what the caller must not."""
        if self.forks:
            end_of_fork(error)
        if decoding and isinstance(error, ValueError):
            reason = str(error).encode("utf-8", "replace")[: self.layout.max_answer]
            start = base + self.layout.answer_offset
            self.memory[start : start + len(reason)] = reason
            return frame.MALFORMED, len(reason)
        if isinstance(error, AnswerTooLarge):
            print(error, file=sys.stderr)
            return frame.TOO_LARGE, 0
        print(model.users_traceback(error), file=sys.stderr)
        if isinstance(error, MemoryError):  # a process short of memory is not trusted again
            self.exit_code = EXIT_OUT_OF_MEMORY
            self.stopping = True
        return frame.RAISED, 0


def end_of_fork(error: BaseException | None) -> None:
    """What predict() has forked comes back here, and ends: the request, like the mailbox, is its parent's."""
    code = 0
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        print(model.users_traceback(error), file=sys.stderr)
        code = 1
    log_capture.finish()
    os._exit(code & 255)


def be_replica(inherited: Inherited, order: dict[str, Any], preloaded: model.Model | None) -> None:
    """The whole life of a freshly forked replica. Never returns."""
    code = EXIT_LOAD_FAILED
    index = order["replica"]
    try:
        settle(inherited, order)
        loaded = load(inherited, index, preloaded)
        if loaded is not None:
            gc.collect()
            gc.freeze()  # the model is no garbage: no collection during a request need look at it
            if order["spare"]:
                signal.sigwait([signal.SIGUSR1])  # the supervisor's word that this spare is needed
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
            code = EXIT_BROKEN
            code = ReplicaLoop(inherited, index, loaded).run()
    except BaseException:
        traceback.print_exc()
    finally:
        log_capture.finish()
        os._exit(code)


def settle(inherited: Inherited, order: dict[str, Any]) -> None:
    """Become a process of one's own: parent, group, signals, environment, streams."""
    index = order["replica"]
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    os.setpgid(0, 0)  # whatever predict() forks ends with this replica
    waited = time.monotonic() + PATIENCE
    while os.getppid() != inherited.supervisor and time.monotonic() < waited:
        time.sleep(0.001)
    prctl.die_with_parent(inherited.supervisor)
    with open("/proc/self/oom_score_adj", "w") as score:
        score.write("500")  # when memory runs out the kernel should choose a replica, not a front
    faulthandler.enable(inherited.crashes[index])
    os.environ.update(order["variables"])
    onnx_threads.limit_onnxruntime(inherited.threads)
    log_capture.redirect(inherited.predict_log, inherited.source, index, _drop_counter(inherited, index))


def _drop_counter(inherited: Inherited, index: int) -> Any:
    """Counts a lost log line where everybody can see it."""
    memory = slots.attach(inherited.memory, slots.Layout(*inherited.layout))
    words = slots.REPLICA_WORDS_OFFSET + index * slots.REPLICA_WORDS_SIZE
    cells = memoryview(memory)[words : words + slots.REPLICA_WORDS_SIZE].cast("Q")

    def dropped() -> None:
        cells[slots.LOG_LINES_DROPPED] += 1

    return dropped


def load(inherited: Inherited, index: int, preloaded: model.Model | None) -> model.Model | None:
    """Load the model, try it where a sample is at hand, and report; None if it failed."""
    started = time.monotonic()
    inherited.report("loading", replica=index, pid=os.getpid())
    try:
        loaded = preloaded or model.Model.load(inherited.artifact)
        tried = try_sample(inherited.sample, loaded)
    except model.LoadFailure as failure:
        inherited.report("failed", replica=index, stage=failure.stage, error=str(failure))
        return None
    except BaseException as error:
        inherited.report("failed", replica=index, stage="sample", error=model.users_traceback(error))
        return None
    inherited.report("ready", replica=index, pid=os.getpid(), seconds=time.monotonic() - started, tried=tried)
    return loaded


def try_sample(path: str, loaded: model.Model) -> bool:
    """One real predict() before any caller's: it warms the model up and proves the fork."""
    if not path:
        return False
    codec.select()[1](loaded.predict(codec.read_sample(path)))
    return True
