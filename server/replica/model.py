"""The user's model: import score.py, load it once, call predict() with one argument.

Standard library only, Python 3.7 to 3.14.  Changes the working directory and sys.path of this
process, because the contract says so: both are the artifact's folder.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import os
import sys
import time
import traceback
from typing import Any

MAX_TRACEBACK = 3000


class LoadFailure(Exception):
    """score.py could not be imported ("import"), has no fitting functions ("signature"), or did not load."""

    def __init__(self, stage: str, text: str) -> None:
        super(LoadFailure, self).__init__(text)
        self.stage = stage


class Model:
    """What load_model() and predict() have become: one callable of one argument."""

    def __init__(self, name: str, predict: Any, load_seconds: float) -> None:
        self.name = name
        self.predict = predict
        self.load_seconds = load_seconds

    @classmethod
    def load(cls, artifact: str) -> Model:
        """Import score.py from the folder `artifact` and load the model; raises LoadFailure."""
        return cls.from_import(artifact, import_score_module(artifact))

    @classmethod
    def from_import(cls, artifact: str, imported: tuple[Any, ...]) -> Model:
        """The model of a score.py that import_score_module() has imported."""
        module, counter, started = imported
        predict = _functions(module)
        loaded = counter.result
        if not counter.called:  # predict's default did not load it already
            loaded = _guard("load", module.load_model)
        name = os.path.basename(os.path.abspath(artifact))
        return cls(name, _bind(predict, loaded), time.monotonic() - started)


class _Counter:
    """Knows whether importing score.py has already called load_model(), and what came of it."""

    def __init__(self) -> None:
        self.called = False
        self.result: Any = None


def import_score_module(artifact: str) -> tuple[Any, ...]:
    """(module, what its import has loaded, when it began); raises LoadFailure."""
    started = time.monotonic()
    enter(artifact)
    counter = _Counter()
    return import_score(artifact, counter), counter, started


def enter(artifact: str) -> None:
    """Working directory and sys.path[0] are the artifact."""
    os.chdir(artifact)
    if not sys.path or sys.path[0] != artifact:
        sys.path.insert(0, artifact)


def import_score(artifact: str, counter: _Counter) -> Any:
    """The module `score`, executed; `counter` learns of a load_model() called by a default value."""
    path = os.path.join(artifact, "score.py")
    spec = importlib.util.spec_from_file_location("score", path)
    if spec is None or spec.loader is None or not os.path.isfile(path):
        raise LoadFailure("import", "there is no score.py in " + artifact)
    module = importlib.util.module_from_spec(spec)
    sys.modules["score"] = module

    loader: Any = spec.loader

    def run() -> None:
        source = loader.get_source("score")
        tree = ast.parse(source, path)
        code = compile(_watched(tree), path, "exec")
        module.__dict__["__twofold_loaded__"] = lambda load: _loaded(load, counter)
        exec(code, module.__dict__)

    _guard("import", run)
    return module


def _loaded(load: Any, counter: _Counter) -> Any:
    counter.result = _guard("load", load)
    counter.called = True
    return counter.result


def _watched(tree: ast.Module) -> ast.Module:
    """In predict's defaults, load_model() is called through us, so that it is called exactly once."""
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef) or node.name != "predict":
            continue
        defaults = node.args.defaults
        for index, default in enumerate(defaults):
            if (
                isinstance(default, ast.Call)
                and isinstance(default.func, ast.Name)
                and default.func.id == "load_model"
                and not default.args
                and not default.keywords
            ):
                through = ast.Call(
                    func=ast.Name("__twofold_loaded__", ast.Load()), args=[default.func], keywords=[]
                )
                defaults[index] = ast.fix_missing_locations(ast.copy_location(through, default))
    return tree


def _functions(module: Any) -> Any:
    for name in ("load_model", "predict"):
        if not callable(getattr(module, name, None)):
            raise LoadFailure("signature", "score.py has no function %s()" % name)
    return module.predict


def _bind(predict: Any, model: Any) -> Any:
    """predict with everything but `data` given; the function itself where nothing is to be given."""
    try:
        parameters = list(inspect.signature(predict).parameters.values())
    except (TypeError, ValueError):
        return predict
    wants = [p for p in parameters[1:] if p.name == "model" and (p.default is p.empty or p.default is None)]
    missing = [
        p.name
        for p in parameters[1:]
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name != "model"
    ]
    if not parameters or missing:
        names = ", ".join(missing) or "no argument at all"
        raise LoadFailure("signature", "predict() must be callable with data alone; it wants " + names)
    if not wants:
        return predict
    return lambda data: predict(data, model=model)


def _guard(stage: str, call: Any) -> Any:
    """What `call` returns; whatever it raises is a LoadFailure with the user's frames."""
    try:
        return call()
    except (KeyboardInterrupt, LoadFailure):
        raise
    except BaseException as error:
        raise LoadFailure(stage, users_traceback(error)) from None


def users_traceback(error: BaseException) -> str:
    """The traceback without our own frames and the import machinery's."""
    ours = os.path.dirname(os.path.abspath(__file__))
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(ours) and "importlib" not in frame.filename
    ]
    lines = traceback.format_list(frames) + traceback.format_exception_only(type(error), error)
    return "".join(lines)[-MAX_TRACEBACK:].strip()


def preload_imports(artifact: str) -> list[Any]:
    """Import what score.py imports at module level, without running it: [(module, error or "")]."""
    enter(artifact)
    with open(os.path.join(artifact, "score.py"), "rb") as file:
        try:
            tree = ast.parse(file.read(), "score.py")
        except SyntaxError as error:
            text = "".join(traceback.format_exception_only(type(error), error)).strip()
            raise LoadFailure("import", text) from None
    names = []
    for node in tree.body:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.append(node.module)
    results = []
    for name in names:
        try:
            importlib.import_module(name)
            results.append((name, ""))
        except Exception as error:
            results.append((name, "%s: %s" % (type(error).__name__, error)))
    return results
