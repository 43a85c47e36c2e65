"""Code that lacks the function of a call that is open is refused before it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayfold import Call, CodeMismatch, Done, Effects, NotDone, effect, settle
from rayfold.benchmarks.torture.outside import Bill, Pay, PayRequested
from rayfold.runtime.checks.fit import check_fit
from rayfold.runtime.encoding.catalogue import Catalogue
from tests.support.effect_world import EffectWorld


class Paying(Effects):
    @effect(timeout_s=2)
    async def pay(self, event: PayRequested, call: Call) -> Done:
        return Done()

    @settle(pay)
    async def look(self, event: PayRequested, call: Call) -> Done | NotDone:
        return Done()


class Renamed(Effects, name="Paying"):
    """Its function has another name, and the call that rests is for the old one."""

    @effect(timeout_s=2)
    async def transfer(self, event: PayRequested, call: Call) -> Done:
        return Done()


def test_a_call_whose_function_is_not_there_any_more_is_refused(tmp_path: Path) -> None:
    world = EffectWorld([Bill], [Paying], seed=None)
    world.results = [NotDone("busy")]
    world.execute(Bill, "1", Pay(bank=""))
    world.run(for_us=0)
    assert sum(courier.agenda.timers.count for courier in world.couriers) == 1
    readers = dict(enumerate(world.logs))
    check_fit("bills", Catalogue([Bill], processes=[Paying]), readers, tmp_path)
    with pytest.raises(CodeMismatch) as refused:
        check_fit("bills", Catalogue([Bill], processes=[Renamed]), readers, tmp_path)
    assert "1 calls of pay are open, and it has no such function; keep it until they are over" in str(refused.value)
