"""score.py in all its forms: loaded exactly once, called with data alone, blamed for its own faults."""

import os
import subprocess
import sys
import tempfile
import textwrap
import unittest

from runtime import FOLDER

PROBE = """
import importlib.util, json, sys
sys.path.insert(0, {tests!r})
from runtime import module
model = module("model")
try:
    loaded = model.Model.load({artifact!r})
    result = loaded.predict({data!r})
    print(json.dumps({{"result": result}}))
except model.LoadFailure as failure:
    print(json.dumps({{"stage": failure.stage, "text": str(failure)}}))
"""


class ModelTest(unittest.TestCase):
    """Each case in a process of its own, since a model changes the process that loads it."""

    def outcome(self, score, data=None, **files):
        import json

        with tempfile.TemporaryDirectory() as folder:
            folder = os.path.realpath(folder)
            for name, text in dict(files, score=score).items():
                with open(os.path.join(folder, name + ".py"), "w") as file:
                    file.write(textwrap.dedent(text))
            tests = os.path.dirname(os.path.abspath(__file__))
            code = PROBE.format(tests=tests, artifact=folder, data=data if data is not None else [1])
            done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, timeout=30)
            return json.loads(done.stdout.decode().splitlines()[-1])

    def test_load_model_is_called_once(self):
        count = """
            CALLS = []
            def load_model():
                CALLS.append(1)
                return "m"
        """
        for predict in (
            "def predict(data, model=load_model()): return [model, len(CALLS)]",
            "def predict(data, model=None): return [model, len(CALLS)]",
            "def predict(data, model): return [model, len(CALLS)]",
            "def predict(data, model=load_model(), input_schema_path='x'): return [model, len(CALLS)]",
        ):
            with self.subTest(predict=predict):
                self.assertEqual(self.outcome(textwrap.dedent(count) + predict), {"result": ["m", 1]})
        self.assertEqual(
            self.outcome(textwrap.dedent(count) + "def predict(data): return len(CALLS)"), {"result": 1}
        )

    def test_a_cached_load_model(self):
        score = """
            import functools
            @functools.lru_cache(maxsize=10)
            def load_model(name="a"):
                return name
            def predict(data, model=load_model()):
                return model
        """
        self.assertEqual(self.outcome(score), {"result": "a"})

    def test_cwd_and_path_are_the_artifact(self):
        score = """
            import os, sys
            import helper
            def load_model(): return None
            def predict(data): return [helper.NAME, os.getcwd() == os.path.dirname(os.path.abspath(__file__)),
                                       sys.path[0] == os.getcwd(), __name__]
        """
        found = self.outcome(score, helper="NAME = 'mine'")["result"]
        self.assertEqual(found, ["mine", True, True, "score"])

    def test_users_modules_with_our_names(self):
        names = ("server", "loop", "model", "codec", "output", "threads", "frame", "slots", "nursery")
        score = "import {}\ndef load_model(): return None\ndef predict(data): return [{}]".format(
            ", ".join(names), ", ".join(name + ".WHOSE" for name in names)
        )
        found = self.outcome(score, **{name: "WHOSE = 'user'" for name in names})
        self.assertEqual(found, {"result": ["user"] * len(names)})

    def test_failures_name_the_stage_and_the_users_line(self):
        table = [
            ("import does_not_exist\n", "import", "does_not_exist"),
            ("def load_model(:\n", "import", "SyntaxError"),
            ("raise SystemExit(3)\n", "import", "SystemExit"),
            (
                "def load_model(): raise ValueError('no weights')\ndef predict(data): pass\n",
                "load",
                "no weights",
            ),
            (
                "def load_model(): raise ValueError('no weights')\ndef predict(data, m=load_model()): pass\n",
                "load",
                "no weights",
            ),
            ("import sys\ndef load_model(): sys.exit(0)\ndef predict(data): pass\n", "load", "SystemExit"),
            ("def predict(data): pass\n", "signature", "load_model"),
            ("def load_model(): pass\n", "signature", "predict"),
            ("def load_model(): pass\ndef predict(data, other): pass\n", "signature", "other"),
            ("def load_model(): pass\ndef predict(): pass\n", "signature", "data"),
        ]
        for score, stage, word in table:
            with self.subTest(score=score):
                found = self.outcome(score)
                self.assertEqual(found.get("stage"), stage, found)
                self.assertIn(word, found["text"])
                self.assertNotIn(os.path.realpath(FOLDER), found["text"])

    def test_a_traceback_keeps_the_users_frames(self):
        score = (
            "def inner():\n    return 1 / 0\ndef load_model():\n    return inner()\ndef predict(data): pass\n"
        )
        text = self.outcome(score)["text"]
        self.assertIn("inner", text)
        self.assertIn("ZeroDivisionError", text)


if __name__ == "__main__":
    unittest.main()
