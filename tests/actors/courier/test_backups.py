"""A shop whose processes are in the middle of it is backed up and restored from the command line, at uneven places."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from rayfold import Runtime
from rayfold.actors.cluster.ray_cluster import Cluster
from rayfold.benchmarks.torture.shop import AGGREGATES, Fulfilment
from rayfold.runtime.log.format import decode_record
from rayfold.runtime.processes.stored_step import Sent, step_in
from rayfold.runtime.store.store import Store, open_store
from rayfold.runtime.stream import StreamId
from tests.actors.courier.test_couriers import at_rest, check, closed, place, rayfold, stocked, until

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]

ORDERS = 40


async def test_a_backup_goes_on_from_where_it_was_taken(cluster: Cluster, tmp_path: Path) -> None:
    """It is taken while orders are placed."""
    async with _shop(tmp_path / "shop") as running:
        await stocked(running)
        for number in range(ORDERS):
            await place(running, number)
        await asyncio.to_thread(_succeeds, "backup", tmp_path / "shop", tmp_path / "backup")
        await closed(running, *(f"o{number}" for number in range(ORDERS)))
    _succeeds("restore", tmp_path / "backup", tmp_path / "restored")
    async with _shop(tmp_path / "restored") as running:
        for number in range(ORDERS, ORDERS + 5):
            await place(running, number)
        await closed(running, *(f"o{number}" for number in range(ORDERS, ORDERS + 5)))
        await until(lambda: at_rest(running))
    assert _lost(open_store(tmp_path / "restored")) == []
    _succeeds("verify", tmp_path / "restored")


async def test_a_restore_with_one_log_older_than_the_other_loses_no_command(cluster: Cluster, tmp_path: Path) -> None:
    async with _shop(tmp_path / "shop") as running:
        await stocked(running)
        for number in range(ORDERS):
            await place(running, number)
        await closed(running, *(f"o{number}" for number in range(ORDERS)))
        await until(lambda: at_rest(running))
        await check(running, ORDERS)
    _succeeds("backup", tmp_path / "shop", tmp_path / "backup", "--json", tmp_path / "backup.json")
    heads = json.loads((tmp_path / "backup.json").read_text())["heads"]
    for partition in (0, 1):
        restored = tmp_path / f"restored-{partition}"
        cut = _end_of_command(open_store(tmp_path / "shop"), partition, heads[str(partition)] * 2 // 3)
        _succeeds("restore", tmp_path / "backup", restored, "--at", f"{partition}={cut}")
        assert _lost(open_store(restored))
        async with _shop(restored) as running:
            await until(lambda: _nothing_open(running))
        assert _lost(open_store(restored)) == []
        _succeeds("verify", restored)


def _shop(folder: Path) -> Runtime:
    return Runtime(folder, aggregates=AGGREGATES, processes=[Fulfilment], partitions=2, timeout_s=60.0)


def _succeeds(*arguments: object) -> None:
    done = rayfold(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr


async def _nothing_open(running: Runtime) -> bool:
    """Whether nothing is on its way; what cannot be sent again has parked its instance."""
    facts = [one.courier for one in (await running.status()).partitions]
    return all(one is not None and not (one.undelivered or one.open_sends) for one in facts)


def _end_of_command(store: Store, partition: int, head: int) -> int:
    reader = store.open_reader(partition)
    try:
        first, second = (decode_record(record).command_id for record in reader.read(head - 1, 2))
        while first == second:
            head, first = head + 1, second
            second = decode_record(reader.read(head, 1)[0]).command_id
        return head
    finally:
        reader.close()


def _lost(store: Store) -> list[str]:
    """Commands that took effect by what an instance has stored, that the log of the target does not have, and for which
    no instance is parked."""
    readers = [store.open_reader(number) for number in range(store.partitions)]
    sent: dict[tuple[StreamId, int], Sent] = {}
    accepted: list[tuple[StreamId, int]] = []
    parked: dict[StreamId, str] = {}
    try:
        for reader in readers:
            for record in reader.read(0, 1 << 20):
                step = step_in(decode_record(record))
                if step is None or not step.is_process:
                    continue
                sent |= {(step.stream, one.number): one for one in step.sends}
                parked[step.stream] = step.parked
                if step.accepted is not None:
                    accepted.append((step.stream, step.accepted))
        lost = []
        for stream, number in accepted:
            one = sent[stream, number]
            found = readers[store.partition_of(one.stream)].find_commands([one.send_id])
            if not found and not parked[stream]:
                lost.append(f"{one.name} of {stream} to {one.stream}")
        return lost
    finally:
        for reader in readers:
            reader.close()
