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
import traceback
from typing import Any

MAX_TRACEBACK = 3000  # characters; the end of a traceback says most
WATCHED = "__twofold_load_model__"


class LoadFailure(Exception):
    """score.py could not be imported ("import"), has no fitting functions ("signature"), or did not load."""

    def __init__(self, stage: str, text: str) -> None:
        super(LoadFailure, self).__init__(text)
        self.stage = stage


class Model:
    """What load_model() and predict() have become: one callable of one argument."""

    def __init__(self, predict: Any) -> None:
        self.predict = predict

    @classmethod
    def load(cls, artifact: str) -> Model:
        """Import score.py from the folder `artifact` and load the model; raises LoadFailure."""
        return cls.from_import(import_score_module(artifact))

    @classmethod
    def from_import(cls, imported: tuple[Any, ...]) -> Model:
        """The model of a score.py that import_score_module() has imported; raises LoadFailure."""
        module, counter = imported
        predict = _functions(module)
        loaded = counter.result
        if not counter.called:  # predict's default did not load it already
            loaded = _guard("load", module.load_model)
        return cls(_bind(predict, loaded))


def call_plainly(load: Any, *args: Any, **kwargs: Any) -> Any:
    return load(*args, **kwargs)


class _Counter:
    """Knows whether importing score.py has already called load_model(), and what came of it.

    `around` makes the call, and may measure it.
    """

    def __init__(self, around: Any) -> None:
        self.around = around
        self.called = False
        self.result: Any = None
        self.error: Any = None

    def call(self, load: Any, *args: Any, **kwargs: Any) -> Any:
        """load_model() as the user's module calls it; the second time without arguments costs nothing."""
        if self.called and not args and not kwargs:
            return self.result
        try:
            self.result = self.around(load, *args, **kwargs)
        except BaseException as error:
            self.error = error
            raise
        self.called = True
        return self.result


class _Watch(ast.NodeTransformer):
    """Sends every load_model() that runs with the import through the counter.

    Bodies of functions run later and stay as they are; their defaults and decorators do not.
    """

    def visit_FunctionDef(self, node: Any) -> Any:
        node.args = self.visit(node.args)
        node.decorator_list = [self.visit(decorator) for decorator in node.decorator_list]
        return node

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: Any) -> Any:
        return node

    def visit_Call(self, node: Any) -> Any:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "load_model":
            node.args.insert(0, node.func)
            node.func = ast.copy_location(ast.Name(WATCHED, ast.Load()), node.func)
        return node


def import_score_module(artifact: str, around: Any = call_plainly) -> tuple[Any, ...]:
    """(module, what its import has loaded); raises LoadFailure."""
    counter = _Counter(around)
    return import_score(enter(artifact), counter), counter


def enter(artifact: str) -> str:
    """Make the artifact the working directory and sys.path[0]; its absolute path."""
    folder = os.path.abspath(artifact)
    _guard("import", lambda: os.chdir(folder))
    if not sys.path or sys.path[0] != folder:
        sys.path.insert(0, folder)
    return folder


def import_score(artifact: str, counter: _Counter) -> Any:
    """The module `score`, executed; `counter` counts calls of load_model() meanwhile; raises LoadFailure."""
    path = os.path.join(artifact, "score.py")
    spec = importlib.util.spec_from_file_location("score", path)
    if spec is None or spec.loader is None or not os.path.isfile(path):
        raise LoadFailure("import", "there is no score.py in " + artifact)
    module = importlib.util.module_from_spec(spec)
    sys.modules["score"] = module

    try:
        loader: Any = spec.loader
        tree = _Watch().visit(ast.parse(loader.get_source("score"), path))
        module.__dict__[WATCHED] = counter.call
        # Without dont_inherit our own `from __future__` would change the meaning of the user's code.
        exec(compile(tree, path, "exec", dont_inherit=True), module.__dict__)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        stage = "load" if error is counter.error else "import"
        raise LoadFailure(stage, users_traceback(error)) from None
    return module


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
    """The traceback, with what caused it, without our own frames and the import machinery's."""
    report = traceback.TracebackException(type(error), error, error.__traceback__)
    chain: list[Any] = [report]
    for part in chain:
        part.stack[:] = [frame for frame in part.stack if not _is_machinery(frame.filename)]
        chain += [cause for cause in (part.__cause__, part.__context__) if cause is not None]
    bare = len(chain) == 1 and not report.stack
    text = "".join(report.format_exception_only() if bare else report.format())
    return (text if len(text) <= MAX_TRACEBACK else "...\n" + text[-MAX_TRACEBACK:]).strip()


def _is_machinery(filename: str) -> bool:
    ours = os.path.dirname(os.path.abspath(__file__)) + os.sep
    imports = os.path.dirname(os.path.abspath(importlib.__file__)) + os.sep
    return filename.startswith("<frozen importlib") or os.path.abspath(filename).startswith((ours, imports))


def preload_imports(artifact: str) -> list[Any]:
    """Import what score.py imports at module level, without running it: [(module, error or "")].

    Raises LoadFailure if score.py cannot be read or is not Python.
    """
    path = os.path.join(enter(artifact), "score.py")
    tree = _guard("import", lambda: ast.parse(_read(path), path))
    results: list[Any] = []
    for node in tree.body:
        if isinstance(node, ast.Import):
            results += [(alias.name, _preload(alias.name, ())) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            results.append((node.module, _preload(node.module, [alias.name for alias in node.names])))
    return results


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _preload(name: str, wanted: Any) -> str:
    """Import a module, and its modules among the names that are wanted of it; the error, or ""."""
    try:
        module = importlib.import_module(name)
        for part in wanted:
            if part != "*" and not hasattr(module, part):
                importlib.import_module(name + "." + part)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: a replica is to meet it, not the fork server
        return "%s: %s" % (type(error).__name__, error)
    return ""
