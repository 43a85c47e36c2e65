"""Metrics: what a status comes to as samples, and what is recorded of them as time goes on. Without Ray."""

from __future__ import annotations

from typing import Any

import pytest

from rayfold.actors.observe.metrics import DESCRIPTIONS, Metrics, Sample, samples
from rayfold.actors.observe.status import OwnActorStatus, PartitionStatus, ProjectorStatus, Status
from rayfold.runtime.read.read_model import Quarantined
from rayfold.runtime.stream import StreamId

PARTITION = PartitionStatus(0, 11, 2, 40, commands=50, batches=7)
PROJECTOR = ProjectorStatus(
    "Balances", 1, 12, {0: 38}, "", behind_events=2, behind_s=0.25, events_applied=38, build="v1"
)
OWN = OwnActorStatus(StreamId("Vault", "v"), "bank:Vault/v", 13, 0)
STATUS = Status([PARTITION], [OWN], [PROJECTOR])
OF_PROJECTOR = (("store", "bank"), ("projection", "Balances"), ("build", "v1"), ("part", "0"), ("replica", "1"))
OF_PARTITION = (("store", "bank"), ("partition", "0"))


def figures(status: Status) -> dict[str, float]:
    return {sample.name.removeprefix("rayfold_"): sample.value for sample in samples(status, "bank")}


def test_every_figure_of_a_status_becomes_a_sample_that_is_described() -> None:
    assert figures(STATUS) == {
        "partition_up": 1,
        "partition_head": 40,
        "partition_epoch": 2,
        "partition_commands": 50,
        "partition_batches": 7,
        "partition_alarms": 0,
        "own_actors": 1,
        "projector_up": 1,
        "projector_failed": 0,
        "projector_behind_events": 2,
        "projector_behind_seconds": 0.25,
        "projector_applied": 38,
        "projector_quarantined": 0,
        "projector_alarms": 0,
    }
    found = list(samples(STATUS, "bank"))
    assert {sample.name for sample in found} == set(DESCRIPTIONS)
    assert {sample.tags for sample in found} == {OF_PARTITION, OF_PROJECTOR}
    assert [sample.name for sample in found if sample.kind == "counter"] == [
        "rayfold_partition_commands",
        "rayfold_partition_batches",
        "rayfold_projector_applied",
    ]


def test_what_is_unknown_of_a_silent_projector_is_minus_one_and_never_zero() -> None:
    silent = PROJECTOR._replace(alive=False, behind_events=None, behind_s=None)
    told = figures(Status([], [], [silent]))
    assert told["projector_up"] == 0
    assert {name for name, value in told.items() if value == -1} == {
        "projector_failed",
        "projector_behind_events",
        "projector_behind_seconds",
        "projector_quarantined",
        "projector_alarms",
    }


def test_a_stopped_and_a_poisoned_projector_are_told_apart() -> None:
    stopped = PROJECTOR._replace(failed="it raised")
    assert (figures(Status([], [], [stopped]))["projector_failed"], stopped.state) == (1, "stopped")
    aside = Quarantined(0, 5, "Account/a", 1, "Deposited", "it raised")
    assert figures(Status([], [], [PROJECTOR._replace(quarantined=(aside,))]))["projector_quarantined"] == 1


class Recorded(Metrics):
    """Metrics that keep what they would report to Ray."""

    def __init__(self) -> None:
        super().__init__("bank")
        self.told: list[tuple[str, float]] = []

    def _recorder(self, sample: Sample) -> Any:
        metrics = self

        class Recorder:
            def set(self, value: float, tags: dict[str, str]) -> None:
                assert tuple(tags.items()) == sample.tags
                metrics.told.append((sample.name, value))

            inc = set

        return Recorder()

    def take(self) -> dict[str, float]:
        """What was reported since the last time."""
        told, self.told = dict(self.told), []
        return told


def test_a_counter_is_told_what_it_grew_by_also_after_its_process_was_started_again() -> None:
    metrics = Recorded()
    metrics.record(STATUS)
    assert metrics.take()["rayfold_partition_commands"] == 50
    metrics.record(STATUS._replace(partitions=[PARTITION._replace(commands=53)]))
    assert metrics.take()["rayfold_partition_commands"] == 3
    metrics.record(STATUS._replace(partitions=[PARTITION._replace(commands=53)]))
    assert "rayfold_partition_commands" not in metrics.take()
    metrics.record(STATUS._replace(partitions=[PARTITION._replace(commands=4)]))
    assert metrics.take()["rayfold_partition_commands"] == 4


def test_what_has_ended_on_purpose_is_marked_once_and_not_forgotten_at_its_last_value() -> None:
    metrics = Recorded()
    metrics.record(STATUS)
    metrics.take()
    metrics.record(STATUS._replace(projectors=[]))
    ended = metrics.take()
    assert {value for name, value in ended.items() if name.startswith("rayfold_projector")} == {-1.0}
    assert ended["rayfold_projector_up"] == -1
    metrics.record(STATUS._replace(projectors=[]))
    assert not [name for name in metrics.take() if name.startswith("rayfold_projector")]


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({"behind_s": 0.0}, "live"),
        ({"behind_s": 1.5}, "behind"),
        ({"behind_s": None}, "behind"),
        ({"replaying": True}, "replaying"),
        ({"failed": "it raised", "replaying": True}, "stopped"),
        ({"alive": False, "failed": "it raised"}, "silent"),
    ],
)
def test_the_state_of_a_projector_is_one_word(changes: dict[str, Any], state: str) -> None:
    assert PROJECTOR._replace(**changes).state == state
