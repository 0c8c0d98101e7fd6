"""The shape of the source: who imports whom, and the house numbers. Reads the files, imports none."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("server", "loadbalancer")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MAX_FILE = 400
MAX_FUNCTION = 40
MAX_PARAMETERS = 6
MAX_METHODS = 16
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "base", "misc", "tools", "core"}

# Modules of server go by their own names here, those of loadbalancer by the whole one.
BALANCER = "loadbalancer."

# Third-party packages, and the only modules that may name them; `top`: also at the head of the file.
THIRD_PARTY: dict[str, dict[str, bool]] = {
    "yaml": {"settings": False, "artifact": False, "loadbalancer.membership": False},
    "starlette": {
        "app": True,
        "loadbalancer.admin": True,
        "loadbalancer.page": True,
        "loadbalancer.steward": True,
    },
    "uvicorn": {"loadbalancer.admin": True, "loadbalancer.page": True, "loadbalancer.steward": True},
    "orjson": {"app": True, "replica.codec": False, "loadbalancer.admin": True, "loadbalancer.page": True},
    "numpy": {"replica.codec": False},
    "uvloop": {"front": True, "loadbalancer.proxy": True},
    "typer": {"cli": True, "__main__": False, "loadbalancer.cli": True, "loadbalancer.ctl": True},
    "rich": {"display": False, "loadbalancer.ctl": False},
    "prometheus_client": {"metrics": False, "loadbalancer.report": True},
    "cryptography": {"loadbalancer.tls": False, "loadbalancer.signature": False},
    "fsspec": {"fetch": False, "source": False, "environment": False},
    "aiohttp": {"fetch": False},  # comes with fsspec[http]
    "psutil": {"footprint": False},
    "mypyc": {"loadbalancer.compiling": False},
    "setuptools": {"loadbalancer.compiling": False},
}

# Ours: what a module may import at most. A module that is not named here may import the leaves and
# whatever the absence of cycles allows.
LEAVES = {"errors"}
LIMITS: dict[str, set[str]] = {
    "errors": set(),
    "http1": set(),
    "metrics": {"replica"},
    "settings": {"errors"},
    "config": {"settings"},
    "capacity": {"config"},
    "log": {"errors"},
    "finding": {"errors"},
    "artifact": {"errors", "cache", "config", "finding", "source", "tape", "tree", "unpack"},
    "child": {"errors", "log", "environment", "replica"},
    "plumbing": {"config", "errors", "replica"},
    "unix_socket": set(),
    "listeners": {"config", "errors", "unix_socket"},
    "display": {"capacity", "errors", "log", "finding", "check"},
    "__main__": {"errors", "cli", "display", "loadbalancer"},
}
# What the supervisor's side must never load, or every instance pays for it in memory and start-up.
WITHOUT_FRAMEWORK = (
    "supervisor", "scribe", "environment", "config", "log",
    "loadbalancer.supervisor", "loadbalancer.config", "loadbalancer.preflight", "loadbalancer.__main__",
)  # fmt: skip
FRAMEWORK = {"app", "asgi", "front", "http1_protocol", "embed", "loadbalancer.proxy", "loadbalancer.steward"}

# All that the load balancer may take from the instance: leaves, which know nothing of either.
SHARED = {
    "errors", "http1", "log", "outlet", "replica.lineage", "request_ids", "scribe", "settings", "unix_socket",
}  # fmt: skip
# Its arithmetic, which needs neither a socket nor a clock.
ARITHMETIC = {
    BALANCER + name
    for name in (
        "autoscale", "bucket", "budget", "drr", "instance", "outlier", "pool", "rate", "waiting",
    )
}  # fmt: skip
# What may stop and begin again without a request noticing, so that no proxy may know of it.
CONTROL = {
    BALANCER + name
    for name in (
        "admin", "census", "ctl", "limits", "member", "membership", "page", "probe", "report", "state",
        "steward", "trend",
    )
}  # fmt: skip


@dataclass(frozen=True)
class Import:
    """One name that a file imports. `top`: when the file itself is imported; not `typing`: when it runs."""

    target: str
    top: bool
    typing: bool
    line: int


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removeprefix("server.")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def walk(node: ast.AST, top: bool, typing: bool) -> Iterator[tuple[ast.stmt, bool, bool]]:
    for child in ast.iter_child_nodes(node):
        inner_top, inner_typing = top, typing
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            inner_top = False
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            inner_typing = True
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, top, typing
        yield from walk(child, inner_top, inner_typing)


@cache
def imports(path: Path) -> tuple[Import, ...]:
    """Names of ours as `server.x` or `loadbalancer.x`; a relative import is resolved."""
    found = []
    here = list(path.relative_to(ROOT).parent.parts)
    for node, top, typing in walk(tree(path), True, False):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            assert isinstance(node, ast.ImportFrom)
            start = here[: len(here) - node.level + 1] if node.level else []
            origin = ".".join([*start, *([node.module] if node.module else [])])
            # `from server import x` names a module; `from server.x import y` names x.
            names = (
                [f"{origin}.{a.name}" for a in node.names]
                if origin in (*PACKAGES, "server.replica")
                else [origin]
            )
        found += [Import(name, top, typing, node.lineno) for name in names]
    return tuple(found)


def ours(path: Path, lazily: bool = True) -> set[str]:
    """Modules of ours that running this file may load."""
    known = {module(source) for source in SOURCES}
    names = {
        found.target.removeprefix("server.")
        for found in imports(path)
        if found.target.partition(".")[0] in PACKAGES and not found.typing and (lazily or found.top)
    }
    # `from server.replica import frame` is written as server.replica.frame above; a value is not a module.
    return {name if name in known else name.rpartition(".")[0] for name in names} & known


def by_name(name: str) -> Path:
    return ROOT / ("" if name.startswith(BALANCER) else "server") / (name.replace(".", "/") + ".py")


def closure(name: str) -> set[str]:
    """Everything of ours that is loaded by importing `name`."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            waiting += ours(by_name(current), lazily=False)
    return seen


@pytest.fixture(params=SOURCES, ids=module)
def source(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_there_are_sources() -> None:
    assert len(SOURCES) > 20
    assert {by_name("replica.loop"), by_name("loadbalancer.supervisor")} <= set(SOURCES)


def test_head_says_what_the_file_is(source: Path) -> None:
    if source.name == "__init__.py" and not source.read_text().strip():
        return
    text = ast.get_docstring(tree(source))
    assert text and len(text) > 30, f"{module(source)} has no docstring that says what it is"


def test_init_files_do_nothing() -> None:
    for path in SOURCES:
        if path.name == "__init__.py":
            body = [node for node in tree(path).body if not isinstance(node, ast.Expr)]
            assert all(isinstance(node, ast.Assign) for node in body), f"{path} does something"
            assert len(body) <= 1


def test_names_are_from_the_field(source: Path) -> None:
    assert source.stem not in FORBIDDEN_NAMES


def test_files_are_short(source: Path) -> None:
    assert len(source.read_text().splitlines()) <= MAX_FILE


def test_functions_are_short_and_classes_small(source: Path) -> None:
    faults = []
    for node in ast.walk(tree(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            if length > MAX_FUNCTION:
                faults.append(f"{node.name} has {length} lines (line {node.lineno})")
            given = [a for a in (*node.args.posonlyargs, *node.args.args) if a.arg not in ("self", "cls")]
            if len(given) > MAX_PARAMETERS:
                faults.append(f"{node.name} has {len(given)} parameters (line {node.lineno})")
            missing = [a.arg for a in (*given, *node.args.kwonlyargs) if a.annotation is None]
            if (missing or node.returns is None) and "# type:" not in source.read_text():
                faults.append(f"{node.name} is not annotated (line {node.lineno})")
        if isinstance(node, ast.ClassDef):
            public = [n for n in node.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]
            if len(public) > MAX_METHODS:
                faults.append(f"{node.name} has {len(public)} public methods (line {node.lineno})")
    assert not faults, "\n".join([module(source), *faults])


def test_import_does_nothing(source: Path) -> None:
    """Statements at the head of a file define; they do not act."""
    allowed = (
        ast.Import | ast.ImportFrom | ast.Assign | ast.AnnAssign | ast.FunctionDef | ast.AsyncFunctionDef
        | ast.ClassDef | ast.If | ast.Try | ast.For
    )  # fmt: skip
    for node in tree(source).body:
        if isinstance(node, ast.Expr):
            assert isinstance(node.value, ast.Constant), f"{module(source)}:{node.lineno} acts when imported"
        else:
            assert isinstance(node, allowed), f"{module(source)}:{node.lineno} acts when imported"


def test_replicas_need_the_standard_library_only() -> None:
    optional = {"orjson", "numpy"}
    for path in SOURCES:
        if not module(path).startswith("replica."):
            continue
        for found in imports(path):
            place = f"{module(path)}:{found.line} imports {found.target}"
            if found.target.startswith("server"):
                assert found.target.startswith("server.replica"), place
            else:
                package = found.target.partition(".")[0]
                assert package in sys.stdlib_module_names or package in optional, place
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("server"):
                pytest.fail(
                    f"{module(path)}:{node.lineno}: in the model's process our package has another name"
                )


def test_replicas_speak_the_grammar_of_python_3_7() -> None:
    for path in SOURCES:
        if module(path).startswith("replica."):
            ast.parse(path.read_text("utf-8"), filename=str(path), feature_version=(3, 7))


def test_third_party_packages_stay_in_their_place(source: Path) -> None:
    name = module(source)
    for found in imports(source):
        package = found.target.partition(".")[0]
        if package in sys.stdlib_module_names or package in PACKAGES:
            continue
        places = THIRD_PARTY.get(package)
        assert places is not None, f"{name}:{found.line} imports {package}, which is no dependency"
        if found.typing:
            continue
        assert name in places, f"{name}:{found.line} may not import {package}"
        assert places[name] or not found.top, f"{name}:{found.line} must import {package} where it is used"


def test_modules_keep_to_their_limits() -> None:
    for name, allowed in LIMITS.items():
        used = {target.partition(".")[0] for target in ours(by_name(name))}
        assert used <= allowed | LEAVES | {"__init__"}, f"{name} imports {sorted(used - allowed - LEAVES)}"


def test_no_cycles() -> None:
    """Among what is loaded by importing; a function may import what the start of a program loads late."""
    for path in SOURCES:
        name = module(path)
        for target in ours(path, lazily=False):
            assert name not in closure(target), f"{name} and {target} import each other"


@pytest.mark.parametrize("name", WITHOUT_FRAMEWORK)
def test_the_supervisors_side_loads_no_framework(name: str) -> None:
    loaded = closure(name)
    assert not loaded & FRAMEWORK, f"{name} loads {sorted(loaded & FRAMEWORK)}"
    for module_name in loaded:
        for found in imports(by_name(module_name)):
            if found.top and not found.typing:
                package = found.target.partition(".")[0]
                assert package in sys.stdlib_module_names or package in PACKAGES, module_name


def test_the_load_balancer_takes_only_leaves_of_the_instance(source: Path) -> None:
    name = module(source)
    used = ours(source)
    if name.startswith(BALANCER):
        foreign = {target for target in used if not target.startswith(BALANCER)}
        assert foreign <= SHARED, f"{name} imports {sorted(foreign - SHARED)}"
    elif name != "__main__":
        assert not any(target.startswith(BALANCER) for target in used), f"{name} imports the load balancer"
    else:
        assert not any(target.startswith(BALANCER) for target in ours(source, lazily=False))


def test_shared_leaves_know_neither_side() -> None:
    for name in SHARED:
        assert closure(name) <= SHARED | {"replica.__init__"}, name


def test_arithmetic_needs_nothing_else() -> None:
    clocks = {"asyncio", "os", "select", "signal", "socket", "threading", "time"}
    for path in SOURCES:
        if module(path) in ARITHMETIC:
            others = ours(path) - ARITHMETIC - {"loadbalancer.memory"}  # for the numbers of its cells
            assert not others, f"{module(path)} imports {sorted(others)}"
            assert not clocks & {found.target for found in imports(path)}, module(path)


def test_the_data_plane_does_not_know_the_control_plane() -> None:
    reached: set[str] = set()
    waiting = ["loadbalancer.proxy"]
    while waiting:
        if (name := waiting.pop()) not in reached:
            reached.add(name)
            waiting += ours(by_name(name))
    assert not reached & CONTROL


def test_every_dependency_is_used_and_every_use_is_declared() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + project["optional-dependencies"]["compile"]
    names = (re.split("[>[]", line)[0] for line in lines)
    declared = {{"pyyaml": "yaml", "mypy": "mypyc"}.get(name, name).replace("-", "_") for name in names} | {
        "aiohttp"
    }
    used = {
        found.target.partition(".")[0]
        for path in SOURCES
        for found in imports(path)
        if not module(path).startswith("replica.") and found.target.partition(".")[0] in THIRD_PARTY
    }
    assert used == declared
