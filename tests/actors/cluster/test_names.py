"""What an actor is called, and what its name contains: names as they were given by every release."""

from __future__ import annotations

from rayfold.actors.cluster.names import (
    PartitionName,
    ProjectorName,
    names_of,
    node_agent_name,
    own_actor_name,
    partition_name,
    partition_named,
    projector_name,
    projector_named,
    rest_of_name,
    seat_in,
    store_system,
    supervisor_name,
    systems_in,
)
from rayfold.runtime.stream import StreamId


def test_names_are_what_they_were() -> None:
    assert store_system("bank-data", "5f1d8f0c-6d0e-4a55") == "bank-data-5f1d8f0c"
    assert supervisor_name("bank") == "bank/supervisor"
    assert node_agent_name("bank", "n1") == "bank/keeper-n1"
    assert partition_name("bank", 3) == "bank/partition-3"
    assert partition_name("bank", 3, "n1", "2.abcdef.7") == "bank/partition-3@n1#2.abcdef.7"
    assert projector_name("bank", "Balances-v2.1", 0, 1, "7") == "bank/Balances-v2.1/0-1#7"
    assert own_actor_name("bank", StreamId("Account", "alice"), 0, 7, 3) == "bank:Account/alice@0.7.3"


def test_what_was_made_is_read() -> None:
    assert partition_named(partition_name("bank", 3, "n1", "2.abcdef.7")) == PartitionName(3, "n1", 2)
    made = projector_name("bank", "Balances-v2.1", 0, 1, "7")
    assert projector_named(made) == ProjectorName("Balances", 0, 1, "v2.1", "7")
    assert seat_in(made) == "bank/Balances-v2.1/0-1"
    assert systems_in([supervisor_name("shop"), made, supervisor_name("bank")]) == ["bank", "shop"]


def test_no_name_is_taken_for_one_of_another_kind() -> None:
    partition = partition_name("bank", 3, "n1", "2.abcdef.7")
    projector = projector_name("bank", "Balances-v2", 0, 0, "1")
    others = [supervisor_name("bank"), node_agent_name("bank", "n1"), "bank:Account/partition-1@n#1.a.1"]
    assert [name for name in (partition, projector, *others) if partition_named(name)] == [partition]
    assert [name for name in (partition, projector, *others) if projector_named(name)] == [projector]


def test_a_system_whose_name_begins_with_that_of_another_is_another() -> None:
    assert names_of("bank", ["bank/supervisor", "bank-2/supervisor", "bank:Account/a@0.1.1"]) == ["bank/supervisor"]
    assert rest_of_name("bank").fullmatch("bank-2/supervisor") is None
    found = rest_of_name("bank|shop").fullmatch("shop:Account/a\nb@0.1.1")
    assert found is not None
    assert found[1] == "Account/a\nb@0.1.1"
