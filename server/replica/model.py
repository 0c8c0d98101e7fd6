"""The user's model: import score.py, load it once, call predict() with one argument.

Standard library only, Python 3.7 to 3.14.  Changes the working directory and sys.path of this
process, because the contract says so: both are the artifact's folder.
"""

import ast
import importlib
import importlib.util
import inspect
import os
import sys
import time
import traceback

MAX_TRACEBACK = 3000


class LoadFailure(Exception):
    """score.py could not be imported ("import"), has no fitting functions ("signature"), or did not load."""

    def __init__(self, stage, text):
        # type: (str, str) -> None
        super(LoadFailure, self).__init__(text)
        self.stage = stage


class Model:
    """What load_model() and predict() have become: one callable of one argument."""

    def __init__(self, name, predict, load_seconds):
        # type: (str, object, float) -> None
        self.name = name
        self.predict = predict
        self.load_seconds = load_seconds

    @classmethod
    def load(cls, artifact):
        # type: (str) -> Model
        """Import score.py from the folder `artifact` and load the model; raises LoadFailure."""
        return cls.from_import(artifact, import_score_module(artifact))

    @classmethod
    def from_import(cls, artifact, imported):
        # type: (str, tuple) -> Model
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

    def __init__(self):
        # type: () -> None
        self.called = False
        self.result = None  # type: object


def import_score_module(artifact):
    # type: (str) -> tuple
    """(module, what its import has loaded, when it began); raises LoadFailure."""
    started = time.monotonic()
    enter(artifact)
    counter = _Counter()
    return import_score(artifact, counter), counter, started


def enter(artifact):
    # type: (str) -> None
    """Working directory and sys.path[0] are the artifact."""
    os.chdir(artifact)
    if not sys.path or sys.path[0] != artifact:
        sys.path.insert(0, artifact)


def import_score(artifact, counter):
    # type: (str, _Counter) -> object
    """The module `score`, executed; `counter` learns of a load_model() called by a default value."""
    path = os.path.join(artifact, "score.py")
    spec = importlib.util.spec_from_file_location("score", path)
    if spec is None or spec.loader is None or not os.path.isfile(path):
        raise LoadFailure("import", "there is no score.py in " + artifact)
    module = importlib.util.module_from_spec(spec)
    sys.modules["score"] = module

    def run():
        # type: () -> None
        source = spec.loader.get_source("score")  # type: ignore[union-attr]
        tree = ast.parse(source, path)
        code = compile(_watched(tree), path, "exec")
        module.__dict__["__twofold_loaded__"] = lambda load: _loaded(load, counter)
        exec(code, module.__dict__)

    _guard("import", run)
    return module


def _loaded(load, counter):
    # type: (object, _Counter) -> object
    counter.result = _guard("load", load)
    counter.called = True
    return counter.result


def _watched(tree):
    # type: (ast.Module) -> ast.Module
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
                through = ast.Call(func=ast.Name("__twofold_loaded__", ast.Load()), args=[default.func], keywords=[])
                defaults[index] = ast.fix_missing_locations(ast.copy_location(through, default))
    return tree


def _functions(module):
    # type: (object) -> object
    for name in ("load_model", "predict"):
        if not callable(getattr(module, name, None)):
            raise LoadFailure("signature", "score.py has no function %s()" % name)
    return module.predict  # type: ignore[attr-defined]


def _bind(predict, model):
    # type: (object, object) -> object
    """predict with everything but `data` given; the function itself where nothing is to be given."""
    try:
        parameters = list(inspect.signature(predict).parameters.values())  # type: ignore[arg-type]
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
    return lambda data: predict(data, model=model)  # type: ignore[operator]


def _guard(stage, call):
    # type: (str, object) -> object
    """What `call` returns; whatever it raises is a LoadFailure with the user's frames."""
    try:
        return call()  # type: ignore[operator]
    except (KeyboardInterrupt, LoadFailure):
        raise
    except BaseException as error:
        raise LoadFailure(stage, users_traceback(error)) from None


def users_traceback(error):
    # type: (BaseException) -> str
    """The traceback without our own frames and the import machinery's."""
    ours = os.path.dirname(os.path.abspath(__file__))
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(ours) and "importlib" not in frame.filename
    ]
    lines = traceback.format_list(frames) + traceback.format_exception_only(type(error), error)
    return "".join(lines)[-MAX_TRACEBACK:].strip()


def preload_imports(artifact):
    # type: (str) -> list
    """Import what score.py imports at module level, without running it: [(module, error or "")]."""
    enter(artifact)
    with open(os.path.join(artifact, "score.py"), "rb") as file:
        try:
            tree = ast.parse(file.read(), "score.py")
        except SyntaxError as error:
            raise LoadFailure("import", "".join(traceback.format_exception_only(type(error), error)).strip())
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
