"""Thread counts that no environment variable can set: onnxruntime's.

Standard library only, Python 3.7 to 3.14.  OpenMP, MKL and OpenBLAS read variables, which the
supervisor sets; onnxruntime takes its counts from SessionOptions alone and otherwise starts a
thread per core in every replica, the commonest slowness of the field.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from typing import Any

TARGET = "onnxruntime"


def limit_onnxruntime(count: int) -> None:
    """From now on a session without counts of its own gets `count` threads. Free if never imported."""
    module = sys.modules.get(TARGET)
    if module is not None:
        _limit(module, count)
    else:
        sys.meta_path.insert(0, _Finder(count))


class _Finder(importlib.abc.MetaPathFinder):
    """Lets the real finders find onnxruntime, and limits it once it has been executed."""

    def __init__(self, count: int) -> None:
        self.count = count

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != TARGET:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            execute, count = spec.loader.exec_module, self.count

            def exec_module(module: Any) -> None:
                execute(module)
                if self in sys.meta_path:  # libraries call find_spec() alone, and import nothing
                    sys.meta_path.remove(self)
                _limit(module, count)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _limit(onnxruntime: Any, count: int) -> None:
    session = getattr(onnxruntime, "InferenceSession", None)
    if session is None:  # a folder of the user's with that name
        return
    plain = session.__init__

    def init(self: Any, path_or_bytes: Any, sess_options: Any = None, *args: Any, **kwargs: Any) -> None:
        options = onnxruntime.SessionOptions() if sess_options is None else sess_options
        if not options.intra_op_num_threads:
            options.intra_op_num_threads = count
            options.inter_op_num_threads = options.inter_op_num_threads or 1
        plain(self, path_or_bytes, options, *args, **kwargs)

    session.__init__ = init
