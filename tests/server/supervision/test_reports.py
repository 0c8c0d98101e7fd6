"""Reports as the replica side writes them, and lines that are none."""

from __future__ import annotations

import json
import os

import pytest

from twofold.server.replica.inherited import MAX_REPORT, Inherited
from twofold.server.supervision import reports
from twofold.server.supervision.exit_reasons import load_failure
from twofold.server.supervision.reports import (
    ForkedReport,
    ForkServerReport,
    LoadFailedReport,
    LoadingReport,
    NotForkedReport,
    PreloadFailedReport,
    ReadyReport,
    Report,
)  # fmt: skip

REPORTS: dict[str, Report] = {
    "fork_server": ForkServerReport(pid=7, python="3.10.13", preload_s=0.5, failed=["numpy: ImportError"]),
    "preload_failed": PreloadFailedReport(stage="load", error="no weights"),
    "forked": ForkedReport(replica=1, pid=8),
    "not_forked": NotForkedReport(replica=1, error="EAGAIN"),
    "loading": LoadingReport(replica=1, pid=8),
    "failed": LoadFailedReport(replica=1, stage="import", error="no module"),
    "ready": ReadyReport(replica=1, pid=8, load_s=1.5),
}


def written(event: str, **facts: object) -> bytes:
    """What `Inherited.report` writes into its pipe."""
    read, write = os.pipe()
    inherited = Inherited.__new__(Inherited)
    inherited.reports = write
    try:
        inherited.report(event, **facts)
        return os.read(read, 2 * MAX_REPORT)
    finally:
        os.close(read)
        os.close(write)


@pytest.mark.parametrize("event", reports.KINDS)
def test_each_kind_is_read_as_it_was_written(event: str) -> None:
    report = REPORTS[event]
    facts = {name: getattr(report, name) for name in report.__slots__}
    assert reports.parse(written(event, **facts)) == report


def test_a_long_error_loses_its_beginning_and_stays_a_report() -> None:
    line = written("failed", replica=1, stage="load", error="\u20ac" * MAX_REPORT + "the end")
    report = reports.parse(line)
    assert len(line) <= MAX_REPORT and isinstance(report, LoadFailedReport)
    assert report.error.startswith("...") and load_failure(report).endswith("the end")


@pytest.mark.parametrize("line", [
    b"", b"{", b"[]", b"{}", b'{"event": "born", "replica": 1}', b'{"event": "forked"}',
    json.dumps({"event": "forked", "replica": 1, "pid": 2, "more": 3}).encode(),
])  # fmt: skip
def test_what_is_no_report_is_a_bug_and_loud(line: bytes) -> None:
    with pytest.raises(ValueError, match="not a report"):
        reports.parse(line)
