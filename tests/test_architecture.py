"""The shape of the source: which room may import which, and the house numbers. Only reads the files."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAX_FILE = 400
MAX_FUNCTION = 40
MAX_PARAMETERS = 6
MAX_METHODS = 20  # all methods counted
MAX_MODULES = 16  # of a room, with its __init__.py
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "base", "misc", "tools", "core"}

# Which room may import which, besides itself; "" is `twofold` itself: errors and settings.  Every arrow
# here is used (no stale grants) and every import is here, those for type checkers included.
ROOMS: dict[str, set[str]] = {
    "": set(),
    "wire": set(),
    "net": {""},
    "reactor": {"native"},
    "shm": set(),
    "telemetry": set(),
    "native": set(),
    "logs": {"", "telemetry"},
    "process": {"", "logs"},
    "cli": {""},
    "server": {"", "net"},
    "server.replica": set(),
    "server.telemetry": {"server.replica", "shm", "telemetry"},
    "server.machine": {"server"},
    "server.archive": {""},
    "server.artifact": {"", "server.archive"},
    "server.environment": {"", "process", "server", "server.archive", "server.artifact"},
    "server.front": {
        "", "logs", "net", "process", "server", "server.replica", "server.telemetry", "telemetry", "wire",
    },
    "server.supervision": {
        "", "logs", "process", "server", "server.artifact", "server.environment", "server.front",
        "server.machine", "server.replica", "server.telemetry",
    },
    "server.validation": {
        "", "process", "server", "server.artifact", "server.environment", "server.machine", "server.replica",
    },
    "server.cli": {
        "", "cli", "logs", "native", "server", "server.artifact", "server.environment", "server.machine",
        "server.supervision", "server.validation",
    },
    "loadbalancer": {"", "logs", "net", "shm", "telemetry"},
    "loadbalancer.http": {"net", "wire"},
    "loadbalancer.balancing": {"loadbalancer"},
    "loadbalancer.bandwidth": {"loadbalancer", "logs"},
    "loadbalancer.access": {"", "loadbalancer", "loadbalancer.http", "logs", "net", "wire"},
    "loadbalancer.proxy": {
        "loadbalancer", "loadbalancer.access", "loadbalancer.balancing", "loadbalancer.bandwidth",
        "loadbalancer.http", "logs", "net", "process", "reactor", "telemetry", "wire",
    },
    "loadbalancer.control": {
        "", "loadbalancer", "loadbalancer.access", "loadbalancer.bandwidth", "logs", "native", "net",
        "process", "telemetry", "wire",
    },
    "loadbalancer.supervision": {
        "", "loadbalancer", "loadbalancer.access", "loadbalancer.bandwidth", "loadbalancer.control",
        "loadbalancer.proxy", "logs", "native", "process",
    },
    "loadbalancer.cli": {"", "cli", "loadbalancer", "loadbalancer.supervision", "logs"},
}  # fmt: skip

# Where a program begins: no module imports these, and they may import every room of their half.
ENTRIES = {
    "__main__": {"server", "loadbalancer"},
    "server.app": {"server"},
    "server.embedded": {"server"},
    "loadbalancer.cli.entry": {"loadbalancer"},
}
ENTRY_IMPORTED_BY = {"loadbalancer.cli.entry": "__main__"}

# Third-party packages, and the only modules that may name them; True: also at the head of the file.
THIRD_PARTY: dict[str, dict[str, bool]] = {
    "yaml": {"settings": False, "server.artifact.artifact": False, "loadbalancer.control.discovery": False},
    "starlette": {
        "server.app": True,
        "server.front.api": True,
        "loadbalancer.control.admin_api": True,
        "loadbalancer.control.status_page": True,
    },
    "uvicorn": {"loadbalancer.control.admin_api": True},
    "orjson": {
        "server.front.api": True,
        "server.replica.codec": False,
        "loadbalancer.control.admin_api": True,
        "loadbalancer.control.status_page": True,
    },
    "uvloop": {"server.front.process": True, "loadbalancer.proxy.process": True},
    "typer": {
        "cli.options": True,
        "cli.program": True,
        "server.cli.commands": True,
        "loadbalancer.cli.commands": True,
        "loadbalancer.cli.balance_ctl": True,
    },
    "rich": {"server.cli.display": False, "loadbalancer.cli.balance_ctl": False},
    "prometheus_client": {"telemetry.prometheus": True},
    "cryptography": {"loadbalancer.access.oci_signature": False},
    "fsspec": {"server.environment.download": False},
    "aiohttp": {"server.environment.download": False},  # comes with fsspec[http]
    "mypyc": {"native.build": False},
    "mypy_extensions": {},  # comes with mypy
    "setuptools": {"native.build": False},
}

# What the supervisors' side must never load, or every instance pays for it in memory and start-up.
WITHOUT_FRAMEWORK = (
    "server.supervision.supervisor", "logs.writer", "server.environment.environment", "server.config",
    "logs.records", "loadbalancer.supervision.supervisor", "loadbalancer.config",
    "loadbalancer.supervision.startup_checks", "loadbalancer.cli.entry",
)  # fmt: skip
FRAMEWORK = {
    "server.front.api", "server.front.asgi", "server.front.process", "server.front.http1",
    "server.front.embedding", "loadbalancer.proxy.process", "loadbalancer.control.controller",
}  # fmt: skip

# Names of types that several modules define, because they mean the same thing in each; any other name has one
# definition.
SAME_MEANING = {
    "Announce": "the function that shows an event of the supervisor; each half has events of its own",
    "Config": "all settings of a program; each half is a program",
    "LogSettings": "the settings of a program's logs",
    "Supervisor": "the parent process of a program",
}

# Rooms of arithmetic and protocol: they touch neither sockets nor clocks nor processes.
PURE = ("wire", "loadbalancer.http", "loadbalancer.balancing")
PURE_MODULES = tuple(
    f"loadbalancer.bandwidth.{name}" for name in ("token_bucket", "fair_queue", "request_rate", "autoscale")
)
CLOCKS = {"asyncio", "select", "signal", "socket", "threading", "time"}


@dataclass(frozen=True)
class Import:
    """One name that a file imports. `top`: when the file itself is imported; not `typing`: when it runs."""

    target: str
    top: bool
    typing: bool
    line: int


def _sources() -> dict[str, Path]:
    """Every module of ours by its name without `twofold.`; `twofold` holds links to both halves."""
    found = {}
    for folder in ("twofold", "server", "loadbalancer"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = list(path.relative_to(ROOT).with_suffix("").parts)
            if "_native" in parts or parts[:2] in (["twofold", "server"], ["twofold", "loadbalancer"]):
                continue
            if parts[0] == "twofold":
                parts = parts[1:]
            if parts[-1] == "__init__":
                parts = parts[:-1]
            found[".".join(parts)] = path
    return found


SOURCES = _sources()


def room(name: str) -> str:
    """The package that a module lies in; of a package its own name."""
    return name if SOURCES[name].name == "__init__.py" else name.rpartition(".")[0]


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(SOURCES[name].read_text("utf-8"))


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
def imports(name: str) -> tuple[Import, ...]:
    """What a module imports: modules of ours by their whole name, others as they are written."""
    found = []
    here = ["twofold", *room(name).split(".")] if room(name) else ["twofold"]
    for node, top, typing in walk(tree(name), True, False):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            assert isinstance(node, ast.ImportFrom)
            start = here[: len(here) - node.level + 1] if node.level else []
            origin = ".".join([*start, *([node.module] if node.module else [])])
            names = [f"{origin}.{a.name}" if origin.startswith("twofold") else origin for a in node.names]
        found += [Import(target, top, typing, node.lineno) for target in names]
    return tuple(found)


def ours(name: str, lazily: bool = True, typing: bool = False) -> set[str]:
    """Modules of ours that a module imports. `from a import b` means the module a.b where there is one."""
    targets = set()
    for found in imports(name):
        counts = (typing or not found.typing) and (lazily or found.top)
        if counts and found.target.partition(".")[0] == "twofold":
            target = found.target.removeprefix("twofold").removeprefix(".")
            targets.add(target if target in SOURCES else target.rpartition(".")[0])
    return targets & SOURCES.keys()


def closure(name: str) -> set[str]:
    """Everything of ours that is loaded by importing `name`."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            waiting += ours(current, lazily=False)
    return seen


@pytest.fixture(params=sorted(SOURCES), ids=lambda name: name or "twofold")
def source(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


# ---------------------------------------------------------------------- rooms


def used_arrows() -> dict[str, set[str]]:
    arrows: dict[str, set[str]] = {name: set() for name in ROOMS}
    for name in SOURCES.keys() - ENTRIES.keys():
        arrows[room(name)] |= {room(target) for target in ours(name, typing=True)} - {room(name)}
    return arrows


def test_there_are_sources() -> None:
    assert len(SOURCES) > 120
    assert {"server.replica.loop", "loadbalancer.supervision.supervisor", "errors"} <= SOURCES.keys()


def test_every_room_stands_in_the_table() -> None:
    assert {room(name) for name in SOURCES} == ROOMS.keys()


def test_rooms_import_exactly_what_the_table_allows() -> None:
    used = used_arrows()
    for name, allowed in ROOMS.items():
        where = f"twofold.{name}".rstrip(".")
        assert used[name] <= allowed, f"{where} may not import {sorted(used[name] - allowed)}"
        assert allowed <= used[name], f"{where} need not import {sorted(allowed - used[name])}: a stale grant"


def test_no_cycle_between_rooms() -> None:
    left = {name: set(allowed) for name, allowed in ROOMS.items()}
    while free := {name for name, allowed in left.items() if not allowed & left.keys()}:
        left = {name: allowed for name, allowed in left.items() if name not in free}
    assert not left, f"import each other: {sorted(left)}"


def test_the_foundation_knows_neither_half() -> None:
    for name, allowed in ROOMS.items():
        if name.partition(".")[0] not in ("server", "loadbalancer"):
            assert not any(other.startswith(("server", "loadbalancer")) for other in allowed), name


def test_the_halves_do_not_know_each_other() -> None:
    for name, allowed in ROOMS.items():
        half = name.partition(".")[0]
        other = {"server": "loadbalancer", "loadbalancer": "server"}.get(half)
        assert not any(other and target.startswith(other) for target in allowed), name


def test_entries_are_imported_by_none_and_keep_to_their_half(source: str) -> None:
    for target in ours(source, typing=True) & ENTRIES.keys():
        assert ENTRY_IMPORTED_BY.get(target) == source, f"{source} imports the entry {target}"
    if source in ENTRIES:
        halves = {target.partition(".")[0] for target in ours(source)} & {"server", "loadbalancer"}
        assert halves <= ENTRIES[source]


def test_no_cycle_of_modules_when_they_are_loaded(source: str) -> None:
    """A function may import what the start of a program loads late."""
    for target in ours(source, lazily=False):
        assert source not in closure(target), f"{source} and {target} import each other"


def test_rooms_are_small_and_say_what_they_mean() -> None:
    modules: dict[str, int] = defaultdict(int)
    for name in SOURCES:
        modules[room(name)] += 1
    assert not {name: count for name, count in modules.items() if count > MAX_MODULES}
    for name in ROOMS:
        text = ast.get_docstring(tree(name))
        assert text and len(text.splitlines()) == 1, f"{name} does not say what it is for"


# ---------------------------------------------------------------------- files


def test_head_says_what_the_file_is(source: str) -> None:
    if SOURCES[source].name == "__init__.py" and not SOURCES[source].read_text().strip():
        return
    text = ast.get_docstring(tree(source))
    assert text and len(text) > 30, f"{source} has no docstring that says what it is"


def test_init_files_do_nothing() -> None:
    for name, path in SOURCES.items():
        if path.name == "__init__.py":
            body = [node for node in tree(name).body if not isinstance(node, ast.Expr)]
            assert all(isinstance(node, ast.Assign) for node in body), f"{path} does something"
            assert len(body) <= 1


def test_names_are_from_the_field(source: str) -> None:
    assert SOURCES[source].stem not in FORBIDDEN_NAMES


def types_of(name: str) -> set[str]:
    """Names of classes, at any depth, and of type aliases at the head of the file."""
    classes = {node.name for node in ast.walk(tree(name)) if isinstance(node, ast.ClassDef)}
    targets = [target for node in tree(name).body if isinstance(node, ast.Assign) for target in node.targets]
    assigned = {target.id for target in targets if isinstance(target, ast.Name)}
    return classes | {each for each in assigned if re.fullmatch("_?[A-Z]+[a-z][A-Za-z0-9]*", each)}


def test_the_name_of_a_type_means_one_thing() -> None:
    definitions: dict[str, list[str]] = defaultdict(list)
    for name in SOURCES:
        for each in types_of(name):
            definitions[each].append(name)
    several = {each: names for each, names in definitions.items() if len(names) > 1}
    assert several.keys() <= SAME_MEANING.keys(), f"several meanings: {several}"
    assert SAME_MEANING.keys() <= several.keys(), "a stale grant"


def test_files_are_short(source: str) -> None:
    assert len(SOURCES[source].read_text().splitlines()) <= MAX_FILE


def test_functions_are_short_and_classes_small(source: str) -> None:
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
            if (missing or node.returns is None) and "# type:" not in SOURCES[source].read_text():
                faults.append(f"{node.name} is not annotated (line {node.lineno})")
        if isinstance(node, ast.ClassDef):
            methods = [n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
            if len(methods) > MAX_METHODS:
                faults.append(f"{node.name} has {len(methods)} methods (line {node.lineno})")
    assert not faults, "\n".join([source, *faults])


def test_import_does_nothing(source: str) -> None:
    """Statements at the head of a file define; they do not act."""
    allowed = (
        ast.Import | ast.ImportFrom | ast.Assign | ast.AnnAssign | ast.FunctionDef | ast.AsyncFunctionDef
        | ast.ClassDef | ast.If | ast.Try | ast.For
    )  # fmt: skip
    for node in tree(source).body:
        if isinstance(node, ast.Expr):
            assert isinstance(node.value, ast.Constant), f"{source}:{node.lineno} acts when imported"
        else:
            assert isinstance(node, allowed), f"{source}:{node.lineno} acts when imported"


# ---------------------------------------------------------------------- the model's interpreter


def replica_modules() -> list[str]:
    return [name for name in SOURCES if name.startswith("server.replica")]


def test_replicas_need_the_standard_library_only() -> None:
    optional = {"orjson"}
    for name in replica_modules():
        for found in imports(name):
            place = f"{name}:{found.line} imports {found.target}"
            if found.target.startswith("twofold"):
                assert found.target.startswith("twofold.server.replica"), place
            else:
                package = found.target.partition(".")[0]
                assert package in sys.stdlib_module_names or package in optional, place
        for node in ast.walk(tree(name)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("twofold"):
                pytest.fail(f"{name}:{node.lineno}: in the model's process our package has another name")


def test_replicas_speak_the_grammar_of_python_3_7() -> None:
    for name in replica_modules():
        path = SOURCES[name]
        ast.parse(path.read_text("utf-8"), filename=str(path), feature_version=(3, 7))


# ---------------------------------------------------------------------- what is loaded, and when


def test_third_party_packages_stay_in_their_place(source: str) -> None:
    for found in imports(source):
        package = found.target.partition(".")[0]
        if package in sys.stdlib_module_names or package == "twofold":
            continue
        places = THIRD_PARTY.get(package)
        assert places is not None, f"{source}:{found.line} imports {package}, which is no dependency"
        if found.typing:
            continue
        assert source in places, f"{source}:{found.line} may not import {package}"
        assert places[source] or not found.top, (
            f"{source}:{found.line} must import {package} where it is used"
        )


def test_no_grant_of_a_third_party_package_is_stale() -> None:
    for package, places in THIRD_PARTY.items():
        for name, at_head in places.items():
            assert name in SOURCES, f"{package} is granted to {name}, which is no module"
            used = [
                found
                for found in imports(name)
                if found.target.partition(".")[0] == package and not found.typing
            ]
            assert used, f"{name} need not import {package}: a stale grant"
            assert not at_head or any(found.top for found in used), (
                f"{name} need not import {package} at its head: a stale grant"
            )


@pytest.mark.parametrize("name", WITHOUT_FRAMEWORK)
def test_the_supervisors_side_loads_no_framework(name: str) -> None:
    loaded = closure(name)
    assert not loaded & FRAMEWORK, f"{name} loads {sorted(loaded & FRAMEWORK)}"
    for module in loaded:
        for found in imports(module):
            if found.top and not found.typing:
                package = found.target.partition(".")[0]
                assert package in sys.stdlib_module_names or package == "twofold", module


def test_pure_rooms_touch_no_clock_and_no_socket() -> None:
    for name in SOURCES:
        if room(name) in PURE or name in PURE_MODULES:
            used = {found.target.partition(".")[0] for found in imports(name) if not found.typing}
            assert not used & CLOCKS, f"{name} imports {sorted(used & CLOCKS)}"


def test_every_dependency_is_used_and_every_use_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + project["optional-dependencies"]["compile"]
    names = (re.split("[>[]", line)[0] for line in lines)
    imported = {"pyyaml": "yaml", "mypy": "mypyc"}
    declared = {imported.get(name, name).replace("-", "_") for name in names}
    declared |= {"aiohttp", "mypy_extensions"}  # they come with fsspec[http] and mypy
    used = {
        found.target.partition(".")[0]
        for name in SOURCES.keys() - set(replica_modules())
        for found in imports(name)
        if found.target.partition(".")[0] in THIRD_PARTY
    }
    assert used == declared


def test_nobody_imports_the_folders_by_their_own_names() -> None:
    """With the root on sys.path, `import server` would load a second copy of the half."""
    for folder in ("twofold", "server", "loadbalancer", "tests", "bench"):
        for path in (ROOT / folder).rglob("*.py"):
            if {"peers", ".peers", ".work"} & set(path.parts):
                continue
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and not node.level:
                    names = [node.module or ""]
                for name in names:
                    assert name.partition(".")[0] not in ("server", "loadbalancer"), f"{path} imports {name}"
