"""Metrics: the figures of a status as samples, and how they reach Prometheus through Ray.

Beside all steps, and off every one of them: the runtime's own process asks all actors every two seconds and records
their answers. No actor records anything about itself: a gauge that a frozen process has set would keep its value from
before.

Rule kept here: a figure that is unknown is -1 and never 0, and `up` shows why. What has been ended on purpose is -1
too, so that an alarm on `up == 0` is about what should be there and does not answer.

Ray writes each name with `ray_` before it. It exports them when it is installed as `ray[default]`; without that,
recording them is harmless.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal, NamedTuple

from .status import PartitionStatus, ProjectorStatus, Status

__all__ = ["DESCRIPTIONS", "Metrics", "Sample", "samples"]

UNKNOWN: Final = -1.0

DESCRIPTIONS: Final = {
    "rayfold_partition_up": "1 if the partition's actor answers, 0 if it does not",
    "rayfold_partition_head": "Position of the last committed event, read from the log itself",
    "rayfold_partition_epoch": "Of the partition's activation; grows whenever its actor starts",
    "rayfold_partition_commands": "Commands that the partition was given",
    "rayfold_partition_batches": "Batches that they came in",
    "rayfold_partition_alarms": "Residents and snapshots that differed from the log, since the actor started",
    "rayfold_own_actors": "Aggregates of the partition that have an actor of their own",
    "rayfold_projector_up": "1 if the projector answers, 0 if it does not, -1 once it was ended on purpose",
    "rayfold_projector_failed": "1 if the projection has stopped on an error, 0 while it works, -1 unknown",
    "rayfold_projector_behind_events": "Committed events that the projector has not come past; -1 unknown",
    "rayfold_projector_behind_seconds": "Age of the oldest of those; 0 if there are none, -1 unknown",
    "rayfold_projector_applied": "Events that the projector has applied",
    "rayfold_projector_quarantined": "Events that it has set aside; -1 unknown",
    "rayfold_projector_alarms": "How often its read model differed from the log; -1 unknown",
}
"""Every metric, with its meaning."""

_TAGS: Final = {
    "rayfold_partition": ("store", "partition"),
    "rayfold_own": ("store", "partition"),
    "rayfold_projector": ("store", "projection", "build", "part", "replica"),
}

_COUNTERS: Final = {"rayfold_partition_commands", "rayfold_partition_batches", "rayfold_projector_applied"}


class Sample(NamedTuple):
    """One figure of one actor at one moment."""

    name: str
    kind: Literal["gauge", "counter"]
    value: float
    """The value; of a counter, since the actor's process began."""
    tags: tuple[tuple[str, str], ...]

    @property
    def series(self) -> tuple[str, tuple[tuple[str, str], ...]]:
        """The labels that distinguish this figure from all others."""
        return self.name, self.tags


def samples(status: Status, store: str) -> Iterator[Sample]:
    """The figures of a status. `store` is what the store is called in them."""
    own = {one.partition: 0 for one in status.partitions}
    for actor in status.own_actors:
        own[actor.partition] += 1
    tags: tuple[tuple[str, str], ...]
    for partition in status.partitions:
        tags = (("store", store), ("partition", str(partition.partition)))
        figures = _of_partition(partition) | {"rayfold_own_actors": own[partition.partition]}
        yield from (_sample(name, value, tags) for name, value in figures.items())
    for projector in status.projectors:
        tags = (
            ("store", store),
            ("projection", projector.projection),
            ("build", projector.build),
            ("part", str(projector.part)),
            ("replica", str(projector.replica)),
        )
        yield from (_sample(name, value, tags) for name, value in _of_projector(projector).items())


def _sample(name: str, value: float, tags: tuple[tuple[str, str], ...]) -> Sample:
    return Sample(name, "counter" if name in _COUNTERS else "gauge", value, tags)


def _of_partition(partition: PartitionStatus) -> dict[str, float]:
    return {
        "rayfold_partition_up": partition.alive,
        "rayfold_partition_head": partition.head,
        "rayfold_partition_epoch": partition.epoch,
        "rayfold_partition_commands": partition.commands,
        "rayfold_partition_batches": partition.batches,
        "rayfold_partition_alarms": partition.alarms_raised if partition.alive else UNKNOWN,
    }


def _of_projector(projector: ProjectorStatus) -> dict[str, float]:
    alive = projector.alive
    return {
        "rayfold_projector_up": alive,
        "rayfold_projector_failed": bool(projector.failed) if alive else UNKNOWN,
        "rayfold_projector_behind_events": _known(projector.behind_events),
        "rayfold_projector_behind_seconds": _known(projector.behind_s),
        "rayfold_projector_applied": projector.events_applied,
        "rayfold_projector_quarantined": len(projector.quarantined) if alive else UNKNOWN,
        "rayfold_projector_alarms": projector.alarms_raised if alive else UNKNOWN,
    }


def _known(figure: float | None) -> float:
    return UNKNOWN if figure is None else figure


class Metrics:
    """Records samples with Ray. Used in a process that is connected to it, from one thread."""

    def __init__(self, store: str) -> None:
        self._store = store
        self._recorders: dict[str, Any] = {}
        self._last: dict[tuple[str, tuple[tuple[str, str], ...]], Sample] = {}
        """What was recorded last, by series."""

    def record(self, status: Status) -> None:
        """Record a status. What was in an earlier one and is no more is marked as ended."""
        now = {sample.series: sample for sample in samples(status, self._store)}
        for series, ended in self._last.items():
            if series not in now and ended.kind == "gauge":
                self._set(ended._replace(value=UNKNOWN))
        for sample in now.values():
            if sample.kind == "gauge":
                self._set(sample)
            else:
                self._count(sample)
        self._last = now

    def _set(self, sample: Sample) -> None:
        self._recorder(sample).set(float(sample.value), tags=dict(sample.tags))

    def _count(self, sample: Sample) -> None:
        before = self._last.get(sample.series)
        grown = sample.value - (before.value if before is not None else 0)
        if grown < 0:  # the process was started again and counts from 0
            grown = sample.value
        if grown > 0:
            self._recorder(sample).inc(float(grown), tags=dict(sample.tags))

    def _recorder(self, sample: Sample) -> Any:
        recorder = self._recorders.get(sample.name)
        if recorder is None:
            from ray.util.metrics import Counter, Gauge

            made = Counter if sample.kind == "counter" else Gauge
            keys = next(keys for prefix, keys in _TAGS.items() if sample.name.startswith(prefix))
            recorder = self._recorders[sample.name] = made(
                sample.name, description=DESCRIPTIONS[sample.name], tag_keys=keys
            )
        return recorder
