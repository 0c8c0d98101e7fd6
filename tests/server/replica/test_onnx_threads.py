"""onnxruntime gets as many threads as it is told, unless the user has said so himself."""

import os
import subprocess
import sys
import tempfile
import unittest

from runtime import HERE

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
module("onnx_threads").limit_onnxruntime(3)
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
    def probe(self, before, probe=PROBE, package=FAKE):
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "onnxruntime.py"), "w") as file:
                file.write(package)
            code = probe.format(tests=HERE, folder=folder, before=before)
            return subprocess.run(
                [sys.executable, "-c", code], stdout=subprocess.PIPE, timeout=30
            ).stdout.decode()

    def test_before_and_after_the_import(self):
        for before in ("", "import onnxruntime"):
            with self.subTest(before=before):
                self.assertEqual(self.probe(before).strip(), "[(3, 1), (7, 0), (3, 1)] ['CPU']")

    def test_find_spec_imports_nothing(self):
        """Libraries look with find_spec() whether onnxruntime is there, long before it is imported."""
        asking = "import importlib.util; importlib.util.find_spec('onnxruntime')\nimport onnxruntime"
        changed = PROBE.replace("import onnxruntime\n", asking + "\n", 1)
        self.assertNotEqual(changed, PROBE)
        self.assertEqual(self.probe("", changed).strip(), "[(3, 1), (7, 0), (3, 1)] ['CPU']")

    def test_nothing_is_left_behind(self):
        code = PROBE + "print([type(finder).__name__ for finder in sys.meta_path].count('_Finder'))"
        self.assertEqual(self.probe("", code).splitlines()[-1], "0")

    def test_a_users_folder_of_that_name(self):
        code = """
import sys
sys.path[:0] = [{tests!r}, {folder!r}]
from runtime import module
{before}
module("onnx_threads").limit_onnxruntime(3)
import onnxruntime
print(onnxruntime.MINE)
"""
        self.assertEqual(self.probe("", code, "MINE = 1").strip(), "1")


if __name__ == "__main__":
    unittest.main()
