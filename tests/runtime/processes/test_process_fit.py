"""Code that cannot go on with what processes wait for is refused before it runs."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from rayfold.benchmarks.torture.shop import AGGREGATES, UNLUCKY, Closed, Fulfilment, Order, Place, Placed
from rayfold.runtime.checks.fit import check_fit
from rayfold.runtime.domain.aggregate import woken
from rayfold.runtime.domain.outputs import Send, Wake
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.errors import CodeMismatch
from rayfold.runtime.log.agenda_file import open_agenda_file
from rayfold.runtime.processes.agenda import Agenda
from rayfold.runtime.processes.process import Process, react
from rayfold.runtime.stream import StreamId
from tests.support.process_world import World


class Forgetful(Process, name="Fulfilment"):
    """The process of the shop, without the method of its timer."""

    @react(starts=True)
    def placed(self, event: Placed) -> None:
        pass


class Deaf(Process, name="Fulfilment"):
    """... and without the one for its event."""

    @react(starts=True)
    def closed(self, event: Closed) -> Wake:
        return Wake("late", after=timedelta(1))

    @woken("late")
    def late(self) -> Send | None:
        return None


def world(total: int) -> World:
    made = World(AGGREGATES, [Fulfilment], partitions=1)
    made.execute(Order, "o1", Place(wallet="w", item="i", total=total))
    return made


@pytest.mark.parametrize("saved", [True, False])
def test_a_timer_that_no_method_takes_is_refused(saved: bool, tmp_path: Path) -> None:
    shop = world(total=1)
    shop.silent = {StreamId("Wallet", "w"), StreamId("Stock", "i")}
    shop.run()
    readers = {0: shop.logs[0]}
    if saved:
        agenda = Agenda(open_agenda_file(tmp_path / "partition-00000", "agenda"))
        agenda.open(shop.logs[0])
        agenda.shut()
    check_fit("shop", Catalogue(AGGREGATES, processes=[Fulfilment]), readers, tmp_path)
    with pytest.raises(CodeMismatch) as refused:
        check_fit("shop", Catalogue(AGGREGATES, processes=[Forgetful]), readers, tmp_path)
    [misfit] = refused.value.misfits
    assert misfit.where == "process Fulfilment"
    assert misfit.what == "1 timers named 'late' are armed, and no @woken method has that name"


def test_an_input_of_a_parked_instance_that_no_method_takes_is_refused(tmp_path: Path) -> None:
    shop = world(total=UNLUCKY)
    shop.run()
    readers = {0: shop.logs[0]}
    check_fit("shop", Catalogue(AGGREGATES, processes=[Fulfilment]), readers, tmp_path)
    with pytest.raises(CodeMismatch) as refused:
        check_fit("shop", Catalogue(AGGREGATES, processes=[Deaf]), readers, tmp_path)
    [misfit] = refused.value.misfits
    assert misfit.where == "parked instance Fulfilment/o1"
    assert misfit.what == "Placed waits in it, and no @react method takes that"
