"""Who is in the pool: what settings, file, DNS and the admin say, and what survives a steward."""

from __future__ import annotations

import json
from time import monotonic_ns

import pytest

from twofold.loadbalancer import shared_memory
from twofold.loadbalancer.control.discovery import Wanted
from twofold.loadbalancer.control.endpoint import from_entry
from twofold.loadbalancer.control.health_check import MAX_WHY, Health
from twofold.loadbalancer.control.registry import DWELL_NS, Registry
from twofold.net.address import Address

A, B, C = (f"http://127.0.0.1:900{n}" for n in (1, 2, 3))


def wanted(*names: str, source: str = "settings") -> dict[str, Wanted]:
    return {name: Wanted(Address("127.0.0.1", int(name[-4:])), source) for name in names}


@pytest.fixture
def census() -> Registry:
    return Registry(shared_memory.attach(shared_memory.create()))


def states(census: Registry) -> dict[str, str]:
    return {name: member.state for name, member in census.members.items()}


def later() -> int:
    return monotonic_ns() + DWELL_NS


def test_who_is_named_joins_and_who_is_not_leaves(census: Registry) -> None:
    census.reconcile(wanted(A, B))
    assert states(census) == {A: "down", B: "down"}
    census.reconcile(wanted(B, C))
    assert states(census) == {A: "drain", B: "down", C: "down"}
    assert census.part(monotonic_ns()) == []  # the proxies may not have seen it yet
    assert [one.name for one in census.part(later())] == [A]
    census.reconcile(wanted(A))
    assert [census.members[name].cell for name in (B, C, A)] == [1, 2, 0]


def test_nobody_goes_with_requests_in_hand(census: Registry) -> None:
    census.reconcile(wanted(A))
    row = shared_memory.cell(census._shared, 3, census.members[A].cell)
    row[shared_memory.OUTSTANDING] = 1
    census.reconcile({})
    assert census.part(later()) == [] and census.outstanding(census.members[A]) == 1
    row[shared_memory.OUTSTANDING] = 0
    assert len(census.part(later())) == 1


def test_who_is_named_again_in_time_stays(census: Registry) -> None:
    census.reconcile(wanted(A))
    census.reconcile({})
    census.reconcile(wanted(A))
    assert states(census) == {A: "down"} and census.part(later()) == []


def test_a_cell_begins_empty(census: Registry) -> None:
    census.reconcile(wanted(A))
    for proxy in (0, 31):
        shared_memory.cell(census._shared, proxy, 0)[shared_memory.REQUESTS] = 7
    census.reconcile({})
    census.part(later())
    census.reconcile(wanted(B))
    assert census.members[B].cell == 0
    assert not any(shared_memory.cell(census._shared, proxy, 0)[shared_memory.REQUESTS] for proxy in (0, 31))


def test_what_the_admin_adds_stays_whatever_the_file_says(census: Registry) -> None:
    assert census.add("http://127.0.0.1:9001/").name == A
    census.reconcile(wanted(B))
    assert states(census) == {A: "down", B: "down"}
    census.reconcile(wanted(A, B))
    census.reconcile({})
    assert states(census) == {A: "down", B: "drain"}


def test_what_the_admin_removes_stays_away_until_it_is_added(census: Registry) -> None:
    census.reconcile(wanted(A, B))
    census.remove(census.find(A))
    census.part(later())
    census.reconcile(wanted(A, B, C))
    assert set(states(census)) == {B, C}
    census.add(A)
    census.reconcile(wanted(A, B, C))
    assert set(states(census)) == {A, B, C}


def test_a_removal_is_forgotten_with_the_name(census: Registry) -> None:
    census.reconcile(wanted(A, B))
    census.remove(census.find(A))
    census.part(later())
    census.reconcile(wanted(B))
    census.reconcile(wanted(A, B))
    assert set(states(census)) == {A, B}


def test_a_removal_is_kept_while_somebody_is_still_to_be_heard(census: Registry) -> None:
    census.reconcile(wanted(A, B))
    census.remove(census.find(A))
    census.part(later())
    census.reconcile(wanted(B), certain=False)
    census.reconcile(wanted(A, B))
    assert set(states(census)) == {B}


def test_a_drained_one_is_drained_until_it_is_added(census: Registry) -> None:
    census.reconcile(wanted(A))
    census.find(A).drained = True
    census.reconcile(wanted(A, B))
    assert states(census)[A] == "drain" and census.part(later()) == []
    census.add(A)
    assert states(census)[A] == "down"


def test_names_may_be_shortened(census: Registry) -> None:
    census.reconcile(wanted(A))
    for text in (A, A + "/", "127.0.0.1:9001"):
        assert census.find(text).name == A
    for text in ("127.0.0.1", "nobody", "", "dns+" + A):
        with pytest.raises(KeyError):
            census.find(text)


def test_the_pool_has_an_end(census: Registry, capfd: pytest.CaptureFixture[str]) -> None:
    many = {f"http://10.0.0.1:{port}": Wanted(Address("10.0.0.1", port), "dns") for port in range(1, 259)}
    census.reconcile(many)
    assert len(census.members) == shared_memory.MAX_INSTANCES
    assert capfd.readouterr().err.count("is left out: a pool has at most 256 instances") == 2
    with pytest.raises(ValueError, match="at most 256"):
        census.add(A)
    shared_memory.Board(census._shared).publish(census.board())  # and it fits


def test_a_pool_of_the_longest_names_fits_on_the_board(census: Registry) -> None:
    stem = ".".join(["n" * 63] * 3 + ["n" * 57])
    many = {}
    for number in range(shared_memory.MAX_INSTANCES):
        where = Address(f"{stem}{number:03}", 65535)
        many[f"http://{where}"] = Wanted(where, "dns", f"dns+http://{where}")
    census.reconcile(many)
    for member in census.members.values():
        member.verdict.why = "\\" * MAX_WHY
        member.verdict.local = "@twofold-" + "0" * 36
    shared_memory.Board(census._shared).publish(census.board())


@pytest.mark.parametrize("text", ["ftp://host", "dns+http://models:9001", "", "http://", "models", ":9001"])
def test_what_is_no_instance(census: Registry, text: str) -> None:
    with pytest.raises(ValueError, match="is no instance"):
        census.add(text)


def test_an_instance_may_be_added_by_what_drain_and_remove_know_it_by(census: Registry) -> None:
    assert census.add("127.0.0.1:9001") is census.find("http://127.0.0.1:9001")


# ---------------------------------------------------------------------- the next steward


def test_everything_is_on_the_board(census: Registry) -> None:
    census.reconcile(wanted(A, B, C, source="dns"))
    census.add("unix:/run/model.sock").verdict.hear(Health(True, workers=2))
    census.find(A).drained = True
    census.find(B).since_ns = 12345
    census.remove(census.find(C))
    census.reconcile(wanted(A, B, C, source="dns"))
    heir = Registry(census._shared)
    board = json.loads(json.dumps(census.board()))
    heir.inherit(board["instances"], board["removed"])
    assert heir.board() == census.board()
    assert heir.removed == {C}
    heir.reconcile(wanted(A, B, C, source="dns"))
    assert states(heir) == {A: "drain", B: "down", C: "drain", "unix:/run/model.sock": "up"}


def test_a_line_of_another_version_suffices() -> None:
    old = {"cell": 3, "name": A, "host": "127.0.0.1", "port": 9001, "path": "", "state": "up",
           "workers": 2, "since_ns": 0}  # fmt: skip
    member = from_entry(old, 0)
    assert member.state == "up" and member.cell == 3 and member.verdict.workers == 2
    with pytest.raises(KeyError):
        from_entry({"name": A}, 0)


def test_a_board_that_makes_no_sense_is_refused(census: Registry) -> None:
    census.reconcile(wanted(A, B))
    entries = census.board()["instances"]
    entries[0]["cell"] = entries[1]["cell"]
    with pytest.raises(KeyError):
        Registry(census._shared).inherit(entries, ())
