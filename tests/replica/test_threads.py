"""onnxruntime gets as many threads as it is told, unless the user has said so himself."""

import os
import subprocess
import sys
import tempfile
import unittest

FAKE = """
class SessionOptions:
    intra_op_num_threads = 0
    inter_op_num_threads = 0

class InferenceSession:
    def __init__(self, path, sess_options=None, providers=None):
        self.path, self.options, self.providers = path, sess_options, providers
"""
PROBE = """
import sys
sys.path[:0] = [{tests!r}, {folder!r}]
from runtime import module
{before}
module("threads").limit_onnxruntime(3)
import onnxruntime
from onnxruntime import InferenceSession
session = InferenceSession("a", providers=["CPU"])
own = onnxruntime.SessionOptions(); own.intra_op_num_threads = 7
theirs = InferenceSession("b", own)
kept = InferenceSession("c", sess_options=onnxruntime.SessionOptions())
counts = [(s.options.intra_op_num_threads, s.options.inter_op_num_threads) for s in (session, theirs, kept)]
print(counts, session.providers)
"""


class ThreadsTest(unittest.TestCase):
    def probe(self, before):
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "onnxruntime.py"), "w") as file:
                file.write(FAKE)
            tests = os.path.dirname(os.path.abspath(__file__))
            code = PROBE.format(tests=tests, folder=folder, before=before)
            return subprocess.run(
                [sys.executable, "-c", code], stdout=subprocess.PIPE, timeout=30
            ).stdout.decode()

    def test_before_and_after_the_import(self):
        for before in ("", "import onnxruntime"):
            with self.subTest(before=before):
                self.assertEqual(self.probe(before).strip(), "[(3, 1), (7, 0), (3, 1)] ['CPU']")


if __name__ == "__main__":
    unittest.main()
