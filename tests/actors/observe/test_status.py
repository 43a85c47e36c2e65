"""Status: lag that does not lie, whatever is frozen, killed, stopped or poisoned, seen from here and from elsewhere."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rayfold import BlockingRuntime, Unavailable
from rayfold.actors.cluster.names import names_of, projector_named
from rayfold.actors.cluster.ray_cluster import Cluster
from rayfold.actors.observe.attach import RunningSystem
from rayfold.actors.observe.metrics import Metrics, samples
from rayfold.actors.observe.status import Observer, ProjectorStatus, Status
from rayfold.runtime.domain.messages import Query
from rayfold.runtime.domain.projection import Projection, answer, project
from rayfold.runtime.errors import CallerError
from rayfold.runtime.store.store_lock import holder_of
from tests.bank import Account, BalanceOf, Balances, Deposit, Deposited, Open, Vault, Withdraw, Withdrawn
from tests.support.driver import ROOT, start_driver

pytestmark = pytest.mark.slow

SHORT_S = 0.5
"""How long these tests wait for one that is frozen: a process that is not answers in milliseconds."""


class NoAnswer(Query[int]):
    """Something to ask for."""


class Stopping(Projection):
    """Cannot take a withdrawal in."""

    seen: int = 0

    @project
    def deposited(self, event: Deposited) -> None:
        """Fine."""
        self.seen += 1

    @project
    def withdrawn(self, event: Withdrawn) -> None:
        """Not so."""
        raise LookupError("no withdrawals here")

    @answer
    def answered(self, query: NoAnswer) -> int:
        """How many were fine."""
        return self.seen


class Forgiving(Stopping, on_failure="quarantine"):
    """Sets withdrawals aside."""


@pytest.fixture(scope="module")
def bank(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BlockingRuntime]:
    """One bank for all of these tests: an account with money in it, and nothing behind."""
    projections = [Balances, Stopping, Forgiving]
    path = tmp_path_factory.mktemp("status") / "bank-data"
    with BlockingRuntime(path, aggregates=[Account, Vault], projections=projections, replicas={Balances: 2}) as running:
        running.execute(Account, "alice", Open(owner="Alice"))
        for _ in range(5):
            running.execute(Account, "alice", Deposit(amount=10))
        for _ in range(2):
            running.ask(Balances, BalanceOf(account="alice"), after=running.heads())
        yield running


def seats(bank: BlockingRuntime) -> dict[str, Any]:
    """The projectors, as a second process finds them: by their names."""
    import ray
    import ray.util

    holder = holder_of(bank.store.path)
    assert holder is not None
    names = names_of(holder.connection["name"], ray.util.list_named_actors())
    return {name: ray.get_actor(name) for name in sorted(names) if projector_named(name)}


def first_of(bank: BlockingRuntime, projection: str) -> dict[str, Any]:
    """The first replica of a projection."""
    found = {name: actor for name, actor in seats(bank).items() if f"/{projection}-v1/0-0#" in name}
    assert len(found) == 1
    return found


def until(bank: BlockingRuntime, projection: type[Projection], wanted: str) -> ProjectorStatus:
    """The status of a projection's first replica, once its state is this; of one that is live, once nothing is behind:
    it is called live with up to a second of events before it."""

    async def look() -> ProjectorStatus:
        observer = Observer(bank.store)
        asked = first_of(bank, projection.projection_name)
        while True:
            [found] = (await observer.observe({}, asked)).projectors
            if found.state == wanted and (wanted != "live" or found.behind_events == 0):
                return found
            await asyncio.sleep(0.02)

    return asyncio.run(look())


def test_a_quiet_system_is_live_and_nothing_is_behind(bank: BlockingRuntime) -> None:
    until(bank, Balances, "live")
    status = bank.status()
    heads = bank.heads()
    assert {one.partition: one.head for one in status.partitions} == heads
    assert all(one.alive and one.answered_s == 0 and one.epoch == 1 for one in status.partitions)
    assert sum(one.commands for one in status.partitions) == sum(heads.values())
    balances = [one for one in status.projectors if one.projection == "Balances"]
    assert [(one.replica, one.part, one.build, one.state) for one in balances] == [
        (0, 0, "v1", "live"),
        (1, 0, "v1", "live"),
    ]
    for one in balances:
        assert (one.positions, one.behind_events, one.behind_s, one.failed) == (heads, 0, 0, "")
    assert len({one.pid for one in status.partitions} | {one.pid for one in status.projectors}) == 6


def test_a_frozen_projector_is_silent_and_its_lag_unknown_until_it_goes_on(bank: BlockingRuntime) -> None:
    [_, frozen] = [one for one in bank.status().projectors if one.projection == "Balances"]

    async def looks() -> tuple[Status, Status, Status]:
        observer, asked = Observer(bank.store, SHORT_S), seats(bank)
        before = await observer.observe({}, asked)
        os.kill(frozen.pid, signal.SIGSTOP)
        try:
            during = await observer.observe({}, asked)
            again = await observer.observe({}, asked)
        finally:
            os.kill(frozen.pid, signal.SIGCONT)
        assert len(again.projectors) == len(during.projectors)
        while not (after := await observer.observe({}, asked)).projectors[1].alive:
            await asyncio.sleep(0.02)
        return before, again, after

    before, during, after = asyncio.run(looks())
    assert [one.alive for one in before.projectors] == [True] * 4
    found = next(one for one in during.projectors if one.pid == frozen.pid)
    assert (found.alive, found.state, found.behind_events, found.behind_s, found.events_per_s) == (
        *(False, "silent", None, None, None),
    )
    assert found.answered_s is not None
    assert found.answered_s >= 2 * SHORT_S
    assert found.positions == frozen.positions, "its last answer is shown, as its last one"
    assert all(one.alive for one in during.projectors if one.pid != frozen.pid)
    assert [(one.alive, one.behind_events) for one in after.projectors if one.pid == frozen.pid] == [(True, 0)]


def test_a_frozen_partition_is_silent_and_the_log_still_tells_where_it_ends(bank: BlockingRuntime) -> None:
    import ray

    before = bank.status().partitions
    holder = holder_of(bank.store.path)
    assert holder is not None
    actors = {number: ray.get_actor(f"{holder.connection['name']}/partition-{number}") for number in range(2)}
    os.kill(before[1].pid, signal.SIGSTOP)
    try:
        found = asyncio.run(Observer(bank.store, SHORT_S).observe(actors, {})).partitions
    finally:
        os.kill(before[1].pid, signal.SIGCONT)
    assert [one.alive for one in found] == [True, False]
    assert [one.head for one in found] == [one.head for one in before]
    assert (found[1].answered_s, found[1].commands_per_s, found[1].pid) == (None, None, 0)
    assert all(one.alive for one in bank.status().partitions)


def test_a_killed_projector_never_reads_as_a_lag_of_zero_until_it_has_caught_up(bank: BlockingRuntime) -> None:
    heads = bank.heads()

    async def looks() -> list[ProjectorStatus]:
        observer = Observer(bank.store)
        asked = first_of(bank, "Balances")
        [killed] = (await observer.observe({}, asked)).projectors
        os.kill(killed.pid, signal.SIGKILL)
        seen: list[ProjectorStatus] = []
        while not seen or seen[-1].pid == killed.pid or seen[-1].state != "live":
            seen += (await observer.observe({}, asked)).projectors
        return seen

    seen = asyncio.run(looks())
    for one in seen:
        assert one.behind_events != 0 or (one.alive and one.positions == heads)
        assert one.alive or one.behind_s is None
    assert seen[-1].positions == heads


def test_what_stopped_says_why_and_falls_behind_and_what_is_set_aside_is_listed(bank: BlockingRuntime) -> None:
    receipt = bank.execute(Account, "alice", Withdraw(amount=1))
    bank.ask(Balances, BalanceOf(account="alice"), after=receipt)
    stopped, forgiving = until(bank, Stopping, "stopped"), until(bank, Forgiving, "live")
    assert "LookupError: no withdrawals here" in stopped.failed
    assert stopped.behind_events == 1
    assert stopped.behind_s is not None
    assert stopped.behind_s > 0
    assert stopped.quarantined == ()
    [aside] = forgiving.quarantined
    assert (aside.partition, aside.position, aside.event) == (receipt.partition, receipt.position, "Withdrawn")
    assert (aside.stream, aside.version) == ("Account/alice", receipt.version)
    assert "no withdrawals here" in aside.error
    later = bank.execute(Account, "alice", Deposit(amount=1))
    assert until(bank, Stopping, "stopped").behind_events == later.position - receipt.position + 1
    until(bank, Balances, "live")


def test_the_age_of_what_is_missing_grows_and_the_rates_tell_what_happens(bank: BlockingRuntime) -> None:
    async def looks() -> list[Status]:
        observer, asked = Observer(bank.store), seats(bank)
        found = [await observer.observe({}, asked)]
        for _ in range(3):
            bank.execute(Account, "bob", Open(owner="Bob")) if len(found) == 1 else None
            await asyncio.sleep(0.25)
            found.append(await observer.observe({}, asked))
        return found

    found = asyncio.run(looks())
    ages = [one.behind_s for look in found for one in look.projectors if one.failed and one.behind_s is not None]
    assert len(ages) == 4
    assert sorted(set(ages)) == ages, "the oldest event that is missing is the same one, and grows older"
    first, *_, last = found
    assert [one.events_per_s for one in first.projectors] == [None] * 4
    rates = {one.projection: one.events_per_s for one in last.projectors}
    assert rates["Stopping"] == 0
    assert rates["Balances"] is not None
    assert rates["Balances"] > 0


def rayfold(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line, in a process of its own with nothing of this one's Ray in its environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, "-m", "rayfold.actors.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT), "COLUMNS": "120"},
        check=False,
    )


def test_a_second_terminal_finds_the_running_system_and_shows_the_same(bank: BlockingRuntime, tmp_path: Path) -> None:
    own = bank.execute(Account, "carol", Open(owner="Carol"))
    until(bank, Balances, "live")
    shown = rayfold("status", str(bank.store.path), "--json", str(tmp_path / "status.json"))
    assert shown.returncode == 0, shown.stderr
    told, status = json.loads((tmp_path / "status.json").read_text()), bank.status()
    assert told["running"] is True
    assert told["holder"]["pid"] == os.getpid()
    assert {one["partition"]: one["head"] for one in told["partitions"]} == bank.heads()
    assert bank.heads()[own.partition] >= own.position
    assert [(one["projection"], one["replica"], one["pid"]) for one in told["projectors"]] == sorted(
        (one.projection, one.replica, one.pid) for one in status.projectors
    )
    assert "Balances v1 0-1" in shown.stdout
    assert "Stopping part 0 replica 0 has stopped: " in shown.stdout
    assert "no withdrawals here" in shown.stdout
    assert "Traceback" not in shown.stderr


def test_what_is_not_running_is_said_in_one_line_with_what_the_log_says(bank: BlockingRuntime, tmp_path: Path) -> None:
    with BlockingRuntime(tmp_path / "data", aggregates=[Account], partitions=1) as other:
        other.execute(Account, "a", Open(owner="x"))
        store = other.store
        with pytest.raises(CallerError, match=r"this process runs a Ray of its own"):
            RunningSystem(store)
    with pytest.raises(Unavailable, match=r"/data: no runtime has it open now$"):
        RunningSystem(store)
    shown = rayfold("status", str(tmp_path / "data"), "--json", str(tmp_path / "status.json"))
    assert shown.returncode == 2
    assert shown.stderr == f"{tmp_path / 'data'}: no runtime has it open now\n"
    assert shown.stdout == "the log has events up to, by partition, 0: 1\n"
    told = json.loads((tmp_path / "status.json").read_text())
    assert (told["running"], told["partitions"][0]["head"], told["partitions"][0]["alive"]) == (False, 1, False)


PROGRAM = """
import sys, threading
from pathlib import Path
from rayfold import BlockingRuntime
from tests.bank import Account

with BlockingRuntime(sys.argv[1], aggregates=[Account], partitions=1, num_cpus=1) as bank:
    print("up", flush=True)
    while not Path(sys.argv[1], "stop").exists():
        threading.Event().wait(0.05)
"""


def test_who_watches_may_leave_at_any_time_and_is_told_when_the_runtime_stops(tmp_path: Path) -> None:
    path = str(tmp_path / "data")
    with start_driver("-c", PROGRAM, path) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "up\n"
        files = [tmp_path / "leaves.json", tmp_path / "stays.json"]
        watch = ("-m", "rayfold.actors.cli", "status", path, "--watch", "--json")
        with start_driver(*watch, str(files[0])) as leaves, start_driver(*watch, str(files[1])) as stays:
            wait_for(lambda: all(file.exists() for file in files))
            leaves.send_signal(signal.SIGINT)
            assert (leaves.wait(30), stays.poll(), driver.poll()) == (0, None, None)
            assert json.loads(files[0].read_text())["partitions"][0]["alive"] is True
            Path(path, "stop").touch()
            assert driver.wait(60) == 0
            _, errors = stays.communicate(timeout=60)
        assert stays.returncode == 2
        assert errors.endswith(f"{path}: the runtime has stopped\n")


def wait_for(happened: Callable[[], bool], timeout_s: float = 200) -> None:
    """Return once it has happened. Raises `AssertionError` if it does not."""
    waiting = threading.Event()
    for _ in range(int(timeout_s * 20)):
        if happened():
            return
        waiting.wait(0.05)
    raise AssertionError("it did not happen in time")


def test_ray_takes_every_metric_that_a_status_has(bank: BlockingRuntime) -> None:
    status = bank.status()
    metrics = Metrics("bank")
    metrics.record(status)
    metrics.record(status._replace(projectors=[]))
    figures: dict[Any, float] = {sample.series: sample.value for sample in samples(status, "bank")}
    assert len(figures) == 7 * 2 + 7 * 4
