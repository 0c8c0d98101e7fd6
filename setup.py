"""Which folders make up the package `twofold`, and its compiled form as a part of a wheel.

In a checkout `twofold/server` and `twofold/loadbalancer` are links to the folders at the top level.
An archive that has lost the links installs all the same: the mapping below names the folders.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HALVES = ("server", "loadbalancer")
HERE = Path(__file__).parent
COMPILED = Path(
    tempfile.gettempdir(), "none"
)  # replaced by the folder that a wheel's build has compiled into


def packages():
    foundation = find_packages("twofold", exclude=[*HALVES, *(f"{half}.*" for half in HALVES)])
    found = ["twofold", *(f"twofold.{name}" for name in foundation)]
    for half in HALVES:
        found += [f"twofold.{half}", *(f"twofold.{half}.{name}" for name in find_packages(half))]
    return found


class BuildPy(build_py):
    """Python files, and the compiled form if there is one."""

    def run(self):
        super().run()
        if COMPILED.is_dir():
            shutil.copytree(COMPILED, Path(self.build_lib, "twofold", "_native"), dirs_exist_ok=True)


class BdistWheel(bdist_wheel):
    """A wheel of this platform where the hot path can be compiled, otherwise one of every platform."""

    def run(self):
        global COMPILED
        with tempfile.TemporaryDirectory() as scratch:
            if compiled_into(Path(scratch)):
                COMPILED, self.root_is_pure = Path(scratch), False
            super().run()


def compiled_into(scratch):
    """Whether the compiled form lies in `scratch`. Without a compiler the package is complete, but slower."""
    if os.environ.get("TWOFOLD_INTERPRETED"):
        return False
    # Lay the tree out as it will be installed: an archive may have lost the links.
    tree = scratch.with_name(scratch.name + "-tree")
    try:
        shutil.copytree(HERE / "twofold", tree / "twofold", ignore=shutil.ignore_patterns("_native", *HALVES))
        for half in HALVES:
            shutil.copytree(HERE / half, tree / "twofold" / half)
        sys.path.insert(0, str(tree))
        from twofold.native import build, load

        made = HERE / "twofold" / "_native" / load.folder().name
        if (made / load.MARK).is_file() and (made / load.MARK).read_text() == load.source():
            shutil.copytree(made, scratch / made.name)  # the checkout has been compiled already
        else:
            build.compile_into(scratch / made.name)
        return True
    except Exception as error:  # a wheel without it works
        print(f"twofold: the hot path is not compiled and will be interpreted: {error}", file=sys.stderr)
        return False
    finally:
        shutil.rmtree(tree, ignore_errors=True)
        sys.path[:] = [entry for entry in sys.path if entry != str(tree)]


setup(
    packages=packages(),
    package_dir={"twofold": "twofold", **{f"twofold.{half}": half for half in HALVES}},
    package_data={"twofold.loadbalancer.control": ["status.html"]},
    cmdclass={"build_py": BuildPy, "bdist_wheel": BdistWheel},
)
