"""A partition that is handed over: what its actor and the node agents of two nodes do, one step after the other,
without Ray.

The actors are plain classes; each test calls them in the order in which a supervisor would, or would not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rayfold.actors.cluster.node import DATA_VARIABLE, NodeIdentity, create_or_read_node
from rayfold.actors.cluster.rpc import Reply
from rayfold.actors.nodes.agent import NodeAgent, NodeAgentPlan
from rayfold.actors.nodes.store import ClusterReader, ClusterStore, PartitionLocator
from rayfold.actors.packaging.shipping import ship
from rayfold.actors.partition.actor import PartitionActor, PartitionPlan
from rayfold.actors.settings import Settings
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.envelope import Envelope, join, pack
from rayfold.runtime.encoding.outcome import decode_answer
from rayfold.runtime.errors import (
    Fenced,
    InvalidMessage,
    RayfoldError,
    Sealed,
    StoreMismatch,
    StoreMissing,
    Unavailable,
)
from rayfold.runtime.log.folder import open_log
from rayfold.runtime.log.sealing import Seal
from rayfold.runtime.log.segment import read_log_segment
from rayfold.runtime.receipt import Receipt
from rayfold.runtime.store.node_store import node_share
from rayfold.runtime.store.partition_map import PartitionMap
from rayfold.runtime.store.store import open_store, read_manifest
from tests.bank import Account, Deposit, Open
from tests.runtime.log.appends import ALICE, deposits

On = Callable[[str], None]
READERS = 8


class Bank:
    """A store of one partition over two nodes, at home on node `a`."""

    def __init__(self, folder: Path, on: On) -> None:
        self.on = on
        self.folder = folder
        self.nodes: dict[str, NodeIdentity] = {}
        self.agents: dict[str, Any] = {}
        for name in ("a", "b"):
            self.nodes[name] = create_or_read_node(folder / name, name)
            self.agents[name] = NodeAgent(NodeAgentPlan("bank", self.nodes[name].node_id, "rayfold"))
        ids = {node.node_id: name for name, node in self.nodes.items()}
        self.map = PartitionMap.spread("5f1d8f0c-6d0e-4a55-9f5e-1b7f0f3a1c11", 1, ids)
        for name in ("a", "b"):
            on(name)
            told(self.agents[name].open())
            told(self.agents[name].create(self.map))
        for name in ("a", "b"):
            on(name)
            told(self.agents[name].place(self.map))
        self.attempts = 0

    def moved(self, epoch: int) -> PartitionMap:
        """The map in which the partition is at home on `b`, with the epoch of its seal."""
        return self.map.with_home(0, self.id_of("b"), epoch=epoch)

    def id_of(self, node: str) -> str:
        return self.nodes[node].node_id

    def partition(self, node: str) -> Any:
        """An actor for the partition on that node; nothing is opened yet."""
        store, settings = ClusterStore("bank", "rayfold", self.map), Settings(local_sockets=False)
        catalogue = ship(Catalogue([Account]))
        plan = PartitionPlan(0, store, catalogue, (), "bank", "rayfold", settings, False, self.id_of(node))
        return PartitionActor(plan)

    def execute(self, partition: Any, *envelopes: Envelope) -> list[Any]:
        """What a router would get."""
        self.attempts += 1
        packed = [pack(one) for one in envelopes]
        blob = partition.execute(b"c" * 16, self.attempts, 0, join(one for _, one in packed))
        return decode_answer(blob, [one for one, _ in packed])[0]

    def open_account(self, partition: Any, name: str) -> Any:
        return self.execute(partition, Envelope(Account, name, Open(owner="x")))[0]


class WithoutRay(PartitionLocator):
    """Of a process that is on neither node, and asks the node agents by calling them."""

    def __init__(self, bank: Bank) -> None:
        super().__init__(ClusterStore("bank", "rayfold", bank.map))
        self.here, self._map_file, self._bank = "", None, bank

    def ask(self, node_id: str, method: Callable[[Any], Any], *arguments: Any) -> Any:  # type: ignore[override]
        """See `PartitionLocator`."""
        [name] = [name for name, node in self._bank.nodes.items() if node.node_id == node_id]
        self._bank.on(name)
        return method(self._bank.agents[name])(*arguments).unwrap()


def told(reply: Reply[Any]) -> Any:
    """What an actor replies; an error is raised."""
    return reply.unwrap()


@pytest.fixture
def bank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bank:
    def on(node: str) -> None:
        """What is called from now on runs on this node."""
        monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / node))

    return Bank(tmp_path, on)


SEALED = 2
"""The epoch of the first seal: the log was taken over once."""


def seal(bank: Bank, partition: Any) -> Seal:
    bank.on("a")
    sealed: Seal = told(partition.seal(bank.id_of("b")))
    return sealed


def copy(bank: Bank, sealed: Seal) -> None:
    """Steps 1 and 4, on `b`: there is no Ray to ask the other node agent with."""
    store = open_store(bank.folder / "a" / "bank")
    reader = store.open_reader(0)
    share = node_share(bank.folder / "b" / "bank", bank.id_of("b"))
    share.pull(0, sealed.head, lambda after, up_to: read_log_segment(reader, after, up_to))
    reader.close()
    told(bank.agents["b"].finish(0, sealed))


def hand_over(bank: Bank, sealed: Seal) -> PartitionMap:
    """The step that counts, by another actor of the partition than the one that sealed it. The map of the old home."""
    bank.on("a")
    told(bank.partition("a").hand_over(bank.id_of("b"), sealed.epoch, 2))
    placed: PartitionMap = told(bank.agents["a"].place(bank.map))
    assert placed == bank.moved(sealed.epoch)
    return placed


def test_a_partition_takes_commands_at_its_home_and_nowhere_else(bank: Bank) -> None:
    bank.on("a")
    assert isinstance(bank.open_account(bank.partition("a"), "alice"), Receipt)
    bank.on("b")
    with pytest.raises(Sealed):
        told(bank.partition("b").open())
    bank.on("b")
    with pytest.raises(StoreMismatch, match="this is the data folder of node b"):
        told(bank.partition("a").open())  # Ray has started it on the wrong node


def test_the_next_actor_is_prepared_with_what_this_one_has_in_memory(bank: Bank) -> None:
    bank.on("a")
    present, following = bank.partition("a"), bank.partition("a")
    for name in ("alice", "bob"):
        bank.open_account(present, name)
    told(following.prepare(()))
    told(following.prepare(told(present.residents(0))))
    present.close()
    (deposited,) = bank.execute(following, Envelope(Account, "alice", Deposit(amount=5)))
    assert (deposited.position, deposited.version) == (3, 2)
    assert [stream.id for stream in following._serving().loop.residents._offered] == ["bob"], "alice's has been used"


def test_a_node_agent_reads_for_others_and_does_nothing_else_with_a_log(bank: Bank) -> None:
    bank.on("a")
    partition = bank.partition("a")
    bank.open_account(partition, "alice")
    partition.close()
    assert told(bank.agents["a"].read(0, "head", ())) == 1
    with pytest.raises(InvalidMessage, match="node agent: it answers .*head.*, and not 'close'"):
        told(bank.agents["a"].read(0, "close", ()))
    assert told(bank.agents["a"].read(0, "head", ())) == 1


def test_a_sealed_partition_sends_everybody_away_and_so_does_its_next_activation(bank: Bank) -> None:
    bank.on("a")
    partition = bank.partition("a")
    bank.open_account(partition, "alice")
    sealed = seal(bank, partition)
    assert (sealed.head, sealed.epoch) == (1, 2)
    assert seal(bank, partition) == sealed, "asked again, as after an answer that was lost"
    assert isinstance(bank.open_account(partition, "bob"), Fenced)
    again = bank.partition("a")
    assert isinstance(bank.open_account(again, "bob"), Fenced), "sent again, and then elsewhere"
    with pytest.raises(Sealed):
        told(again.open())


def test_a_broken_seal_lets_it_go_on_with_everything_that_it_had(bank: Bank) -> None:
    bank.on("a")
    partition = bank.partition("a")
    bank.open_account(partition, "alice")
    seal(bank, partition)
    told(partition.unseal(bank.id_of("b"), SEALED))
    deposited = bank.execute(partition, Envelope(Account, "alice", Deposit(amount=5)))[0]
    assert isinstance(deposited, Receipt)
    assert (deposited.position, deposited.version) == (2, 2)


def test_what_is_behind_a_batch_that_was_turned_away_waits_until_that_is_sent_again(bank: Bank) -> None:
    bank.on("a")
    partition = bank.partition("a")
    bank.open_account(partition, "alice")
    blob = join([pack(Envelope(Account, "alice", Deposit(amount=5)))[1]])
    seal(bank, partition)
    assert partition.execute(b"c" * 16, 2, 1, blob)  # turned away
    told(partition.unseal(bank.id_of("b"), SEALED))
    assert partition.execute(b"c" * 16, 3, 2, blob) == b""
    with pytest.raises(InvalidMessage):
        partition.execute(b"c" * 16, 4, 0, b"\xc1 no batch")
    assert partition.execute(b"c" * 16, 5, 4, blob) == b""
    assert partition.execute(b"c" * 16, 6, 0, blob)


def test_after_the_map_is_written_the_old_home_can_not_be_opened_and_the_seal_not_be_broken(bank: Bank) -> None:
    bank.on("a")
    partition = bank.partition("a")
    bank.open_account(partition, "alice")
    hand_over(bank, seal(bank, partition))
    with pytest.raises(Sealed):
        told(partition.unseal(bank.id_of("b"), SEALED))
    with pytest.raises(Sealed):
        told(bank.partition("a").open())
    with pytest.raises(Sealed):
        told(bank.agents["a"].read(0, "head", ()))


def test_a_hand_over_whose_seal_was_broken_meanwhile_is_not_written_down(bank: Bank) -> None:
    bank.on("a")
    partition = bank.partition("a")
    sealed = seal(bank, partition)
    told(partition.unseal(bank.id_of("b"), sealed.epoch))
    bank.open_account(partition, "alice")
    partition.close()  # a process opens a log once, and this one is all processes
    with pytest.raises(Sealed, match="this move was called off"):
        hand_over(bank, sealed)
    assert told(bank.agents["a"].map()) == bank.map
    assert isinstance(bank.open_account(bank.partition("a"), "bob"), Receipt)


def test_a_hand_over_of_an_earlier_seal_is_not_written_down(bank: Bank) -> None:
    bank.on("a")
    partition = bank.partition("a")
    earlier = seal(bank, partition)
    told(partition.unseal(bank.id_of("b"), earlier.epoch))
    bank.open_account(partition, "alice")
    assert seal(bank, partition).epoch > earlier.epoch
    with pytest.raises(Sealed):
        hand_over(bank, earlier)


def test_a_hand_over_that_comes_too_late_does_not_disturb_the_partition_that_goes_on(bank: Bank) -> None:
    bank.on("a")
    partition = bank.partition("a")
    sealed = seal(bank, partition)
    told(partition.unseal(bank.id_of("b"), sealed.epoch))
    assert isinstance(bank.open_account(partition, "alice"), Receipt)
    epoch = told(partition.status()).epoch
    with pytest.raises(Sealed, match="this move was called off"):
        told(partition.hand_over(bank.id_of("b"), sealed.epoch, 2))
    told(partition.unseal(bank.id_of("b"), sealed.epoch))
    assert isinstance(bank.open_account(partition, "bob"), Receipt)
    assert told(partition.status()).epoch == epoch, "its log was not even closed"


def test_the_new_home_has_no_log_before_it_is_given_the_map_and_goes_on_under_a_later_epoch(bank: Bank) -> None:
    bank.on("a")
    partition = bank.partition("a")
    sealed = seal(bank, partition)  # an empty log: there is nothing to copy
    bank.on("b")
    told(bank.agents["b"].finish(0, sealed))
    with pytest.raises(Sealed):
        told(bank.partition("b").open())
    hand_over(bank, sealed)
    bank.on("b")
    told(bank.agents["b"].place(bank.moved(sealed.epoch)))
    arrived = bank.partition("b")
    assert isinstance(bank.open_account(arrived, "alice"), Receipt)
    assert told(arrived.status()).epoch == sealed.epoch + 1


def test_who_was_asked_at_the_new_home_before_that_was_given_the_map_takes_commands_when_it_is_told_to(
    bank: Bank,
) -> None:
    bank.on("a")
    sealed = seal(bank, bank.partition("a"))
    bank.on("b")
    told(bank.agents["b"].finish(0, sealed))
    hand_over(bank, sealed)
    bank.on("b")
    arrived = bank.partition("b")
    assert isinstance(bank.open_account(arrived, "alice"), Fenced)
    with pytest.raises(Sealed):
        told(arrived.unseal("", 0))
    told(bank.agents["b"].place(bank.moved(sealed.epoch)))
    told(arrived.unseal("", 0))
    assert isinstance(bank.open_account(arrived, "alice"), Receipt)


def test_a_reader_waits_for_the_new_home_to_be_given_the_map(bank: Bank) -> None:
    bank.on("a")
    partition = bank.partition("a")
    bank.open_account(partition, "alice")
    reader = ClusterReader(ClusterStore("bank", "rayfold", bank.map), WithoutRay(bank), 0, 0.0)
    sealed = seal(bank, partition)
    bank.on("b")
    told(bank.agents["b"].open())
    copy(bank, sealed)
    hand_over(bank, sealed)
    with pytest.raises(Unavailable, match="partition 0: its log cannot be read: partition 0: moved to node a"):
        reader.head()
    bank.on("b")
    told(bank.agents["b"].place(bank.moved(sealed.epoch)))
    assert reader.head() == 1


def test_a_copy_that_does_not_end_as_the_original_does_is_not_taken_for_it(bank: Bank) -> None:
    bank.on("a")
    partition = bank.partition("a")
    bank.open_account(partition, "alice")
    sealed = seal(bank, partition)
    bank.on("b")
    with pytest.raises(RayfoldError, match="not here"):
        told(bank.agents["b"].finish(0, sealed))


def test_an_old_log_is_kept_until_its_new_home_has_opened_it_and_states_what_it_holds(bank: Bank) -> None:
    bank.on("a")
    partition = bank.partition("a")
    bank.open_account(partition, "alice")
    old = bank.folder / "a" / "bank" / "partition-00000"
    assert told(bank.agents["a"].leftovers()) == []
    sealed = seal(bank, partition)
    bank.on("b")
    copy(bank, sealed)
    hand_over(bank, sealed)
    bank.on("a")
    (left,) = told(bank.agents["a"].leftovers())
    bank.on("b")
    with pytest.raises(StoreMismatch, match="partition 0 is not at home here; ask its home"):
        told(bank.agents["b"].home_statement(0, (left.head,)))
    told(bank.agents["b"].place(bank.moved(sealed.epoch)))
    too_early = told(bank.agents["b"].home_statement(0, (left.head,)))
    bank.on("a")
    why = "the log of its home has epoch 2, which is not later than 2"
    assert (told(bank.agents["a"].discard(left.name, too_early)), old.exists()) == (why, True)
    bank.on("b")
    arrived = bank.partition("b")
    told(arrived.open())
    arrived.close()  # a process opens a log once, and this one is all processes
    statement = told(bank.agents["b"].home_statement(0, (left.head,)))
    bank.on("a")
    assert (told(bank.agents["a"].discard(left.name, statement)), old.exists()) == ("", False)


def test_a_log_that_was_read_by_many_at_once_is_let_go_of_when_its_partition_moves_away(bank: Bank) -> None:
    bank.on("a")
    partition = bank.partition("a")
    bank.open_account(partition, "alice")
    sealed, agent = seal(bank, partition), bank.agents["a"]
    told(partition.hand_over(bank.id_of("b"), sealed.epoch, 2))
    together = threading.Barrier(READERS)

    def read(_: int) -> int:
        together.wait()
        head: int = told(agent.read(0, "head", ()))
        return head

    with ThreadPoolExecutor(READERS) as threads:
        assert list(threads.map(read, range(READERS))) == [1] * READERS
    assert told(agent.place(bank.map)) == bank.moved(sealed.epoch)
    assert agent._readers == {}, "else the log could not be opened to be written here, should it come back"


def test_a_reader_on_the_same_node_follows_a_partition_that_went_away_and_came_back_between_two_looks(
    bank: Bank,
) -> None:
    bank.on("a")
    partition = bank.partition("a")
    bank.open_account(partition, "alice")
    partition.close()
    here = PartitionLocator(ClusterStore("bank", "rayfold", bank.map))
    reader = ClusterReader(ClusterStore("bank", "rayfold", bank.map), here, 0, 0.0)
    assert reader.head() == 1
    folder = bank.folder / "a" / "bank"
    (folder / "partition-00000").rename(folder / "partition-00000.retired-1")
    batch_done = open_log(folder / "partition-00000", "partition 0", identity=read_manifest(folder).identity(0))
    batch_done.append(batch_done.activate(), [deposits(ALICE, 5), deposits(ALICE, 6)])
    batch_done.close()
    back = bank.map.with_home(0, bank.id_of("b")).with_home(0, bank.id_of("a"))
    told(bank.agents["a"].place(back))
    assert reader.head() == 2
    reader.close()


def test_every_byte_is_checked_beside_moves_and_not_before_them(bank: Bank) -> None:
    bank.on("a")
    partition = bank.partition("a")
    bank.open_account(partition, "alice")
    partition.close()
    agent = bank.agents["a"]
    with agent._changing:  # a move is under way
        assert told(agent.verify()).ok
    groups = {name: getattr(NodeAgent, name).__ray_concurrency_group__ for name in ("verify", "pull", "finish")}
    assert groups == {"verify": "checks", "pull": "moves", "finish": "moves"}


def test_a_second_system_on_a_share_is_refused_with_the_name_of_the_first(bank: Bank) -> None:
    bank.on("a")
    second: Any = NodeAgent(NodeAgentPlan("bank", bank.id_of("a"), "rayfold"))
    with pytest.raises(RayfoldError, match="is in use by the node agent of bank"):
        told(second.open())


def test_a_keeper_that_runs_on_another_node_touches_nothing(bank: Bank, tmp_path: Path) -> None:
    bank.on("b")
    astray: Any = NodeAgent(NodeAgentPlan("other", bank.id_of("a"), "rayfold"))
    with pytest.raises(StoreMismatch, match="start each node with the data folder that is its own"):
        told(astray.create(bank.map))
    assert not (tmp_path / "b" / "other").exists()


def test_a_log_that_is_gone_is_told_to_whoever_sends_a_command(bank: Bank, tmp_path: Path) -> None:
    (tmp_path / "a" / "bank" / "partition-00000").rename(tmp_path / "away")
    bank.on("a")
    outcome = bank.open_account(bank.partition("a"), "alice")
    assert isinstance(outcome, StoreMissing)
    assert not (tmp_path / "a" / "bank" / "partition-00000").exists()
