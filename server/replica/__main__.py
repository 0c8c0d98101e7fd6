"""Entry point inside the model's interpreter: `python .../server/replica MODE [ARGUMENT]`.

Standard library only, Python 3.7 to 3.14.  Started by path, never installed there: the package
loads itself under a private name, and its folder leaves sys.path, so that a user's own `loop.py`,
`model.py` or `server.py` is never shadowed and never shadows ours.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys

PACKAGE = "_twofold_replica"
MODES = ("fork_server", "trial")


def load_package() -> None:
    """Import this folder under its private name. Raises ImportError."""
    folder = os.path.dirname(os.path.abspath(__file__))
    spec = importlib.util.spec_from_file_location(
        PACKAGE, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
    )
    if spec is None or spec.loader is None:
        raise ImportError("cannot load the replica runtime from " + folder)
    package = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = package
    spec.loader.exec_module(package)
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != folder]


def main() -> None:
    mode = sys.argv[1] if len(sys.argv) > 1 else ""
    if mode not in MODES:
        sys.exit("usage: python server/replica {" + "|".join(MODES) + "} ...")
    load_package()
    importlib.import_module(PACKAGE + "." + mode).main()


if __name__ == "__main__":
    main()
