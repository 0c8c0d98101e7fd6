"""Made once, by one, and whole or not at all."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from twofold.errors import ResourceError
from twofold.server.archive.cache import Cache

CONTEXT = multiprocessing.get_context("fork")


def fill_with(text: str) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        (folder / "content").write_text(text)

    return fill


def names(cache: Cache) -> list[str]:
    return sorted(path.name for path in cache.folder.iterdir())


def test_makes_once(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "a" / "b")
    assert cache.ready("key") is None
    assert not cache.folder.exists()
    made = cache.make("key", fill_with("one"))
    assert made == cache.ready("key") == tmp_path / "a" / "b" / "key"
    assert cache.make("key", fill_with("two")) == made
    assert (made / "content").read_text() == "one"
    assert cache.make("other", fill_with("two")) != made
    assert cache.folder.stat().st_mode & 0o777 == 0o700


def test_finishes_in_the_final_place(tmp_path: Path) -> None:
    places: list[Path] = []
    cache = Cache(tmp_path / "cache")
    made = cache.make("key", places.append, lambda folder, lock: places.append(folder))
    assert places[0] != made and places[1] == made


@pytest.mark.parametrize("step", ["fill", "finish"])
def test_failure_leaves_nothing(step: str, tmp_path: Path) -> None:
    def fail(folder: Path, lock: int = 0) -> None:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    cache = Cache(tmp_path / "cache")
    with pytest.raises(KeyboardInterrupt):
        if step == "fill":
            cache.make("key", fail)
        else:
            cache.make("key", fill_with("x"), fail)
    assert names(cache) == [".key.lock"]
    assert (cache.make("key", fill_with("again")) / "content").read_text() == "again"


def test_an_entry_removed_by_hand_is_made_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    made = cache.make("key", fill_with("one"))
    (made / "content").unlink()
    made.rmdir()
    assert (cache.make("key", fill_with("two")) / "content").read_text() == "two"


def test_many_processes_make_once(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    tally = tmp_path / "tally"

    def slowly(folder: Path) -> None:
        with tally.open("a") as file:
            file.write("x")
        time.sleep(0.3)
        (folder / "content").write_text("whole")

    def start(waited: Callable[[], None]) -> None:
        made = cache.make("key", slowly, waiting=waited)
        os._exit(0 if (made / "content").read_text() == "whole" else 1)

    waiting = CONTEXT.Value("i", 0)

    def count() -> None:
        with waiting.get_lock():
            waiting.value += 1

    processes = [CONTEXT.Process(target=start, args=(count,)) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
    assert [process.exitcode for process in processes] == [0] * 6
    assert tally.read_text() == "x"
    assert waiting.value == 5


@pytest.mark.parametrize("step", ["fill", "finish"])
def test_killed_in_the_middle(step: str, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")

    def hang(folder: Path, lock: int = 0) -> None:
        (folder / "half").write_text("half")
        time.sleep(60)

    steps = (hang,) if step == "fill" else (fill_with("x"), hang)
    process = CONTEXT.Process(target=cache.make, args=("key", *steps))
    process.start()
    eventually(lambda: list(cache.folder.glob("*/half")), "a half of it")
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(5)
    assert cache.ready("key") is None
    # Another key sweeps it, too.
    cache.make("other", fill_with("x"))
    assert names(cache) == [".key.lock", ".other.lock", "other", "other.ready"]
    assert os.listdir(cache.make("key", fill_with("whole"))) == ["content"]


def test_an_entry_in_the_making_is_not_swept(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    process = CONTEXT.Process(target=cache.make, args=("slow", lambda folder: time.sleep(60)))
    process.start()
    try:
        eventually((cache.folder / ".slow.part").exists, "the folder in the making")
        cache.make("other", fill_with("x"))
        assert (cache.folder / ".slow.part").exists()
    finally:
        process.kill()
        process.join(5)


def test_a_surviving_child_keeps_the_lock(tmp_path: Path) -> None:
    """What still writes into the folder must have ended before somebody else begins there."""
    cache = Cache(tmp_path / "cache")
    pids = tmp_path / "pid"

    def start() -> None:
        with cache.locked("key", lambda: None) as lock:
            os.set_inheritable(lock, True)
            pids.write_text(str(os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "60")))
            time.sleep(60)

    process = CONTEXT.Process(target=start)
    process.start()
    eventually(lambda: pids.exists() and pids.read_text(), "the pid")
    process.kill()
    process.join(5)
    second = CONTEXT.Process(target=cache.make, args=("key", fill_with("x")))
    second.start()
    second.join(0.5)
    assert second.exitcode is None
    os.kill(int(pids.read_text()), signal.SIGKILL)
    second.join(10)
    assert second.exitcode == 0


@pytest.mark.parametrize("place", ["file", "below"])
def test_folder_that_cannot_be_made(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file" if place == "file" else tmp_path / "file" / "cache")
    with pytest.raises(ResourceError, match="cannot write to the cache folder") as caught:
        cache.make("key", fill_with("x"))
    assert "--cache-dir" in caught.value.remedy
