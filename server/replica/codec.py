"""JSON in and out: the body of a request to a Python value, a result to the body of an answer.

Standard library only, Python 3.7 to 3.14; `orjson` is used where the model's environment has it.
Which of the two works is decided once, by select(); both accept the same bodies and answer the
same, and the tests run one table over both.

    bodies     strict: RFC 8259 in UTF-8 without a byte order mark; NaN and Infinity are refused
    results    what JSON holds, and whatever has tolist() (numpy arrays and scalars, pandas Series);
               NaN and infinities become null, since JSON has no word for them
"""

from __future__ import annotations

import enum
import json
import math
import uuid
from typing import Any

MAX_DEPTH = 200  # of a result that the fast encoders refused

_SIMPLE = (str, int, bool, type(None))


def select() -> tuple[Any, ...]:
    """(loads, dumps): loads takes a memoryview and raises ValueError, dumps gives bytes or TypeError."""
    try:
        import orjson
    except ImportError:
        return loads, dumps
    return orjson.loads, _dumps_with(orjson)


def _dumps_with(orjson: Any) -> Any:
    fast = orjson.dumps
    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS

    def dumps_fast(result: Any) -> bytes:
        try:
            encoded: bytes = fast(result, simplify, options)
            return encoded
        except TypeError:
            # What it refuses may still be JSON: integers beyond 64 bits, odd arrays, deep nesting.
            return dumps(result)

    return dumps_fast


def _refuse_constant(name: str) -> Any:
    raise ValueError(name + " is not JSON")


_decode = json.JSONDecoder(parse_constant=_refuse_constant).decode
_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


def loads(body: memoryview) -> Any:
    try:
        return _decode(str(body, "utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8 (%s at byte %d)" % (error.reason, error.start)) from None


def dumps(result: Any) -> bytes:
    try:
        text = _encode(result)
    except (TypeError, ValueError, RecursionError):
        text = _encode(_plain(result, "the result", 0))
    return text.encode("utf-8", "replace")  # a lone surrogate has no UTF-8


def simplify(value: Any) -> Any:
    """What an encoder does not know, as something it may know better; TypeError if there is nothing."""
    tolist = getattr(value, "tolist", None)
    if isinstance(value, type):
        tolist = None
    elif isinstance(value, enum.Enum):
        return value.value
    elif isinstance(value, uuid.UUID):
        return str(value)
    elif hasattr(value, "isoformat"):
        return value.isoformat()
    if tolist is None:
        raise TypeError("%s is not JSON" % type(value).__name__)
    simple = tolist()
    # numpy's timedeltas and the like have no better word than their text.
    return simple if isinstance(simple, (list, dict, float, *_SIMPLE)) else _text(simple)


def _text(value: Any) -> str:
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


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
    """As json has it: true, null and numbers become text. numpy's scalars do too."""
    if not isinstance(key, (float,) + _SIMPLE) and hasattr(key, "item"):
        key = key.item()
    if isinstance(key, str):
        return key
    if isinstance(key, bool) or key is None or isinstance(key, (int, float)):
        return json.dumps(key)
    raise TypeError("%s: a key of type %s is not JSON" % (place, type(key).__name__))
