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

# A replica whose predicts are short takes several requests at once: the wait behind so short a predict
# is negligible, and a wake-up and two calls are saved for each. One long predict ends that for some
# hundred requests; a predict between the two may be the scheduler's doing, and counts at most CAP_NS.
SHORT_PREDICT_NS = 50_000
CAP_NS = 500_000
LONG_PREDICT_NS = 20_000_000
NOT_SHORT_NS = 1 << 40  # some hundred short predicts away from SHORT_PREDICT_NS
NOTHING = bytes(slots.MAILBOX_SIZE)
ADOPTION_TIMEOUT_S = 10.0  # for the subreaper to become the parent


class StopServing(Exception):
    """SIGTERM arrived while the replica held no request."""


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
        self.typical_ns = NOT_SHORT_NS  # moving average of the time in predict()
        self.stopping = False
        self.exit_code = 0
        self.forks: list[int] = []  # not empty in a process that predict() has forked
        log_capture.follow(self.memory)

    def terminate(self, signum: int, stack: Any) -> None:
        """Handle SIGTERM: raises StopServing, in the midst of readv(), where no request is held."""
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
                if not taken:  # every writer has ended, and so has the server
                    break
                self._report([handle(cell) for cell in range(start, start + taken, size)])
                self.memory[start : start + taken] = NOTHING[:taken]  # the claims are settled
        except StopServing:
            pass
        return self.exit_code

    def _learn(self, spent_ns: int) -> None:
        if spent_ns > LONG_PREDICT_NS:
            self.typical_ns = NOT_SHORT_NS
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
        waiting, done, handled = slots.WAITING, slots.DONE, frame.HANDLED
        trim, large = malloc.trimmer(), malloc.LARGE

        def handle(cell: int) -> bytes:
            """Serve the descriptor in a mailbox cell; its completion."""
            slot, generation, length, kind, attempt, _ = unpack_descriptor(memory, cell)
            base = first + slot * stride
            present, state, id_size, _, deadline_ns, handed_in_ns = unpack_header(memory, base)
            outcome, size = frame.SKIPPED, 0
            started_ns = predicted_ns = encoded_ns = handed_in_ns
            if present == generation:  # otherwise the front that handed it in has been replaced
                if state == waiting:
                    log_capture.request = base, id_size
                    outcome, size, started_ns, predicted_ns, encoded_ns = answer(
                        base, length, kind, deadline_ns
                    )
                    log_capture.request = log_capture.NO_REQUEST
                    words[0] += 1
                    learn(predicted_ns - started_ns)
                    if length > large or size > large:
                        trim()
                memory[base + state_offset] = done
            memory[cell + flag_offset] = handled
            queue_us = (started_ns - handed_in_ns) // 1000
            predict_us = (predicted_ns - started_ns) // 1000
            encode_us = (encoded_ns - predicted_ns) // 1000
            return pack(slot, generation, size, outcome, attempt, index, queue_us, predict_us, encode_us, 0)

        return handle

    def _answerer(self) -> Callable[[int, int, int, int], tuple[int, int, int, int, int]]:
        memory, view, clock, json_kind = self.memory, self.view, time.monotonic_ns, frame.JSON
        loads, dumps, predict, failed = self.loads, self.dumps, self.predict, self.failed
        header, room, limit = slots.SLOT_HEADER_SIZE, self.layout.answer_offset, self.layout.max_answer
        forks = self.forks

        def answer(base: int, length: int, kind: int, deadline_ns: int) -> tuple[int, int, int, int, int]:
            """(outcome, size of the answer, ns at which predict began, had ended, its result was encoded)."""
            started_ns = predicted_ns = 0
            try:
                body = view[base + header : base + header + length]
                data = loads(body) if kind == json_kind else bytes(body)
                started_ns = clock()
                if started_ns > deadline_ns:
                    return frame.SKIPPED, 0, started_ns, started_ns, started_ns
                result = predict(data)
                predicted_ns = clock()
                payload = dumps(result)
                size = len(payload)
                if forks:
                    end_of_fork(None)
                if size > limit:
                    raise AnswerTooLarge("the answer has %d bytes, max_answer_mb allows %d" % (size, limit))
                memory[base + room : base + room + size] = payload
                return frame.ANSWERED, size, started_ns, predicted_ns, clock()
            except BaseException as error:
                now_ns = clock()
                outcome, size = failed(error, base, not started_ns)
                return outcome, size, started_ns or now_ns, predicted_ns or now_ns, now_ns

        return answer

    def failed(self, error: BaseException, base: int, decoding: bool) -> tuple[int, int]:
        """(outcome, size of the reason in the slot); the traceback goes to the log and not to the caller."""
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
    """End a child that predict() has forked and that returns: request and mailbox are its parent's."""
    code = 0
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        print(model.users_traceback(error), file=sys.stderr)
        code = 1
    log_capture.finish()
    os._exit(code & 255)


def be_replica(inherited: Inherited, order: dict[str, Any], preloaded: model.Model | None) -> None:
    """Serve as a replica that was just forked. Never returns."""
    code = EXIT_LOAD_FAILED
    index = order["replica"]
    try:
        settle(inherited, order)
        loaded = load(inherited, index, preloaded)
        if loaded is not None:
            gc.collect()
            gc.freeze()  # the model is not garbage: a collection during a request need not visit it
            if order["spare"]:
                signal.sigwait([signal.SIGUSR1])  # from the supervisor: this spare is needed
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
    """Detach from the fork server: parent, group, signals, environment, streams."""
    index = order["replica"]
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    os.setpgid(0, 0)  # whatever predict() forks ends with this replica
    until_s = time.monotonic() + ADOPTION_TIMEOUT_S
    while os.getppid() != inherited.supervisor and time.monotonic() < until_s:
        time.sleep(0.001)
    prctl.die_with_parent(inherited.supervisor)
    with open("/proc/self/oom_score_adj", "w") as score:
        score.write("500")  # when memory runs out the kernel should choose a replica, not a front
    faulthandler.enable(inherited.crashes[index])
    os.environ.update(order["variables"])
    onnx_threads.limit_onnxruntime(inherited.threads)
    log_capture.redirect(inherited.predict_log, inherited.source, index, _drop_counter(inherited, index))


def _drop_counter(inherited: Inherited, index: int) -> Any:
    """Counts a lost log line in this replica's words, which fronts read."""
    memory = slots.attach(inherited.memory, slots.Layout(*inherited.layout))
    words = slots.REPLICA_WORDS_OFFSET + index * slots.REPLICA_WORDS_SIZE
    cells = memoryview(memory)[words : words + slots.REPLICA_WORDS_SIZE].cast("Q")

    def dropped() -> None:
        cells[slots.LOG_LINES_DROPPED] += 1

    return dropped


def load(inherited: Inherited, index: int, preloaded: model.Model | None) -> model.Model | None:
    """Load the model, try it where a sample is at hand, and report; None if it failed."""
    started_s = time.monotonic()
    inherited.report("loading", replica=index, pid=os.getpid())
    try:
        loaded = preloaded or model.Model.load(inherited.artifact)
        try_sample(inherited.sample, loaded)
    except model.LoadFailure as failure:
        inherited.report("failed", replica=index, stage=failure.stage, error=str(failure))
        return None
    except BaseException as error:
        inherited.report("failed", replica=index, stage="sample", error=model.users_traceback(error))
        return None
    inherited.report("ready", replica=index, pid=os.getpid(), load_s=time.monotonic() - started_s)
    return loaded


def try_sample(path: str, loaded: model.Model) -> None:
    """One real predict() before any caller's: it warms the model up and proves the fork."""
    if path:
        codec.select()[1](loaded.predict(codec.read_sample(path)))
