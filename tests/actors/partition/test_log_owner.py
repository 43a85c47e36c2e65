"""LogOwner: what it answers that comes too late, over a log on the disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayfold.actors.partition.log_owner import LogOwner
from rayfold.runtime.encoding.error_codec import from_wire, to_wire
from rayfold.runtime.errors import Sealed
from rayfold.runtime.log.folder import open_log
from rayfold.runtime.log.writer import LmdbLog
from rayfold.runtime.store.partition_map import PartitionMap

STAYS = "partition 3: it is not handed over: this move was called off, and the partition stays on this node"


def test_a_call_to_hand_over_after_the_move_was_called_off_is_told_that_the_partition_stays(tmp_path: Path) -> None:
    serving: list[bool] = []

    def opened() -> LmdbLog:
        return open_log(tmp_path / "log", "partition 3", identity="s/00003")

    owner = LogOwner(
        "partition 3",
        open_log=opened,
        let_go=lambda: None,
        serves=lambda: bool(serving),
        map_here=lambda: PartitionMap.spread("s", 4, {"here": "node-0"}),
    )
    sealed = owner.seal("node-1")
    owner.unseal("node-1", sealed.epoch)
    for _ in ("it has not opened its log again yet", "it has"):
        with pytest.raises(Sealed) as told:
            owner.hand_over("node-1", sealed.epoch, 2)
        assert str(told.value) == STAYS
        assert told.value.successor == ""
        assert str(from_wire(to_wire(told.value))) == STAYS
        serving.append(True)
    owner.check()
    log = opened()
    assert log.activate() == sealed.epoch + 1
    log.close()
