"""JSON in and out: the body of a request to a Python value, a result to the body of an answer.

Standard library only, Python 3.7 to 3.14; `orjson` is used where the model's environment has it.
Which of the two works is decided once, by select(); both accept the same bodies and answer the
same, and the tests run one table over both.

    bodies     strict: RFC 8259 in UTF-8 without a byte order mark; NaN, Infinity, numbers that only
               an infinity could hold and halves of surrogate pairs are refused
    results    what JSON holds; dataclasses, dates, UUIDs, enumerations; whatever has tolist() (numpy
               arrays and scalars, pandas Series); NaN, NaT and infinities become null, since JSON has
               no word for them

Two things differ, for the sake of speed: orjson reads an integer beyond 64 bits as a float, and
writes numpy's single floats as the shortest text that is the same single, not the same double.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import math
import re
import uuid
from typing import Any

MAX_DEPTH = 200  # of a result that the fast encoders refused
# Older orjson aborts the process at a NaT in seconds; there numpy's arrays become lists first.
NUMPY_SAFE = (3, 11)

_SIMPLE = (str, int, bool, type(None))
# What orjson makes of a NaT in an array, of days to minutes and of nanoseconds; dumps() knows better.
_NOT_A_TIME = (b'"1970-01-01T00:00:00"', b'"1677-09-21T00:12:43.145224"')
_HUGE_EXPONENT = re.compile(r"[eE]\+?[0-9]{3}")


def select() -> tuple[Any, ...]:
    """(loads, dumps): loads takes a memoryview and raises ValueError, dumps gives bytes or TypeError."""
    try:
        import orjson

        return orjson.loads, _dumps_with(orjson)
    except (ImportError, AttributeError, ValueError):  # absent, or too old to know what we need of it
        return loads, dumps


def read_sample(path: str) -> Any:
    """What predict() gets for a sample request: the value in a file called *.json, of any other its bytes.

    OSError if it cannot be read, ValueError if it should be JSON and is not.
    """
    with open(path, "rb") as sample:
        content = sample.read()
    return select()[0](memoryview(content)) if path.lower().endswith(".json") else content


def _dumps_with(orjson: Any) -> Any:
    fast = orjson.dumps
    options = orjson.OPT_NON_STR_KEYS
    version = tuple(int(part) for part in orjson.__version__.split(".")[:2])
    if version >= NUMPY_SAFE:
        options |= orjson.OPT_SERIALIZE_NUMPY

    def dumps_fast(result: Any) -> bytes:
        try:
            encoded: bytes = fast(result, simplify, options)
        except TypeError:
            # What it refuses may still be JSON: integers beyond 64 bits, odd arrays, deep nesting.
            return dumps(result)
        if b"T00:" in encoded and any(moment in encoded for moment in _NOT_A_TIME):
            return dumps(result)
        return encoded

    return dumps_fast


def _refuse_constant(name: str) -> Any:
    raise ValueError(name + " is not JSON")


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise ValueError("a number is too large: " + number[:20])
    return value


_decode = json.JSONDecoder(parse_constant=_refuse_constant).decode
_decode_finite = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite).decode


def loads(body: memoryview) -> Any:
    """The value of a body; ValueError says what is wrong with it, for the client."""
    try:
        text = str(body, "utf-8")
        # Checking every float would cost more than looking for the few that could be too large.
        value = _decode_finite(text) if _HUGE_EXPONENT.search(text) else _decode(text)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8 (%s at byte %d)" % (error.reason, error.start)) from None
    except UnicodeEncodeError:
        raise ValueError("it holds half of a surrogate pair") from None


def dumps(result: Any) -> bytes:
    """A result as JSON; TypeError names the place of what does not fit."""
    try:
        text = _encode(result)
    except (TypeError, ValueError, RecursionError):
        text = _encode(_plain(result, "the result", 0))
    return text.encode("utf-8", "replace")  # a lone surrogate has no UTF-8


def simplify(value: Any) -> Any:
    """What an encoder does not know, as something it may know better; TypeError if there is nothing."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (uuid.UUID, datetime.timedelta)):
        return str(value)
    if not isinstance(value, type):
        if hasattr(value, "isoformat"):
            return value.isoformat() if value == value else None  # pandas.NaT is no moment
        if dataclasses.is_dataclass(value):
            names = [field.name for field in dataclasses.fields(value)]
            return {name: getattr(value, name) for name in names if name[0] != "_"}
        if hasattr(value, "tolist"):
            return _listed(value)
    raise TypeError("%s is not JSON" % type(value).__name__)


def _listed(value: Any) -> Any:
    kind = type(value)
    if kind.__module__.startswith("numpy") and value.dtype.kind in "Mm":
        value = value.astype(value.dtype.kind + "8[us]")  # nanoseconds would become integers, months days
    simple = value.tolist()
    return float(simple) if type(simple) is kind else simple  # numpy.longdouble stays what it is


_encode = json.JSONEncoder(
    separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=simplify
).encode


def _plain(value: Any, place: str, depth: int) -> Any:
    """A copy that holds nothing but what JSON holds; TypeError names the place of what does not fit."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, _SIMPLE):
        return value
    if depth > MAX_DEPTH:
        raise TypeError("%s is nested more than %d deep" % (place, MAX_DEPTH))
    if isinstance(value, dict):
        return {
            _key(key, place): _plain(item, "%s[%r]" % (place, key), depth + 1) for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_plain(item, "%s[%d]" % (place, index), depth + 1) for index, item in enumerate(value)]
    try:
        return _plain(simplify(value), place, depth + 1)
    except TypeError as error:
        raise TypeError(
            str(error) if str(error).startswith("the result") else "%s: %s" % (place, error)
        ) from None


def _key(key: Any, place: str) -> str:
    """As the encoders have it: true, null, numbers and what simplify() knows become text."""
    try:
        plain = key if isinstance(key, (float,) + _SIMPLE) else simplify(key)
    except TypeError:
        plain = key
    if isinstance(plain, str):
        return plain
    if isinstance(plain, (float,) + _SIMPLE):
        return json.dumps(_plain(plain, place, 0))
    raise TypeError("%s: a key of type %s is not JSON" % (place, type(key).__name__))
