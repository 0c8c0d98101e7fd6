"""One table of bodies and results over both codecs: the standard library's and orjson's."""

import dataclasses
import datetime
import enum
import json
import math
import struct
import unittest
import uuid

from runtime import module

codec = module("codec")

try:
    import orjson
except ImportError:
    orjson = None

try:
    import numpy
except ImportError:
    numpy = None

BODIES = [
    (b"1", 1),
    (b' {"a": [1, 2.5, null, true, "x"]} ', {"a": [1, 2.5, None, True, "x"]}),
    ('"h\u00e9 \U0001f600"'.encode(), "h\u00e9 \U0001f600"),
    (b'"\\ud83d\\ude00"', "\U0001f600"),
    (b"[]", []),
    (b"-0.5e3", -500.0),
    (b"9007199254740993", 9007199254740993),
    (b"18446744073709551615", 2**64 - 1),
    (b'"\\\\ud800"', "\\ud800"),
    (b'"\\u0000"', "\x00"),
    (b'{"a": 1, "a": 2}', {"a": 2}),
    (b"1e300", 1e300),
    (b"1e-999", 0.0),
    (b'"1e999"', "1e999"),
]
REFUSED = [
    b"", b"[1,", b"NaN", b"[Infinity]", b"-Infinity", b"{1: 2}", b"'x'", b"[1] x",
    b"\xef\xbb\xbf1", b'"\xff"', b"[" * 100000, b"01", b"tru", b'{"a" 1}', "1".encode("utf-16"), b'"\x01"',
    b"1e999", b"[-1E+400]", b'"\\ud800"', b'["a\\uDC00"]', b'{"\\ud83d": 1}', b"1.", b".5", b"+1",
    b'"\xed\xa0\x80"',
]  # fmt: skip
RESULTS = [
    ({"a": [1, 2.5, None, True, "\u00e9"]}, {"a": [1, 2.5, None, True, "\u00e9"]}),
    ((1, (2, 3)), [1, [2, 3]]),
    ([math.nan, math.inf, {"x": -math.inf}], [None, None, {"x": None}]),
    ({1: "a", 2.5: "b", None: "c", False: "d"}, {"1": "a", "2.5": "b", "null": "c", "false": "d"}),
    (2**70, 2**70),
    ([2**70, math.nan], [2**70, None]),
    ({2**70: 1, math.nan: 2}, {str(2**70): 1, "null": 2}),
    ({datetime.date(2026, 1, 2): 1}, {"2026-01-02": 1}),
    ({uuid.UUID(int=1): [math.nan]}, {"00000000-0000-0000-0000-000000000001": [None]}),
    (datetime.timedelta(seconds=3), "0:00:03"),
    ("1970-01-01T00:00:00", "1970-01-01T00:00:00"),
]
NOT_JSON = [
    {1, 2}, b"bytes", object(), {"a": [object()]}, {(1, 2): 3}, {b"k": 1}, dict, 1 + 2j, (x for x in ()),
]  # fmt: skip


class Array:
    """Like numpy's arrays in the one thing that matters."""

    def __init__(self, values):
        self.values = values

    def tolist(self):
        return self.values


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@dataclasses.dataclass
class Verdict:
    label: str
    scores: list
    _hidden: int = 0


class NoTime:
    """Like pandas.NaT: has a date's methods, and does not equal itself."""

    __hash__ = None

    def __eq__(self, other):
        return False

    def isoformat(self):
        return "NaT"


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


class Codec:
    loads = staticmethod(codec.loads)
    dumps = staticmethod(codec.dumps)

    def test_bodies(self):
        for body, value in BODIES:
            with self.subTest(body=body[:40]):
                self.assertEqual(self.loads(memoryview(body)), value)

    def test_refused_bodies(self):
        for body in REFUSED:
            with self.subTest(body=body[:40]), self.assertRaises(ValueError) as caught:
                self.loads(memoryview(body))
            self.assertLess(len(str(caught.exception)), 300)

    def test_results(self):
        for result, value in RESULTS:
            with self.subTest(result=result):
                self.assertEqual(json.loads(self.dumps(result)), value)

    def test_values_that_are_not_json(self):
        for result in NOT_JSON:
            with self.subTest(result=result), self.assertRaises(TypeError) as caught:
                self.dumps(result)
            self.assertIn("JSON", str(caught.exception))

    def test_the_place_of_a_value_that_is_not_json_is_named(self):
        with self.assertRaises(TypeError) as caught:
            self.dumps({"rows": [1, {"x": {1}}]})
        self.assertIn("['rows'][1]['x']", str(caught.exception))

    def test_tolist(self):
        self.assertEqual(json.loads(self.dumps({"a": Array([1.5, math.nan])})), {"a": [1.5, None]})
        self.assertEqual(json.loads(self.dumps(Array(3))), 3)

    def test_dates_ids_and_enumerations(self):
        known = [datetime.date(2026, 1, 2), uuid.UUID(int=1), Colour.RED]
        wanted = ["2026-01-02", "00000000-0000-0000-0000-000000000001", "red"]
        self.assertEqual(json.loads(self.dumps(known)), wanted)
        self.assertEqual(json.loads(self.dumps(Array(known))), wanted)

    def test_dataclasses_and_integer_enumerations(self):
        result = {"v": Verdict("a", [math.inf, Level.HIGH]), Level.HIGH: None}
        wanted = {"v": {"label": "a", "scores": [None, 3]}, "3": None}
        self.assertEqual(json.loads(self.dumps(result)), wanted)
        with self.assertRaises(TypeError) as caught:
            self.dumps([Verdict("a", [{1}])])
        self.assertEqual(str(caught.exception), "the result[0]['scores'][0]: set is not JSON")

    def test_not_a_time_is_null(self):
        self.assertEqual(self.dumps([NoTime()]), b"[null]")

    def test_deep_results(self):
        self.assertEqual(json.loads(self.dumps(nested(190))), nested(190))
        with self.assertRaises(TypeError) as caught:
            self.dumps(nested(100000))
        self.assertLess(len(str(caught.exception)), 2000)

    def test_an_exception_of_an_object_being_encoded_is_not_hidden(self):
        class Broken:
            def tolist(self):
                raise RuntimeError("the device is gone")

        with self.assertRaises(Exception) as caught:
            self.dumps({"a": Broken()})
        self.assertIn("the device is gone", str(caught.exception))

    def test_a_result_that_contains_itself(self):
        loop = []
        loop.append(loop)
        with self.assertRaises(TypeError):
            self.dumps(loop)

    def test_a_lone_surrogate_is_replaced(self):
        self.assertEqual(json.loads(self.dumps(["a\ud800b"])), ["a?b"])

    @unittest.skipIf(numpy is None, "numpy is not installed")
    def test_numpy(self):
        table = [
            (numpy.arange(6).reshape(2, 3), [[0, 1, 2], [3, 4, 5]]),
            (numpy.arange(6).reshape(2, 3).T, [[0, 3], [1, 4], [2, 5]]),
            (numpy.arange(10)[::2], [0, 2, 4, 6, 8]),
            (numpy.array([1.5, numpy.nan, numpy.inf]), [1.5, None, None]),
            (numpy.float32(0.5), 0.5),
            (numpy.int64(7), 7),
            (numpy.bool_(True), True),
            (numpy.array(3), 3),
            (numpy.array(["a", "b"]), ["a", "b"]),
            (numpy.array([True, False]), [True, False]),
            ([numpy.float64("nan"), {"p": numpy.float32("inf")}], [None, {"p": None}]),
            (numpy.array([[1, 2], [3, 4]], dtype=numpy.float16), [[1.0, 2.0], [3.0, 4.0]]),
            ({numpy.int64(1): 2}, {"1": 2}),
            (numpy.empty((0, 3)), []),
        ]
        for result, value in table:
            with self.subTest(result=repr(result)):
                self.assertEqual(json.loads(self.dumps(result)), value)

    @unittest.skipIf(numpy is None, "numpy is not installed")
    def test_numpy_dates_and_times(self):
        for unit in ("D", "s", "ms", "us", "ns"):
            with self.subTest(unit=unit):
                moments = numpy.array(["2026-01-02", "NaT", "1970-01-01"], dtype="datetime64[%s]" % unit)
                wanted = ["2026-01-02T00:00:00", None, "1970-01-01T00:00:00"]
                self.assertEqual(json.loads(self.dumps({"t": moments})), {"t": wanted})
                self.assertEqual(json.loads(self.dumps(list(moments))), wanted)
        spans = numpy.array([3, "NaT"], dtype="timedelta64[s]")
        for unit in ("s", "ns"):
            self.assertEqual(
                json.loads(self.dumps(spans.astype("timedelta64[%s]" % unit))), ["0:00:03", None]
            )

    @unittest.skipIf(numpy is None, "numpy is not installed")
    def test_other_kinds_of_numpy(self):
        for result, value in [
            (numpy.longdouble(1.5), 1.5),
            (numpy.array([1.5, numpy.nan], dtype=numpy.longdouble), [1.5, None]),
            (numpy.array([[1, None]], dtype=object), [[1, None]]),
            (numpy.uint64(2**64 - 1), 2**64 - 1),
            (numpy.array(numpy.nan), None),
            ({numpy.str_("k"): numpy.bool_(False)}, {"k": False}),
        ]:
            with self.subTest(result=repr(result)):
                self.assertEqual(json.loads(self.dumps(result)), value)
        for result in (numpy.complex64(1j), numpy.array([1j]), numpy.bytes_(b"x"), numpy.array([b"x"])):
            with self.subTest(result=repr(result)), self.assertRaises(TypeError):
                self.dumps(result)

    @unittest.skipIf(numpy is None, "numpy is not installed")
    def test_single_floats_are_the_same_single(self):
        for number in json.loads(self.dumps([numpy.float32(0.1), numpy.array([0.1], "f4")[0]])):
            self.assertEqual(struct.pack("f", number), struct.pack("f", 0.1))


class StandardLibrary(Codec, unittest.TestCase):
    pass


@unittest.skipIf(orjson is None, "orjson is not installed")
class Orjson(Codec, unittest.TestCase):
    loads, dumps = (staticmethod(function) for function in codec.select())

    def test_orjson_is_used_where_it_is_installed(self):
        self.assertIs(codec.select()[0], orjson.loads)


if __name__ == "__main__":
    unittest.main()
