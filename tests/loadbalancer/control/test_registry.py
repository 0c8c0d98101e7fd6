"""Who is in the pool: what settings, file, DNS and the admin say, and what survives a controller."""

from __future__ import annotations

import json
from time import monotonic_ns

import pytest

from twofold.loadbalancer import shared_memory
from twofold.loadbalancer.control.discovery import Wanted
from twofold.loadbalancer.control.endpoint import from_record
from twofold.loadbalancer.control.health_check import MAX_WHY, Health
from twofold.loadbalancer.control.registry import DWELL_NS, Registry
from twofold.loadbalancer.endpoint_record import from_json
from twofold.net.address import Address

A, B, C = (f"http://127.0.0.1:900{n}" for n in (1, 2, 3))


def wanted(*names: str, source: str = "settings") -> dict[str, Wanted]:
    return {name: Wanted(Address("127.0.0.1", int(name[-4:])), source) for name in names}


@pytest.fixture
def registry() -> Registry:
    return Registry(shared_memory.attach(shared_memory.create()))


def states(registry: Registry) -> dict[str, str]:
    return {name: endpoint.state for name, endpoint in registry.endpoints.items()}


def later() -> int:
    return monotonic_ns() + DWELL_NS


def test_named_instances_join_and_others_leave(registry: Registry) -> None:
    registry.reconcile(wanted(A, B))
    assert states(registry) == {A: "down", B: "down"}
    registry.reconcile(wanted(B, C))
    assert states(registry) == {A: "drain", B: "down", C: "down"}
    assert registry.part(monotonic_ns()) == []  # the proxies may not have seen it yet
    assert [one.name for one in registry.part(later())] == [A]
    registry.reconcile(wanted(A))
    assert [registry.endpoints[name].cell for name in (B, C, A)] == [1, 2, 0]


def test_no_instance_leaves_with_outstanding_requests(registry: Registry) -> None:
    registry.reconcile(wanted(A))
    row = shared_memory.cell(registry._shared, 3, registry.endpoints[A].cell)
    row[shared_memory.OUTSTANDING] = 1
    registry.reconcile({})
    assert registry.part(later()) == [] and registry.outstanding(registry.endpoints[A]) == 1
    row[shared_memory.OUTSTANDING] = 0
    assert len(registry.part(later())) == 1


def test_an_instance_that_is_named_again_in_time_stays(registry: Registry) -> None:
    registry.reconcile(wanted(A))
    registry.reconcile({})
    registry.reconcile(wanted(A))
    assert states(registry) == {A: "down"} and registry.part(later()) == []


def test_a_cell_begins_empty(registry: Registry) -> None:
    registry.reconcile(wanted(A))
    for proxy in (0, 31):
        shared_memory.cell(registry._shared, proxy, 0)[shared_memory.REQUESTS] = 7
    registry.reconcile({})
    registry.part(later())
    registry.reconcile(wanted(B))
    assert registry.endpoints[B].cell == 0
    assert not any(
        shared_memory.cell(registry._shared, proxy, 0)[shared_memory.REQUESTS] for proxy in (0, 31)
    )


def test_instances_added_by_the_admin_stay_whatever_the_file_says(registry: Registry) -> None:
    assert registry.add("http://127.0.0.1:9001/").name == A
    registry.reconcile(wanted(B))
    assert states(registry) == {A: "down", B: "down"}
    registry.reconcile(wanted(A, B))
    registry.reconcile({})
    assert states(registry) == {A: "down", B: "drain"}


def test_instances_removed_by_the_admin_stay_away_until_they_are_added(registry: Registry) -> None:
    registry.reconcile(wanted(A, B))
    registry.remove(registry.find(A))
    registry.part(later())
    registry.reconcile(wanted(A, B, C))
    assert set(states(registry)) == {B, C}
    registry.add(A)
    registry.reconcile(wanted(A, B, C))
    assert set(states(registry)) == {A, B, C}


def test_a_removal_is_forgotten_with_the_name(registry: Registry) -> None:
    registry.reconcile(wanted(A, B))
    registry.remove(registry.find(A))
    registry.part(later())
    registry.reconcile(wanted(B))
    registry.reconcile(wanted(A, B))
    assert set(states(registry)) == {A, B}


def test_a_removal_is_kept_until_every_source_has_answered(registry: Registry) -> None:
    registry.reconcile(wanted(A, B))
    registry.remove(registry.find(A))
    registry.part(later())
    registry.reconcile(wanted(B), certain=False)
    registry.reconcile(wanted(A, B))
    assert set(states(registry)) == {B}


def test_a_drained_instance_stays_drained_until_it_is_added(registry: Registry) -> None:
    registry.reconcile(wanted(A))
    registry.find(A).drained = True
    registry.reconcile(wanted(A, B))
    assert states(registry)[A] == "drain" and registry.part(later()) == []
    registry.add(A)
    assert states(registry)[A] == "down"


def test_names_may_be_shortened(registry: Registry) -> None:
    registry.reconcile(wanted(A))
    for text in (A, A + "/", "127.0.0.1:9001"):
        assert registry.find(text).name == A
    for text in ("127.0.0.1", "nobody", "", "dns+" + A):
        with pytest.raises(KeyError):
            registry.find(text)


def test_the_pool_is_bounded(registry: Registry, capfd: pytest.CaptureFixture[str]) -> None:
    many = {f"http://10.0.0.1:{port}": Wanted(Address("10.0.0.1", port), "dns") for port in range(1, 259)}
    registry.reconcile(many)
    assert len(registry.endpoints) == shared_memory.MAX_INSTANCES
    assert capfd.readouterr().err.count("is left out: a pool has at most 256 instances") == 2
    with pytest.raises(ValueError, match="at most 256"):
        registry.add(A)
    shared_memory.endpoint_table(registry._shared).publish(registry.published())  # and it fits


def test_a_pool_of_the_longest_names_fits_into_the_table(registry: Registry) -> None:
    stem = ".".join(["n" * 63] * 3 + ["n" * 57])
    many = {}
    for number in range(shared_memory.MAX_INSTANCES):
        where = Address(f"{stem}{number:03}", 65535)
        many[f"http://{where}"] = Wanted(where, "dns", f"dns+http://{where}")
    registry.reconcile(many)
    for endpoint in registry.endpoints.values():
        endpoint.verdict.why = "\\" * MAX_WHY
        endpoint.verdict.local = "@twofold-" + "0" * 36
    shared_memory.endpoint_table(registry._shared).publish(registry.published())


@pytest.mark.parametrize("text", ["ftp://host", "dns+http://models:9001", "", "http://", "models", ":9001"])
def test_invalid_instances(registry: Registry, text: str) -> None:
    with pytest.raises(ValueError, match="is no instance"):
        registry.add(text)


def test_add_takes_the_names_that_drain_and_remove_take(registry: Registry) -> None:
    assert registry.add("127.0.0.1:9001") is registry.find("http://127.0.0.1:9001")


# ---------------------------------------------------------------------- the next controller


def test_everything_is_in_the_table(registry: Registry) -> None:
    registry.reconcile(wanted(A, B, C, source="dns"))
    registry.add("unix:/run/model.sock").verdict.hear(Health(True, workers=2))
    registry.find(A).drained = True
    registry.find(B).since_ns = 12345
    registry.remove(registry.find(C))
    registry.reconcile(wanted(A, B, C, source="dns"))
    heir = Registry(registry._shared)
    table = json.loads(json.dumps(registry.published()))
    heir.inherit(table["instances"], table["removed"])
    assert heir.published() == registry.published()
    assert heir.removed == {C}
    heir.reconcile(wanted(A, B, C, source="dns"))
    assert states(heir) == {A: "drain", B: "down", C: "drain", "unix:/run/model.sock": "up"}


def test_entries_of_another_version_are_understood() -> None:
    old = {"cell": 3, "name": A, "host": "127.0.0.1", "port": 9001, "path": "", "state": "up",
           "workers": 2, "since_ns": 0}  # fmt: skip
    endpoint = from_record(from_json(old), 0)
    assert endpoint.state == "up" and endpoint.cell == 3 and endpoint.verdict.workers == 2
    with pytest.raises(KeyError):
        from_json({"name": A})


def test_an_invalid_table_is_refused(registry: Registry) -> None:
    registry.reconcile(wanted(A, B))
    entries = registry.published()["instances"]
    entries[0]["cell"] = entries[1]["cell"]
    with pytest.raises(KeyError):
        Registry(registry._shared).inherit(entries, ())
