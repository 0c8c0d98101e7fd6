"""Records of the access and predict logs."""

from __future__ import annotations

import datetime
import json
import uuid

from hypothesis import given
from hypothesis import strategies as st

from twofold.logs import records as log

AT = 1_700_000_000_123_456_789
REQUEST_ID = b"/".join([b"0123456789ABCDEF0123456789ABCDEF"] * 3)


def records(lines: bytes) -> list[dict[str, object]]:
    assert lines.endswith(b"\n")
    return [json.loads(line) for line in lines.splitlines()]


def test_an_access_record_has_the_form_of_the_contract() -> None:
    lines = log.AccessLog("ocid1.md").format([(AT, b"POST /predict 1.1", 200, 1770, REQUEST_ID, 31, 999)])
    (record,) = records(lines)
    assert uuid.UUID(str(record.pop("id"))).version == 4
    assert record == {
        "time": "2023-11-14T22:13:20.123Z",
        "type": "com.oraclecloud.datascience.modeldeployment.access",
        "source": "ocid1.md",
        "specversion": "1.0",
        "data": {
            "logEmissionTime": "2023-11-14T22:13:20.123Z",
            "message": "POST /predict 1.1",
            "modelLatency": 1.77,
            "opcRequestId": REQUEST_ID.decode(),
            "status": 200,
            "totalLatency": 0.999,
            "bytes": 31,
        },
    }


def test_ids_are_distinct_within_and_between_processes() -> None:
    batch: list[log.AccessRecord] = [(AT, "GET / 1.1", 404, 0, b"", 0, 1)] * 1500
    access, other = log.AccessLog("s"), log.AccessLog("s")
    lines = access.format(batch[:700]) + access.format(batch) + other.format(batch)
    ids = [str(record["id"]) for record in records(lines)]
    assert len(set(ids)) == 3700
    assert all(str(uuid.UUID(identity)) == identity for identity in ids)


@given(
    at=st.integers(0, 4_000_000_000_000_000_000),
    message=st.one_of(st.binary(), st.text(st.characters(exclude_categories=["Cs"]))),
    predict_us=st.integers(0, 2**32),
    total_us=st.integers(0, 2**32),
    source=st.text(st.characters(exclude_categories=["Cs"])),
)
def test_any_request_is_one_line_of_json(
    at: int, message: bytes | str, predict_us: int, total_us: int, source: str
) -> None:
    lines = log.AccessLog(source).format([(at, message, 200, predict_us, b"", 1, total_us)])
    assert lines.count(b"\n") == 1
    (record,) = records(lines)
    data = record["data"]
    assert isinstance(data, dict)
    text = message if isinstance(message, str) else message.decode("utf-8", "replace")
    assert data["message"] == text[: log.MAX_MESSAGE]
    assert data["modelLatency"] == predict_us / 1000
    assert data["totalLatency"] == total_us / 1000
    assert record["source"] == source
    moment = datetime.datetime.fromisoformat(str(record["time"]))
    assert moment.timestamp() * 1000 - at // 1_000_000 < 1


def test_the_memory_of_distinct_messages_is_bounded() -> None:
    access = log.AccessLog("s")
    batch: list[log.AccessRecord] = [(AT, b"GET /%d 1.1" % i, 404, 0, b"", 0, 1) for i in range(3000)]
    lines = access.format([*batch, (AT, b"GET /" + b"x" * 30000, 404, 0, b"", 0, 1)])
    assert len(access._messages) <= log.REMEMBERED_MESSAGES
    assert len(lines.splitlines()[-1]) < 2 * log.MAX_MESSAGE


def test_a_predict_record_wraps_raw_text() -> None:
    predict = log.PredictLog("ocid1.md")
    (record,) = records(predict.format(b'Fatal "error"\x1b[0m \xff\xc3\xa4', 3))
    assert record["type"] == "com.oraclecloud.datascience.modeldeployment.predict"
    data = record["data"]
    assert isinstance(data, dict)
    assert data["message"] == 'Fatal "error"\x1b[0m \ufffdä'
    assert (data["stream"], data["replica"], data["opcRequestId"]) == ("native", 3, "")
    (unknown,) = records(predict.format(b"", -1))
    assert isinstance(unknown["data"], dict) and "replica" not in unknown["data"]
