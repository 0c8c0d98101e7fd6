"""score.py in all its forms: loaded exactly once, called with data alone, blamed for its own faults."""

import json
import os
import subprocess
import sys
import tempfile
import textwrap
import unittest

from runtime import FOLDER, HERE

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
        with tempfile.TemporaryDirectory() as folder:
            folder = os.path.realpath(folder)
            for name, text in dict(files, score=score).items():
                with open(os.path.join(folder, name + ".py"), "w") as file:
                    file.write(textwrap.dedent(text))
            return self.probe(PROBE, folder, [1] if data is None else data)

    def probe(self, code, folder, data=None):
        """The last line that `code` prints, from JSON."""
        code = code.format(tests=HERE, artifact=folder, data=data)
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=30
        )
        self.assertEqual(done.returncode, 0, done.stderr.decode())
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
            "def predict(data, *, model=load_model()): return [model, len(CALLS)]",
            "def predict(data, *, model): return [model, len(CALLS)]",
            "MODEL = load_model()\ndef predict(data, model=load_model()): return [MODEL, len(CALLS)]",
            "MODEL = load_model()\ndef predict(data): return [MODEL, len(CALLS)]",
            "class K:\n    m = load_model()\ndef predict(data, model=K.m): return [model, len(CALLS)]",
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

    def test_calls_of_load_model_in_bodies_are_left_alone(self):
        score = """
            CALLS = []
            def load_model(size="small"):
                CALLS.append(size)
                return size
            again = lambda: load_model()
            def predict(data, model=load_model("large")): return [model, load_model(), again(), CALLS]
        """
        found = self.outcome(score)["result"]
        self.assertEqual(found, ["large", "small", "small", ["large", "small", "small"]])

    def test_a_failure_that_the_user_catches_is_no_failure(self):
        score = """
            CALLS = []
            def load_model():
                CALLS.append(1)
                if len(CALLS) == 1:
                    raise FileNotFoundError("not yet")
                return "m"
            try:
                MODEL = load_model()
            except FileNotFoundError:
                MODEL = None
            def predict(data, model): return [MODEL, model]
        """
        self.assertEqual(self.outcome(score), {"result": [None, "m"]})

    def test_our_future_imports_are_not_the_users(self):
        score = """
            class K:
                a: int = 1
            def load_model(): return None
            def predict(data): return type(K.__annotations__["a"]).__name__
        """
        self.assertEqual(self.outcome(score), {"result": "type"})

    def test_preloading_imports(self):
        score = """
            import helper
            import json, does_not_exist
            from xml.dom import minidom
            from leaves import *
            raise RuntimeError("score.py must not run")
        """
        code = """
import json, sys
sys.path.insert(0, {tests!r})
from runtime import module
found = module("model").preload_imports({artifact!r})
print(json.dumps([found, "xml.dom.minidom" in sys.modules, "score" in sys.modules]))
"""
        with tempfile.TemporaryDirectory() as folder:
            for name, text in {"score": score, "helper": "", "leaves": "import sys\nsys.exit(0)"}.items():
                with open(os.path.join(folder, name + ".py"), "w") as file:
                    file.write(textwrap.dedent(text))
            found, minidom, ran = self.probe(code, folder)
        errors = {name: error for name, error in found if error}
        self.assertEqual(
            [name for name, _ in found], ["helper", "json", "does_not_exist", "xml.dom", "leaves"]
        )
        self.assertEqual(sorted(errors), ["does_not_exist", "leaves"])
        self.assertIn("SystemExit", errors["leaves"])
        self.assertEqual((minidom, ran), (True, False))

    def test_preloading_what_cannot_be_read(self):
        code = """
import json, sys
sys.path.insert(0, {tests!r})
from runtime import module
model = module("model")
try:
    model.preload_imports({artifact!r})
except model.LoadFailure as failure:
    print(json.dumps([failure.stage, str(failure)]))
"""
        with tempfile.TemporaryDirectory() as folder:
            stage, text = self.probe(code, folder)
            self.assertEqual((stage, len(text.splitlines())), ("import", 1))
            with open(os.path.join(folder, "score.py"), "w") as file:
                file.write("import json\ndef (:\n")
            stage, text = self.probe(code, folder)
            self.assertEqual(stage, "import")
            self.assertIn("SyntaxError", text)
        self.assertEqual(self.probe(code, os.path.join(folder, "nowhere"))[0], "import")

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
        names = (
            "server",
            "loop",
            "model",
            "codec",
            "log_capture",
            "onnx_threads",
            "frame",
            "slots",
            "fork_server",
        )
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
                self.assertNotIn(FOLDER, found["text"])

    def test_a_traceback_keeps_the_users_frames(self):
        score = (
            "def inner():\n    return 1 / 0\ndef load_model():\n    return inner()\ndef predict(data): pass\n"
        )
        text = self.outcome(score)["text"]
        self.assertIn("inner", text)
        self.assertIn("ZeroDivisionError", text)
        self.assertNotIn(FOLDER, text)

    def test_a_traceback_names_the_cause(self):
        score = """
            def load_model():
                try:
                    open("weights.bin")
                except OSError as error:
                    raise RuntimeError("cannot load") from error
            def predict(data): pass
        """
        text = self.outcome(score)["text"]
        self.assertIn("weights.bin", text)
        self.assertTrue(text.endswith("RuntimeError: cannot load"), text)

    def test_a_long_traceback_keeps_its_end(self):
        score = "def load_model(): raise ValueError('x' * 10000 + 'the end')\ndef predict(data): pass\n"
        text = self.outcome(score)["text"]
        self.assertTrue(text.endswith("the end"))
        self.assertLess(len(text), 3100)


if __name__ == "__main__":
    unittest.main()
