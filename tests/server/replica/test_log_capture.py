"""Prints and logs become records; nothing that a model prints may harm or block it."""

import io
import json
import logging
import os
import subprocess
import sys
import threading
import unittest

from runtime import module

log_capture = module("log_capture")
slots = module("slots")


class Captured:
    """sys.stdout and sys.stderr redirected to a pipe of ours, for the length of a `with`."""

    def __init__(self, size=1 << 20):
        self.size = size
        self.dropped = 0

    def drop(self):
        self.dropped += 1

    def __enter__(self):
        self.streams = sys.stdout, sys.stderr
        self.read, self.write = os.pipe()
        os.set_blocking(self.read, False)
        os.set_blocking(self.write, False)
        import fcntl

        fcntl.fcntl(self.write, 1031, self.size)  # F_SETPIPE_SZ
        log_capture.redirect(self.write, "source", 3, self.drop)
        return self

    def __exit__(self, *error):
        log_capture.finish()
        sys.stdout, sys.stderr = self.streams
        os.close(self.write)
        self.raw = b""
        while True:
            part = os.read(self.read, 1 << 20)
            if not part:
                break
            self.raw += part
        os.close(self.read)
        log_capture.request = log_capture.NO_REQUEST

    @property
    def records(self):
        return [json.loads(line.decode()) for line in self.raw.splitlines()]

    @property
    def messages(self):
        return [record["data"]["message"] for record in self.records]


class OutputTest(unittest.TestCase):
    def test_the_envelope(self):
        with Captured() as captured:
            log_capture.follow(bytes(64 + slots.REQUEST_ID_OFFSET) + b"A/B/C")
            log_capture.request = (64, 5)
            print("hello")
            print("trouble", file=sys.stderr)
        first, second = captured.records
        self.assertEqual(first["type"], "com.oraclecloud.datascience.modeldeployment.predict")
        self.assertEqual((first["source"], first["specversion"]), ("source", "1.0"))
        self.assertEqual(first["time"], first["data"]["logEmissionTime"])
        self.assertEqual(
            {key: first["data"][key] for key in ("message", "opcRequestId", "stream", "replica")},
            {"message": "hello", "opcRequestId": "A/B/C", "stream": "stdout", "replica": 3},
        )
        self.assertEqual(second["data"]["stream"], "stderr")
        self.assertNotEqual(first["id"], second["id"])

    def test_lines_are_what_ends_with_a_newline(self):
        with Captured() as captured:
            print("a", end="", flush=True)
            print("b")
            print("c\nd\n\ne")
            sys.stdout.write("unfinished")
        self.assertEqual(captured.messages, ["ab", "c", "d", "", "e", "unfinished"])

    def test_long_lines_are_split_into_atomic_records(self):
        for text in ("x" * 1000000, "\u00e9\u4e2d\U0001f600" * 5000, '"\\\x01' * 4000):
            with Captured() as captured:
                print(text)
            if not captured.dropped:
                self.assertEqual("".join(captured.messages), text)
            self.assertTrue(all(len(line) < 4096 for line in captured.raw.splitlines()))

    def test_a_full_pipe_drops_and_counts(self):
        with Captured(4096) as captured:
            for number in range(1000):
                print("line", number)
        self.assertGreater(captured.dropped, 900)
        self.assertEqual(len(captured.records) + captured.dropped, 1000)

    def test_a_pipe_without_a_reader(self):
        with Captured() as captured:
            end = captured.write
            os.dup2(os.open(os.devnull, os.O_RDONLY), end)  # writing there fails
            print("lost")
            self.assertEqual(captured.dropped, 1)

    def test_threads_do_not_mix_their_lines(self):
        def talk(word):
            for _ in range(50):
                print(word * 20)

        with Captured() as captured:
            threads = [threading.Thread(target=talk, args=(word,)) for word in "abcd"]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
        self.assertEqual(sorted(captured.messages), sorted([word * 20 for word in "abcd" for _ in range(50)]))

    def test_what_a_stream_can_do(self):
        with Captured() as captured:
            sys.stdout.buffer.write(b"bytes \xff\n")
            sys.stdout.writelines(["one\n", "two\n"])
            self.assertFalse(sys.stdout.isatty())
            self.assertEqual((sys.stdout.fileno(), sys.stderr.fileno()), (1, 2))
            self.assertTrue(sys.stdout.writable())
            with self.assertRaises(TypeError):
                sys.stdout.write(b"bytes")
        self.assertEqual(captured.messages, ["bytes \ufffd", "one", "two"])

    def test_characters_may_come_in_parts(self):
        with Captured() as captured:
            for byte in "h\u00e9 \U0001f600\n".encode():
                sys.stdout.buffer.write(bytes([byte]))
            sys.stdout.buffer.flush()
            sys.stderr.buffer.write(bytearray(b"and\n"))
            sys.stderr.buffer.write(memoryview(b"views\n"))
        self.assertEqual(captured.messages, ["h\u00e9 \U0001f600", "and", "views"])

    def test_what_programs_do_to_standard_streams(self):
        with Captured() as captured:
            sys.stdout.reconfigure(encoding="utf-8", line_buffering=True)
            wrapped = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8", line_buffering=True)
            print("wrapped", file=wrapped)
            wrapped.close()
            sys.stderr.close()
            print("after close", file=sys.stderr)
            print("and on")
        self.assertEqual(captured.messages, ["wrapped", "after close", "and on"])

    def test_a_line_that_never_ends_takes_little_memory(self):
        """Holding a progress bar whole would copy all of it at each write."""
        parts = ["\r%6d of 20000 done" % number for number in range(20000)]
        with Captured() as captured:
            for part in parts:
                sys.stderr.write(part)
            early = os.read(captured.read, 1 << 20)
        sent = "".join(json.loads(line.decode())["data"]["message"] for line in early.splitlines())
        self.assertLess(len("".join(parts)) - len(sent), 4096)
        self.assertEqual(sent + "".join(captured.messages), "".join(parts))

    def test_half_a_surrogate_pair_is_no_invalid_json(self):
        with Captured() as captured:
            print("a\ud800b")
        self.assertEqual(captured.messages, ["a?b"])
        self.assertNotIn(b"\\ud800", captured.raw)

    def test_handlers_made_before_follow(self):
        logger = logging.getLogger("made.before")
        log_file = io.StringIO()
        handlers = [logging.StreamHandler(sys.stderr), logging.StreamHandler(log_file)]
        logger.propagate = False
        try:
            for handler in handlers:
                logger.addHandler(handler)
            with Captured() as captured:
                logger.warning("said")
        finally:
            for handler in handlers:
                logger.removeHandler(handler)
        self.assertEqual(captured.messages, ["said"])
        self.assertEqual(log_file.getvalue(), "said\n")

    def test_logging_configured_by_the_model_arrives(self):
        code = (
            "import sys, os; sys.path.insert(0, %r); from runtime import module\n"
            "log_capture = module('log_capture');"
            "log_capture.redirect(1, 's', 0); import logging; logging.basicConfig(level='INFO');"
            "logging.info('from logging'); logging.warning('again'); log_capture.finish()"
        ) % os.path.dirname(os.path.abspath(__file__))
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, timeout=30)
        messages = [json.loads(line.decode())["data"]["message"] for line in done.stdout.splitlines()]
        self.assertEqual(messages, ["INFO:root:from logging", "WARNING:root:again"])


if __name__ == "__main__":
    unittest.main()
