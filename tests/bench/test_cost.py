"""The arithmetic of `scripts/bench cost`, and its command line. Measures nothing, starts nothing."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from bench.cost import installation, instructions, pairs, report, run
from bench.cost.counting import Block, Counts
from bench.cost.pairs import Verdict
from bench.cost.parts import PARTS
from bench.cost.report import ExitCode, Outcome
from bench.cost.timing import Times
from bench.cpu import Tree, answering
from bench.load import Round
from bench.servers import PROJECT


def a_round(cpu_us: float) -> Round:
    return Round(1000, 1.0, 100.0, 200.0, 300.0, 0, cpu_us, 0.0, 0.0)


def times(*ratios: float) -> Times:
    return Times([a_round(20 * ratio) for ratio in ratios], [a_round(20) for _ in ratios])


# ---------------------------------------------------------------------- pairs


def test_the_two_begin_in_turns() -> None:
    assert pairs.turns(3) == [(0, 1), (1, 0), (0, 1)]


def test_ratios_are_made_pair_by_pair() -> None:
    assert pairs.ratios([10, 30], [20, 20]) == [0.5, 1.5]


@pytest.mark.parametrize(("this", "other"), [([1.0], [1.0, 2.0]), ([0.0], [1.0]), ([1.0], [0.0])])
def test_series_without_a_ratio_are_refused(this: list[float], other: list[float]) -> None:
    with pytest.raises(ValueError):
        pairs.ratios(this, other)


@pytest.mark.parametrize(
    ("count", "rank"), [(1, 1), (3, 1), (5, 1), (6, 1), (8, 1), (9, 2), (12, 3), (20, 6)]
)
def test_the_interval_is_that_of_the_sign_test(count: int, rank: int) -> None:
    assert pairs.interval(count)[0] == rank


def test_the_interval_tells_its_confidence() -> None:
    assert pairs.interval(9)[1] == pytest.approx(1 - 20 / 512)
    assert pairs.interval(3)[1] == pytest.approx(0.75)  # too few for more
    assert pairs.interval(1)[1] == 0


def test_spread() -> None:
    found = pairs.spread([1.09, 1.01, 1.05, 1.02, 1.03, 1.04, 1.06, 1.07, 1.08])
    assert (found.median, found.least, found.most) == (1.05, 1.01, 1.09)
    assert (found.low, found.high) == (1.02, 1.08)
    assert found.quartiles == pytest.approx((1.03, 1.07))
    alone = pairs.spread([1.5])
    assert (alone.low, alone.high, alone.quartiles) == (1.5, 1.5, (1.5, 1.5))
    with pytest.raises(ValueError):
        pairs.spread([])


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([0.99, 1.00, 1.01] * 3, Verdict.CHEAP),
        ([1.03] * 9, Verdict.CHEAP),
        ([1.031] * 9, Verdict.DEARER),
        ([1.02, 1.025, 1.035] * 3, Verdict.CHEAP),  # the bar is within the interval, which is narrow
        ([1.02, 1.032, 1.035] * 3, Verdict.DEARER),
        ([0.95, 1.00, 1.06] * 3, Verdict.NOISY),
        ([0.95, 1.04, 1.06] * 3, Verdict.NOISY),
        ([0.5, 0.7, 0.9] * 3, Verdict.CHEAP),  # a wide interval on one side of the bar
        ([1.1, 1.5, 2.0] * 3, Verdict.DEARER),
        ([0.83, 0.85, 0.9], Verdict.NOISY),  # three may agree by chance
        ([1.2, 1.3, 1.4], Verdict.NOISY),
        ([0.99, 1.0, 1.01], Verdict.CHEAP),
        ([0.98, 0.99, 1.0, 1.0, 1.0, 1.01, 1.01, 1.02, 3.0], Verdict.CHEAP),  # one disturbed pair
    ],
)
def test_time_decides_where_the_noise_allows(ratios: list[float], verdict: Verdict) -> None:
    assert pairs.judge(pairs.spread(ratios)) is verdict


def test_instructions_decide_where_time_does_not() -> None:
    assert pairs.final(Verdict.NOISY, 1.02) is Verdict.CHEAP
    assert pairs.final(Verdict.NOISY, 1.021) is Verdict.DEARER
    assert pairs.final(Verdict.NOISY, None) is Verdict.NOISY
    assert pairs.final(Verdict.CHEAP, 1.5) is Verdict.CHEAP
    assert pairs.final(Verdict.DEARER, 0.5) is Verdict.DEARER


# ---------------------------------------------------------------------- instructions


def test_a_slope_is_common_to_series_of_different_levels() -> None:
    assert pairs.common_slope([(1, 10), (2, 13), (3, 16)], [(1, 100), (4, 109)]) == 3
    assert pairs.common_slope([(0, 0), (1, 2), (2, 4), (3, 6), (4, 900)]) == 2  # one outlier
    assert pairs.common_slope([(1, 10), (1, 20)], []) == 0


def test_what_goes_by_the_clock_is_taken_away() -> None:
    """Per request 80 and 100 instructions, and for each second of a block 5 more."""
    this = [Block(seconds, 80 + 5 * seconds) for seconds in (4.0, 2.0, 9.0)]
    other = [Block(seconds, 100 + 5 * seconds) for seconds in (1.0, 3.0, 1.5)]
    assert Counts(this, other).medians == (85, 105)
    assert Counts(other, this).ratio == pytest.approx(105 / 85)
    assert Counts([Block(1, 102)], [Block(2, 100)]).ratio == pytest.approx(1.02)
    quicker = Counts([Block(1, 102), Block(2, 90)], [Block(1, 100), Block(3, 80)])  # not by the clock
    assert quicker.medians == (96, 90)


def test_counters_are_those_of_the_threads_not_of_their_frames() -> None:
    said = "sending command status internal to pid 7\nthreads: 2\nevents: Ir\nevents-1: 900\nframes-1: 2\n"
    said += "events-1-0: 800\nfunction-1-1: main\nevents-2: 50\n"
    assert instructions.parse(said) == 950
    with pytest.raises(ValueError):
        instructions.parse("vgdb: no such process")


def test_the_process_that_answers_is_found_by_its_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not answering(Tree(os.getpid()), port)  # listening is not answering
        with socket.create_connection(("127.0.0.1", port)), server.accept()[0]:
            assert answering(Tree(os.getpid()), port) == {os.getpid()}


# ---------------------------------------------------------------------- report


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        ([Verdict.CHEAP, Verdict.CHEAP], ExitCode.CHEAP),
        ([Verdict.CHEAP, Verdict.NOISY], ExitCode.UNDECIDED),
        ([Verdict.NOISY, Verdict.DEARER], ExitCode.DEARER),
    ],
)
def test_exit_codes(verdicts: list[Verdict], code: ExitCode) -> None:
    assert report.exit_code(verdicts) is code


def test_what_is_written(tmp_path: Path) -> None:
    quiet = Outcome(PARTS["predict"], times(*[1.0] * 9))
    counts = Counts([Block(1.0, 110)], [Block(1.0, 100)])
    noisy = Outcome(PARTS["proxy"], times(*[0.9, 1.0, 1.2] * 3), counts)
    open_ = Outcome(PARTS["proxied-predict"], noisy.times, uncounted="valgrind is not installed")
    result = {
        "date": "2024-01-01", "this": "abc-dirty", "other": "def", "form": "compiled",
        "plan": {"pairs": 9, "seconds": 3, "connections": 32, "body": 46},
        "machine": {"cores": "2"},
        "parts": {one.part.name: report.as_json(one) for one in (quiet, noisy, open_)},
    }  # fmt: skip
    path, beside = report.write(result, tmp_path / "new" / "cost.json")
    parts = json.loads(path.read_text())["parts"]
    assert [one["verdict"] for one in parts.values()] == ["as cheap", "dearer", "too noisy"]
    assert len(parts["predict"]["rounds"]["this"]) == 9
    table = beside.read_text()
    assert "| predict | as cheap | 1.000 | 1.000 - 1.000 | 1.000 - 1.000 | 20.0 | 20.0 |  |" in table
    assert "| proxy | dearer | 1.000 | 0.900 - 1.200 | 0.900 - 1.200 | 20.0 | 20.0 | 1.100 |" in table
    assert "ratio 1.100" in "\n".join(report.lines(noisy))
    assert "valgrind is not installed" in "\n".join(report.lines(open_))


# ---------------------------------------------------------------------- command line, installation


def test_the_command_line() -> None:
    options = run.parse(["--against", "main"])
    assert options.parts == list(PARTS)
    assert (options.plan.pairs, options.plan.connections, options.plan.body) == (9, 32, 46)
    options = run.parse(["--against", "v1", "--quick", "--only", "proxy,predict", "--seconds", "2"])
    assert (options.plan.pairs, options.plan.seconds, options.parts) == (3, 2, ["proxy", "predict"])
    assert not options.interpreted and not options.instructions and options.out is None


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--only", "memory"],
        ["--pairs", "0"],
        ["--body", "1"],
        ["--seconds", "1.5"],
        ["--connections", "-1"],
    ],
)
def test_a_wrong_command_line_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    against = ["--against", "main"] if arguments else []
    with pytest.raises(SystemExit) as ended:
        run.parse([*against, *arguments])
    assert ended.value.code == ExitCode.FAILED
    assert "usage: scripts/bench cost" in capsys.readouterr().err


def test_the_layout_of_a_commit_is_known_by_its_files(tmp_path: Path) -> None:
    assert installation.layout_of(tmp_path) is None
    (tmp_path / "loadbalancer").mkdir()
    (tmp_path / "loadbalancer" / "compiled.py").touch()
    before = installation.layout_of(tmp_path)
    assert before and before.build == "loadbalancer.compiling"
    now = installation.layout_of(PROJECT)
    assert now and now.build == "twofold.native.build"
