"""Class attributes for mypyc.  Touches nothing, and has no effect at run time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

T = TypeVar("T")

if TYPE_CHECKING:
    from mypy_extensions import mypyc_attr as mypyc_attr
else:

    def mypyc_attr(**attributes: object) -> Callable[[T], T]:
        return lambda cls: cls
