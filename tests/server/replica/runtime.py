"""Loads the replica runtime as it loads itself: from its folder, under a private name.

Standard library only, so that any interpreter can run these tests with nothing installed:

    pythonX.Y -m unittest discover -s tests/server/replica -t tests/server/replica
"""

import importlib
import importlib.util
import os
import sys

HERE = os.path.dirname(os.path.realpath(__file__))
FOLDER = os.path.realpath(os.path.join(HERE, "..", "..", "..", "server", "replica"))
PACKAGE = "_twofold_replica"


def module(name):
    """A module of the runtime."""
    if PACKAGE not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            PACKAGE, os.path.join(FOLDER, "__init__.py"), submodule_search_locations=[FOLDER]
        )
        sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[PACKAGE])
    return importlib.import_module(PACKAGE + "." + name)
