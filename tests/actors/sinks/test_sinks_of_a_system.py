"""Sinks of a running system: published by a process of its own, through kills, stops, switches, restores and nodes."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import rich.console

from rayfold import BlockingRuntime, InvalidMessage, Settings, Sink, UnknownName, Webhook
from rayfold.actors.cluster.local import LocalCluster, LocalNodes
from rayfold.actors.cluster.ray_cluster import Cluster
from rayfold.actors.observe.screen import drawn
from rayfold.runtime.backup.restoring import restore_store
from rayfold.runtime.backup.taking import backup_store
from tests.actors.cluster.test_local_cluster import left_over
from tests.actors.rollout.test_deploy import APP, DOMAIN, pay, rayfold, write
from tests.bank import Account, Deposit, Open
from tests.support.console import Console, Told, console
from tests.support.receiver import Receiver

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT: Final = Path(__file__).parents[3]
WIDE: Final = {**os.environ, "COLUMNS": "200"}


def bank_at(path: Path, receiver: Receiver, **options: Any) -> BlockingRuntime:
    sink = Sink("mails", "Deposited", to=Webhook(receiver.url), since="beginning")
    return BlockingRuntime(path, aggregates=[Account], sinks=[sink], partitions=2, **{"timeout_s": 60, **options})


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as listening:
        yield listening


def deposit(bank: Any, *amounts: int, to: str = "alice") -> None:
    if amounts[0] == 1:
        bank.execute(Account, to, Open(owner=to))
    for amount in amounts:
        bank.execute(Account, to, Deposit(amount=amount))


def amounts(receiver: Receiver) -> list[int]:
    """Each once: a receiver drops what it has seen."""
    found = {one.headers["webhook-id"]: json.loads(one.body)["data"]["amount"] for one in receiver.requests}
    return list(found.values())


def test_what_is_committed_is_published_through_kills_and_restarts(
    cluster: Cluster, tmp_path: Path, receiver: Receiver
) -> None:
    with bank_at(tmp_path / "bank-data", receiver) as bank:
        deposit(bank, 1, 2)
        receiver.wait_for(lambda: amounts(receiver) == [1, 2])
        [status] = bank.status().sinks
        assert (status.name, status.alive, status.on, status.failure) == ("mails", True, True, "")
        os.kill(status.pid, signal.SIGKILL)
        deposit(bank, 3)
        receiver.wait_for(lambda: amounts(receiver) == [1, 2, 3])
        assert bank.subscriptions() == [], "it is none of a program"
    with bank_at(tmp_path / "bank-data", receiver) as bank:
        deposit(bank, 4)
        receiver.wait_for(lambda: amounts(receiver) == [1, 2, 3, 4])
        with pytest.raises(UnknownName, match="no sink is named 'others'; known: mails"):
            bank.switch_sink("others", False, by="ada", reason="none")
        with pytest.raises(InvalidMessage, match="give a name and a reason"):
            bank.switch_sink("mails", False, by="", reason="none")
        bank.switch_sink("mails", False, by="ada", reason="a pause")
        [kept] = bank.sinks()
        assert (kept.on, kept.by, kept.reason) == (False, "ada", "a pause")
        while bank.status().sinks[0].on:
            threading.Event().wait(0.2)
        assert "ada: a pause" in shown(bank.store.path, 0)
        deposit(bank, 5)
        refused, receiver.answer = receiver.answer, lambda _request: (500, {})
        switched = ("on", "mails", "--by", "ada", "--reason", "it is over")
        shown(bank.store.path, 0, *switched)
        receiver.wait_for(lambda: receiver.refused > 1)
        assert "Account/alice:6: HTTP 500" in shown(bank.store.path, 1)
        with io.StringIO() as text:
            rich.console.Console(file=text, width=200).print(drawn(bank.status(), bank.store, "x"))
            assert "failing" in text.getvalue()
            assert "sink mails does not publish: Account/alice:6: HTTP 500" in text.getvalue()
        deposit(bank, 6)
        with pytest.raises(InvalidMessage, match="'Account/alice:7' to be confirmed; it waits for: Account/alice:6"):
            bank.skip_event("mails", "Account/alice:7", by="ada", reason="it is behind the one that fails")
        with pytest.raises(UnknownName, match="no sink is named 'others'; known: mails"):
            bank.skip_event("others", "Account/alice:6", by="ada", reason="none")
        skipped = ("skip", "mails", "Account/alice:6", "--by", "ada", "--reason", "it is lost")
        shown(bank.store.path, None, *skipped)  # whether the next one has failed by then is open
        while bank.status().sinks[0].unconfirmed != ("Account/alice:7",):
            threading.Event().wait(0.2)
        receiver.answer = refused
        receiver.wait_for(lambda: amounts(receiver) == [1, 2, 3, 4, 6])
    assert "not published by a running program" in shown(tmp_path / "bank-data", 0)


def shown(path: Path, code: int | None, *arguments: str) -> str:
    """What `rayfold sinks` prints, in one line."""
    command = [sys.executable, "-m", "rayfold.actors.cli", "sinks", str(path), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=WIDE)
    assert done.returncode in ((0, 1) if code is None else (code,)), done
    return " ".join(done.stdout.split())


def test_a_process_of_the_sinks_that_is_frozen_is_replaced(
    cluster: Cluster, tmp_path: Path, receiver: Receiver
) -> None:
    with bank_at(tmp_path / "bank-data", receiver, settings=Settings(silent_s=3)) as bank:
        deposit(bank, 1)
        receiver.wait_for(lambda: amounts(receiver) == [1])
        os.kill(bank.status().sinks[0].pid, signal.SIGSTOP)
        deposit(bank, 2)
        receiver.wait_for(lambda: amounts(receiver) == [1, 2])


def test_a_restored_store_publishes_nothing_until_it_is_switched_on(
    cluster: Cluster, tmp_path: Path, receiver: Receiver
) -> None:
    with bank_at(tmp_path / "bank-data", receiver) as bank:
        deposit(bank, 1, 2)
        receiver.wait_for(lambda: amounts(receiver) == [1, 2])
    backup_store(tmp_path / "bank-data", tmp_path / "backup")
    restore_store(tmp_path / "backup", tmp_path / "restored")
    receiver.requests.clear()
    new = Sink("new", "Deposited", to=Webhook(receiver.url), since="beginning")
    mails = Sink("mails", "Deposited", to=Webhook(receiver.url), since="beginning")
    with BlockingRuntime(tmp_path / "restored", aggregates=[Account], sinks=[mails, new], timeout_s=60) as bank:
        deposit(bank, 3)
        while [one.on for one in bank.status().sinks] != [False, False]:
            threading.Event().wait(0.2)
        assert [(one.name, one.on) for one in bank.sinks()] == [("mails", False)]
        assert receiver.requests == []
        bank.switch_sink("mails", True, by="ada", reason="the old store is gone")
        receiver.wait_for(lambda: amounts(receiver) == [3])


def until_sent(bank: Console, command: str) -> None:
    """Send a command again while its partition is away."""
    while True:
        try:
            bank(command)
        except Told as error:
            if "it was not sent" not in error.text:
                raise
            threading.Event().wait(0.2)
        else:
            return


def test_on_a_cluster_every_node_is_published_also_when_the_one_with_the_sinks_is_lost(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, receiver: Receiver
) -> None:
    with LocalNodes(LocalCluster(nodes=2, cpus=1), tmp_path_factory.mktemp("c")) as nodes:
        sink = f"Sink('mails', Deposited, to=Webhook({receiver.url!r}), since='beginning')"
        options = f"partitions=4, settings=Settings(silent_s=8, timeout_s=60), sinks=[{sink}]"
        with console(nodes.address, path=tmp_path / "bank", options=options) as bank:
            accounts = bank("of_partitions(bank)")
            for account in accounts:
                bank(f"bank.execute(Account, {account!r}, Open(owner='x')).position")
            for number, account in enumerate(accounts, 1):
                bank(f"bank.execute(Account, {account!r}, Deposit(amount={number})).position")
            receiver.wait_for(lambda: sorted(amounts(receiver)) == [1, 2, 3, 4])
            moved = next(one["name"] for one in bank("bank.status().nodes") if 0 not in one["partitions"])
            bank(f"bank.move(0, {moved!r}).events")
            bank(f"bank.execute(Account, {accounts[0]!r}, Deposit(amount=5), timeout_s=60).position")
            receiver.wait_for(lambda: sorted(amounts(receiver)) == [1, 2, 3, 4, 5])
            [status] = bank("bank.status().sinks")
            environment = Path(f"/proc/{status['pid']}/environ").read_bytes().split(b"\0")
            data = next(one for one in environment if one.startswith(b"RAYFOLD_DATA=")).decode()
            lost = next(number for number, node in enumerate(nodes.nodes) if data.endswith(str(node.data)))
            if lost == 0:  # that of the head, without which nothing is started again
                os.kill(status["pid"], signal.SIGKILL)
            else:
                nodes.kill_node(lost)
                nodes.start_node(lost)
            for number, account in enumerate(accounts, 6):
                until_sent(bank, f"bank.execute(Account, {account!r}, Deposit(amount={number}), timeout_s=60).position")
            try:
                receiver.wait_for(lambda: sorted(amounts(receiver)) == list(range(1, 10)))
            except AssertionError:
                raise AssertionError((lost, bank("bank.status().sinks"))) from None
            assert bank("[(one.on, one.behind) for one in bank.sinks()]")[0][0]
            os.kill(bank("bank.status().sinks")[0]["pid"], signal.SIGSTOP)  # it is replaced
            bank(f"bank.execute(Account, {accounts[0]!r}, Deposit(amount=10), timeout_s=60).position")
            receiver.wait_for(lambda: 10 in amounts(receiver))
    assert left_over(nodes.folder) == []


SINKS = """
sinks = [Sink("mails", [Paid], to=Webhook("URL"), since="beginning", source="SOURCE")]
shop = Application("shop", aggregates=[Till], projections=[Slips], partitions=2, settings=settings, sinks=sinks)
"""


def test_a_deployed_application_publishes_with_the_code_that_was_deployed_last(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, receiver: Receiver
) -> None:
    (tmp_path / "shop").mkdir()
    app = APP.rpartition("shop =")[0].replace("import Application", "import Application, Sink, Webhook")
    app = app.replace("import Slips", "import Paid, Slips") + SINKS.replace("URL", receiver.url)
    write(tmp_path, {"__init__.py": "", "rules.py": "FEE = 1\n", "domain.py": DOMAIN, "app.py": app})
    with LocalNodes(LocalCluster(nodes=1, cpus=1), tmp_path_factory.mktemp("c"), remember=True) as nodes:
        rayfold(nodes, tmp_path, "deploy", "shop.app:shop", "--create")
        with console(nodes.address, name="shop") as shop:
            assert pay(shop, "1", 11) == 10
            receiver.wait_for(lambda: amounts(receiver) == [10])
            write(tmp_path, {"app.py": app.replace("SOURCE", "/later")})
            rayfold(nodes, tmp_path, "deploy", "shop.app:shop")
            pay(shop, "2", 21)
            receiver.wait_for(lambda: amounts(receiver) == [10, 20])
            assert [json.loads(one.body)["source"] for one in receiver.requests] == ["SOURCE", "/later"]
            assert "mails" in rayfold(nodes, tmp_path, "sinks", "shop")
        rayfold(nodes, tmp_path, "down", "shop")
