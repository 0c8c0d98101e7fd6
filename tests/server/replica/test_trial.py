"""The verdict on an artifact: the last line of stdout, whatever the model prints, exits or breaks."""

import json
import os
import subprocess
import sys
import tempfile
import unittest

from runtime import FOLDER

GOOD = "def load_model(): return 2\ndef predict(data, model=load_model()): return [model * x for x in data]\n"


class PreflightTest(unittest.TestCase):
    def verdict(self, score, sample=None, name="sample.json"):
        with tempfile.TemporaryDirectory() as folder:
            path = None
            if sample is not None:
                path = os.path.join(folder, name)
                with open(path, "wb") as file:
                    file.write(sample)
            with open(os.path.join(folder, "score.py"), "w") as file:
                file.write(score)
            asked = json.dumps({"artifact": folder, "sample": path, "threads": 1}).encode()
            done = subprocess.run(
                [sys.executable, "-B", FOLDER, "trial"],
                input=asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=30,
            )  # fmt: skip
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        self.printed = done.stderr.decode()
        return json.loads(done.stdout.decode().splitlines()[-1])

    def stages(self, score, sample=None):
        return {stage["name"]: stage["error"] for stage in self.verdict(score, sample)["stages"]}

    def test_a_model_that_works(self):
        verdict = self.verdict(GOOD, b"[1, 2, 3]")
        self.assertEqual([stage["name"] for stage in verdict["stages"]], ["import", "load", "predict"])
        for stage in verdict["stages"]:
            self.assertEqual(stage["error"], "")
            self.assertGreaterEqual(stage["seconds"], 0)
            self.assertGreater(stage["peak_mb"], 1)
        self.assertEqual(verdict["python"], "%d.%d.%d" % sys.version_info[:3])
        self.assertEqual(verdict["result_preview"], "[2,4,6]")
        self.assertIsNone(verdict["numpy"])

    def test_no_sample_no_predict(self):
        self.assertEqual(self.stages(GOOD), {"import": "", "load": ""})

    def test_memory_is_measured(self):
        score = "def load_model(): return bytearray(b'x') * 50000000\ndef predict(data, model): return 1\n"
        load = self.verdict(score)["stages"][1]
        self.assertGreater(load["memory_mb"], 40)
        self.assertGreater(load["peak_mb"], 50)

    def test_load_model_called_by_the_import_counts_for_the_load_stage(self):
        score = """
import time
def load_model():
    time.sleep(0.3)
    return bytearray(b"x") * 50000000
def predict(data, model=load_model()): return len(model)
"""
        verdict = self.verdict(score)
        imported, load = verdict["stages"]
        self.assertTrue(verdict["loaded_by_import"])
        self.assertEqual((imported["name"], load["name"]), ("import", "load"))
        self.assertLess(imported["seconds"], 0.25)
        self.assertLess(imported["memory_mb"], 20)
        self.assertGreaterEqual(load["seconds"], 0.3)
        self.assertGreater(load["memory_mb"], 40)
        later = self.verdict(score.replace("load_model()):", "None):"))
        self.assertFalse(later["loaded_by_import"])
        self.assertGreaterEqual(later["stages"][1]["seconds"], 0.3)

    def test_a_sample_that_is_not_called_json_is_bytes(self):
        score = "def load_model(): pass\ndef predict(data): return [type(data).__name__, len(data)]\n"
        self.assertEqual(self.verdict(score, b"[1]\xff", "sample.bin")["result_preview"], '["bytes",4]')
        self.assertEqual(self.verdict(score, b"[1]", "sample.JSON")["result_preview"], '["list",1]')

    def test_each_stage_is_blamed_for_itself(self):
        load = "def load_model(): raise ValueError('no weights')\n"
        leaving = "import sys\ndef load_model(): pass\ndef predict(data): sys.exit(0)\n"
        table = [
            ("import does_not_exist\n", None, "import", "does_not_exist"),
            ("import sys\nsys.exit(0)\n", None, "import", "SystemExit"),
            (load + "def predict(data, model): pass\n", None, "load", "no weights"),
            (load + "def predict(data, model=load_model()): pass\n", None, "load", "no weights"),
            ("def load_model(): pass\ndef predict(data, other): pass\n", None, "load", "other"),
            (GOOD, b"{}{", "predict", "line 1"),
            (GOOD, b"7", "predict", "TypeError"),
            ("def load_model(): pass\ndef predict(data): return {1}\n", b"1", "predict", "set is not JSON"),
            (leaving, b"1", "predict", "SystemExit"),
        ]  # fmt: skip
        for score, sample, stage, word in table:
            with self.subTest(score=score, sample=sample):
                found = self.stages(score, sample)
                self.assertEqual([name for name, error in found.items() if error], [stage])
                self.assertIn(word, found[stage])
                self.assertNotIn(FOLDER, found[stage])

    def test_output_of_the_model_is_not_taken_for_the_verdict(self):
        score = """
import os, subprocess, sys
print('{"stages": []}')
os.write(1, b'{"stages": []}\\n')
sys.stdout.write("no newline")
def load_model(): subprocess.call(["echo", "from a child"])
def predict(data):
    print("predicting")
    sys.stdout.close()
    return data
"""
        verdict = self.verdict(score, b'{"a": "' + b"x" * 1000 + b'"}')
        self.assertEqual([stage["error"] for stage in verdict["stages"]], ["", "", ""])
        self.assertEqual(len(verdict["result_preview"]), 200)
        self.assertIn("from a child", self.printed)
        self.assertIn("predicting", self.printed)

    def test_threads_that_never_end_do_not_keep_the_trial(self):
        score = "import threading\nthreading.Thread(target=threading.Event().wait).start()\n" + GOOD
        self.assertEqual(self.stages(score), {"import": "", "load": ""})


if __name__ == "__main__":
    unittest.main()
