"""The supervisor with stand-ins for its children: crashes, reloads, stops, and what is left behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.eventually import eventually, never
from tests.support.loadbalancer.balancer_process import memory_of
from twofold.loadbalancer import shared_memory
from twofold.loadbalancer.supervision.supervisor import RESTARTS

ROOT = Path(__file__).parents[3]
STAND_INS = ROOT / "tests" / "support" / "loadbalancer" / "stand_in_children.py"
START = Callable[..., "Balancer"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Balancer:
    """A supervisor with stand-ins, in a process of its own."""

    def __init__(self, folder: Path, text: str, *options: str, **variables: str) -> None:
        self.folder = folder
        self.file = folder / "balance.yaml"
        self.port = free_port()
        self.write(text)
        self.said = (folder / "stderr").open("w+b")
        self.process = subprocess.Popen(
            [sys.executable, str(STAND_INS), "--config", str(self.file), *options],
            cwd=folder, stdout=subprocess.DEVNULL, stderr=self.said,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
        )  # fmt: skip

    def write(self, text: str, listen: str = "") -> None:
        listen = listen or f"127.0.0.1:{self.port}"
        self.file.write_text(f"listen: {listen}\nupstream: http://127.0.0.1:9\n{text}\n")

    def output(self) -> str:
        return (self.folder / "stderr").read_text()

    def refused(self) -> tuple[int, str]:
        """Reloads, and why the last one was."""
        fd, shared = memory_of(self.process.pid)
        with shared:
            os.close(fd)
            return shared_memory.RefusedReloads(shared).read()

    def says(self, text: str, times: int = 1, seconds: float = 8.0) -> None:
        eventually(lambda: len(re.findall(text, self.output())) >= times, f"{text!r} x {times}", seconds)

    def ask(self, what: str = "who", port: int = 0) -> tuple[int, int, str]:
        """(number, pid, bandwidth) of the proxy that answered."""
        with socket.create_connection(("127.0.0.1", port or self.port), timeout=8) as client:
            client.sendall(f"{what}\n".encode())
            answer = b""
            while piece := client.recv(100):
                answer += piece
        if not answer:
            raise ConnectionResetError("no answer")
        number, pid, bandwidth = answer.decode().split()
        return int(number), int(pid), bandwidth

    def refuses(self) -> bool:
        """Whether nothing listens any more."""
        try:
            self.ask()
        except ConnectionRefusedError:
            return True
        except ConnectionResetError:
            pass
        return False

    def has_been_asked(self, word: str) -> None:
        """Until a proxy has read it; see stand_in_children.py."""
        eventually(lambda: word in self.received().split(), f"{word} to arrive")

    def received(self) -> str:
        path = self.folder / "received"
        return path.read_text() if path.exists() else ""

    def checks(self) -> bool:
        """Whether the new program looks at the new settings; see stand_in_children.py."""
        path = self.folder / "checking"
        pid = path.read_text() if path.exists() else ""
        return bool(pid) and alive(int(pid))

    def reload(self) -> None:
        before = self.output().count("reloaded in")
        self.process.send_signal(signal.SIGHUP)
        self.says("reloaded in", before + 1)

    def children(self) -> set[int]:
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return {int(pid) for pid in listed.split()}


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def start(tmp_path: Path) -> Iterator[START]:
    running: list[Balancer] = []

    def starter(text: str = "", *options: str, ready: bool = True, **variables: str) -> Balancer:
        running.append(Balancer(tmp_path, text, *options, **variables))
        if ready:
            running[-1].says("balancing on")
        return running[-1]

    yield starter
    for each in running:
        if each.process.poll() is None:
            each.process.kill()
        each.process.wait()
        each.said.close()


class Client(threading.Thread):
    """Connects every few milliseconds, and keeps what went wrong."""

    def __init__(self, balancer: Balancer, pause: float = 0.01) -> None:
        super().__init__(daemon=True)
        self.balancer = balancer
        self.pause = pause
        self.answers: list[tuple[float, int, int, str]] = []
        self.failures: list[OSError] = []
        self.ended = threading.Event()
        self.start()

    def run(self) -> None:
        while not self.ended.wait(self.pause):
            try:
                self.answers.append((time.monotonic(), *self.balancer.ask()))
            except OSError as error:
                self.failures.append(error)

    def answer_after(self, moment: float) -> float:
        """When the first answer came."""
        eventually(lambda: self.answers[-1][0] > moment + 0.1, "somebody answers")
        return next(at for at, *_ in self.answers if at > moment)

    def sees(self, bandwidth: str) -> None:
        eventually(lambda: self.answers[-1][3] == bandwidth, f"a proxy with {bandwidth} Mbps answers")

    def end(self) -> None:
        self.ended.set()
        self.join(10)


# ---------------------------------------------------------------------- start


def test_the_first_line_says_what_is_served_and_how_to_try_it(start: START) -> None:
    balancer = start("bandwidth_mbps: 20")
    url = f"http://127.0.0.1:{balancer.port}"
    assert f"info    balancing on {url} over 1 instance, 20 Mbps; try: curl -H" in balancer.output()
    assert f"'[[1, 2, 3]]' {url}/predict\n" in balancer.output()
    assert balancer.ask()[0] == 0


def test_several_proxies_and_addresses(start: START, tmp_path: Path) -> None:
    path = tmp_path / "in.sock"
    balancer = start("proxies: 3", "--listen", "127.0.0.1:0", "--listen", f"unix:{path}")
    found = re.search(r"balancing on http://127.0.0.1:(\d+) and unix:(\S+) over", balancer.output())
    assert found is not None and found[2] == str(path)
    port = int(found[1])
    eventually(lambda: len(balancer.children()) == 5, "three proxies, a controller and a log writer")
    assert balancer.ask(port=port)[0] in range(3)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"who\n")
        assert int(client.recv(100).split()[0]) in range(3)
    balancer.process.terminate()
    assert balancer.process.wait(8) == 0
    assert not path.exists()


def test_the_socket_of_a_killed_balancer_is_taken_over_and_that_of_a_live_one_is_not(
    start: START, tmp_path: Path
) -> None:
    path = tmp_path / "in.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))  # bound, closed and left behind
    balancer = start("", "--listen", f"unix:{path}")
    second = start("", "--listen", f"unix:{path}", ready=False)
    assert second.process.wait(8) == 7
    assert f"cannot bind unix:{path}: Address already in use" in balancer.output() + second.output()


def test_a_port_in_use_and_a_bad_setting_have_their_exit_codes(start: START) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        busy = start("", "--listen", f"127.0.0.1:{other.getsockname()[1]}", ready=False)
        assert busy.process.wait(8) == 7
    assert "cannot bind 127.0.0.1" in busy.output() and "(choose another" in busy.output()
    bad = start("bandwith_mbps: 3", ready=False)
    assert bad.process.wait(8) == 3
    expected = f"{bad.file}:3: there is no setting 'bandwith_mbps' (did you mean bandwidth_mbps?)"
    assert expected in bad.output()


def test_a_proxy_that_never_starts_ends_the_load_balancer(start: START) -> None:
    balancer = start("bandwidth_mbps: 13", ready=False)
    assert balancer.process.wait(8) == 1
    assert "proxy 0 ended (exited with code 1) before anything was served" in balancer.output()


# ---------------------------------------------------------------------- crashes


def test_a_killed_proxy_is_replaced_at_once_and_no_connection_is_refused(start: START) -> None:
    balancer = start()
    client = Client(balancer, 0.002)
    gaps = []
    for _ in range(2):
        _, victim, _ = balancer.ask()
        time.sleep(RESTARTS.healthy_s + 0.2)  # or its death would count as one of a crash loop
        client.failures.clear()
        killed = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        gaps.append(client.answer_after(killed) - killed)
        assert all(isinstance(error, ConnectionResetError) for error in client.failures), client.failures
        assert len(client.failures) <= 1  # the one that it was talking to
    client.end()
    assert max(gaps) < 5.0  # seconds; 0.1 where nothing else runs
    assert balancer.output().count("proxy 0 ended (killed by SIGKILL) and is replaced") == 2


def test_a_crash_loop_is_slowed_down(start: START) -> None:
    balancer = start()
    for _ in range(4):
        with pytest.raises(ConnectionResetError):
            balancer.ask("die")
    times = balancer.output().count("proxy 0 ended")
    begun = time.monotonic()
    balancer.ask()
    assert times >= 3
    assert time.monotonic() - begun > 0.2


def test_a_killed_controller_and_a_killed_log_writer_are_replaced(start: START, tmp_path: Path) -> None:
    balancer = start("", "--log-dir", str(tmp_path))
    _, proxy, _ = balancer.ask()
    for pid in balancer.children() - {proxy}:
        os.kill(pid, signal.SIGKILL)
    balancer.says("(log writer|controller) ended .killed by SIGKILL. and is replaced", 2)
    assert balancer.ask()[1] == proxy
    eventually(lambda: len(balancer.children()) == 3, "both are back")
    log = tmp_path / "access.log"
    before = log.read_text().count("\n")
    balancer.ask()
    eventually(lambda: log.read_text().count("\n") > before, "the log goes on")


def test_a_killed_supervisor_leaves_no_process_behind(start: START) -> None:
    balancer = start("proxies: 2")
    eventually(lambda: len(balancer.children()) == 4, "all have started")
    pids = balancer.children()
    balancer.process.kill()
    balancer.process.wait()
    eventually(lambda: not any(alive(pid) for pid in pids), "all have ended", 2.0)
    with pytest.raises(ConnectionRefusedError):
        balancer.ask()


# ---------------------------------------------------------------------- stop


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_lets_requests_finish(start: START, number: int, tmp_path: Path) -> None:
    balancer = start("", "--log-dir", str(tmp_path))
    slow = threading.Thread(target=lambda: answers.append(balancer.ask("sleep 0.8")))
    answers: list[tuple[int, int, str]] = []
    slow.start()
    balancer.has_been_asked("sleep")
    balancer.process.send_signal(number)
    eventually(balancer.refuses, "the end of the listener")
    assert balancer.process.wait(8) == 0
    slow.join()
    assert len(answers) == 1
    assert '{"asked": "sleep"}' in (tmp_path / "access.log").read_text()
    assert balancer.output().endswith("stopped\n")


def test_a_second_signal_ends_the_load_balancer_at_once(start: START) -> None:
    balancer = start()
    failures: list[OSError] = []

    def ask() -> None:
        try:
            balancer.ask("sleep 20")
        except OSError as error:
            failures.append(error)

    slow = threading.Thread(target=ask)
    slow.start()
    balancer.has_been_asked("sleep")
    balancer.process.terminate()
    eventually(balancer.refuses, "the end of the listener")
    assert balancer.process.poll() is None
    balancer.process.terminate()
    assert balancer.process.wait(8) == 0, "the request would take 20 s"
    slow.join()
    assert len(failures) == 1


def test_a_child_that_does_not_stop_in_time_is_killed(start: START) -> None:
    balancer = start("drain_timeout: 0.2")
    _, proxy, _ = balancer.ask()
    os.kill(proxy, signal.SIGSTOP)
    begun = time.monotonic()
    balancer.process.terminate()
    assert balancer.process.wait(30) == 0
    assert time.monotonic() - begun > 1.0
    assert not alive(proxy)


# ---------------------------------------------------------------------- reload


def test_no_connection_is_refused_through_five_reloads(start: START, tmp_path: Path) -> None:
    balancer = start("proxies: 2", "--log-dir", str(tmp_path))
    pid = balancer.process.pid
    client = Client(balancer)
    numbers = set()
    for mbps in range(21, 26):
        balancer.write(f"proxies: 2\nbandwidth_mbps: {mbps}")
        balancer.reload()
        client.sees(str(mbps))
        numbers.add(client.answers[-1][1])
        eventually(lambda: len(balancer.children()) == 4, "the old ones have left")
    client.end()
    assert client.failures == []
    assert len(client.answers) > 50
    assert balancer.process.pid == pid and balancer.process.poll() is None
    assert numbers & {0, 1} and numbers & {2, 3}  # blocks of counters are used in turn
    balancer.process.terminate()
    assert balancer.process.wait(8) == 0
    # Every answer was written down, by six log writers one after another.
    assert (tmp_path / "access.log").read_text() == '{"asked": "who"}\n' * len(client.answers)


def test_a_reload_waits_for_the_requests_of_the_old_ones(start: START) -> None:
    balancer = start()
    answers: list[tuple[int, int, str]] = []
    slow = threading.Thread(target=lambda: answers.append(balancer.ask("sleep 1.5")))
    slow.start()
    balancer.has_been_asked("sleep")
    balancer.write("bandwidth_mbps: 20")
    balancer.reload()
    eventually(lambda: balancer.ask()[2] == "20", "the new settings hold")
    slow.join()
    assert answers[0][2] == "10"


def test_the_buckets_words_survive_a_reload(start: START) -> None:
    balancer = start()
    balancer.reload()
    balancer.says("the bucket's words are there")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("bandwidth_mbps: many", "{file}:3: bandwidth_mbps must be a number, not 'many'"),
        ("proxies: 1\nupstreams: x", "{file}:4: there is no setting 'upstreams' (did you mean upstream?)"),
        ("tls_certificate: /nowhere.pem", "{file}:3: tls_certificate: /nowhere.pem does not exist"),
        ("queue_size: [1", "{file}:"),
    ],
)
def test_a_bad_configuration_changes_nothing_and_says_why(start: START, text: str, complaint: str) -> None:
    balancer = start()
    before = balancer.children()
    balancer.write(text)
    balancer.process.send_signal(signal.SIGHUP)
    balancer.says("not reloaded, and nothing has changed: ")
    assert complaint.format(file=balancer.file) in balancer.output()
    times, why = balancer.refused()
    assert times == 1 and complaint.format(file=balancer.file) in why
    assert balancer.children() == before
    assert balancer.ask()[2] == "10"


def test_an_address_in_use_changes_nothing(start: START) -> None:
    balancer = start()
    before = balancer.children()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        balancer.write("", listen=f"127.0.0.1:{free_port()}, 127.0.0.1:{taken}")
        balancer.process.send_signal(signal.SIGHUP)
        balancer.says(f"nothing has changed: cannot bind 127.0.0.1:{taken}: Address already in use")
    assert balancer.children() == before
    assert balancer.ask()[2] == "10"


def test_a_reload_moves_to_other_addresses(start: START) -> None:
    balancer = start()
    other = free_port()
    balancer.write("", listen=f"127.0.0.1:{other}")
    balancer.reload()
    assert balancer.ask(port=other)
    eventually(lambda: len(balancer.children()) == 3, "the old ones have left")
    with pytest.raises(ConnectionRefusedError):
        balancer.ask()


@pytest.mark.parametrize("mbps", [13, 14])
def test_a_generation_that_does_not_accept_leaves_the_old_one_in_place(start: START, mbps: int) -> None:
    balancer = start()
    _, before, _ = balancer.ask()
    balancer.write(f"bandwidth_mbps: {mbps}")
    balancer.process.send_signal(signal.SIGHUP)
    if mbps == 14:
        never(lambda: balancer.ask()[1] != before, "an answer of the new proxy", 1.0)
        balancer.process.terminate()
        assert balancer.process.wait(8) == 0
        return
    balancer.says("proxy 1 ended .exited with code 1. and is replaced", 2)
    assert balancer.ask()[1] == before
    balancer.write("bandwidth_mbps: 15")
    balancer.reload()
    eventually(lambda: balancer.ask()[2] == "15", "the new settings hold")
    eventually(lambda: not alive(before), "the old one has left")


def test_a_storm_of_reloads_keeps_two_generations_and_loses_nothing(start: START) -> None:
    balancer = start()
    client = Client(balancer)
    most = 0
    storm = 20
    for _ in range(storm):
        balancer.process.send_signal(signal.SIGHUP)
        for _ in range(8):
            most = max(most, proxies(balancer))
            time.sleep(0.01)
    balancer.write("bandwidth_mbps: 77")
    balancer.reload()
    client.sees("77")
    client.end()
    assert 1 <= most <= 2
    assert client.failures == []
    assert 2 <= balancer.output().count("reloaded in") < storm
    eventually(lambda: len(balancer.children()) == 3, "one generation is left")


def proxies(balancer: Balancer) -> int:
    """How many are alive."""
    found = 0
    for pid in balancer.children():
        try:
            found += Path(f"/proc/{pid}/comm").read_text() == "proxy\n" and alive(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def test_a_stop_during_the_check_of_a_reload(start: START) -> None:
    balancer = start("", CHECK_TAKES="30")
    balancer.process.send_signal(signal.SIGHUP)
    eventually(balancer.checks, "the check of the reload")
    balancer.process.terminate()
    assert balancer.process.wait(20) == 0, "the check would take 30 s"


def test_a_crash_during_the_check_of_a_reload(start: START) -> None:
    balancer = start("", CHECK_TAKES="3")
    _, proxy, _ = balancer.ask()
    balancer.process.send_signal(signal.SIGHUP)
    eventually(balancer.checks, "the check of the reload")
    os.kill(proxy, signal.SIGKILL)
    eventually(lambda: not alive(proxy), "its end")
    balancer.ask()
    assert balancer.checks(), "the proxy is replaced while the check goes on"
    balancer.says("reloaded in")
    assert balancer.ask()


def test_logs_are_reopened(start: START, tmp_path: Path) -> None:
    balancer = start("", "--log-dir", str(tmp_path))
    log = tmp_path / "access.log"
    balancer.ask()
    eventually(lambda: log.read_text(), "the first line")
    log.rename(tmp_path / "moved")
    balancer.process.send_signal(signal.SIGUSR1)
    eventually(log.exists, "a new file")
    balancer.ask()
    eventually(lambda: log.read_text(), "the second line")
    assert (tmp_path / "moved").read_text().count("\n") == 1
