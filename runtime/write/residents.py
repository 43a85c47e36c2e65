"""Residents: the aggregates in memory, a bounded cache over the log.

Step [4] of the write path, first half: where the write loop gets the state that a command is decided on.

Rule kept here: only the log is the truth. A resident is *checked out* while a batch works on it and put back only
after the log has committed; whatever happens in between, the cache never holds a state that is not in the log.
Loading an aggregate that has no events costs one look-up and leaves no trace.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import suppress
from itertools import islice
from typing import Final, NamedTuple

from ..domain.aggregate import Aggregate
from ..domain.declaration import nearest
from ..domain.messages import Event
from ..domain.state import check_declared
from ..encoding.catalogue import Catalogue
from ..encoding.saved_state import checked_state, decode_state, encode_state, state_fingerprint
from ..errors import HandlerFailed, InvalidMessage
from ..log.contract import Snapshot, StoredEvent, WriteLog
from ..log.format import decode_record
from ..own_random import OWN
from ..stream import StreamId
from ..user_code import is_ctrl_c
from .loading import LOADED_AT_ONCE_BYTES, LOADED_AT_ONCE_EVENTS, Loading, StillLoading

__all__ = [
    "RESIDENTS_BYTES_MAX",
    "RESIDENTS_MAX",
    "SAVED_AT_ONCE",
    "Residents",
    "SavedResident",
    "evolve_with",
    "take_in",
]

RESIDENTS_MAX: Final = 10_000
"""How many aggregates stay in memory: at about 1 KB each some 10 MB in a process that takes 80 MB by itself."""

RESIDENTS_BYTES_MAX: Final = 256 << 20
"""Bytes of their states as they would be saved; as objects they take several times as much."""

_UNSAVED_BYTES: Final = 64 << 10

_PAGE: Final = 500
"""Records read at a time while an aggregate is folded: bounds memory for long streams."""

_PAGE_BYTES: Final = 1 << 20
"""... and no further one after so many bytes: a record may have 1 MiB, and the writer waits while a page is read."""


_DISTRUSTED_MAX: Final = 10_000
"""Streams that are remembered as distrusted: some 1 MB."""

SAVED_AT_ONCE: Final = 500
"""Residents that are saved in one go, while commands wait: some 5 ms."""


class SavedResident(NamedTuple):
    """A resident on its way to the partition's next actor: what a snapshot would hold."""

    stream: StreamId
    version: int
    schema: bytes
    state: bytes


class Residents:
    """Aggregates by stream, least recently used first out."""

    def __init__(self, catalogue: Catalogue, log: WriteLog, residents_max: int = RESIDENTS_MAX) -> None:
        self._catalogue = catalogue
        self._log = log
        self._version_of: Callable[[StreamId], int] | None = getattr(log, "version", None)
        """Where the log is here: one look shows that an aggregate is a new one, which has neither a snapshot nor
        events. That takes half of the time of looking for both."""
        self._new_of: Callable[[Iterable[StreamId]], Set[StreamId]] | None = getattr(log, "new_streams", None)
        self._new: Set[StreamId] = frozenset()
        """Streams that the batch is about and that have no events yet."""
        self._residents_max = residents_max
        self._cache: OrderedDict[StreamId, Aggregate] = OrderedDict()
        self._loading: Loading | None = None
        self._grown_bytes = 0
        """Bytes of the events that residents have taken in since they were weighed: a fold holds at most that much
        more."""
        self._room_bytes = RESIDENTS_BYTES_MAX
        """What they may take in until they are weighed again."""
        self._offered: dict[StreamId, tuple[bytes, Snapshot]] = {}
        """What the partition's last actor had in memory, with the schema that wrote it; each is used once."""
        self._distrusted: OrderedDict[StreamId, None] = OrderedDict()
        """Streams whose snapshots are not used, because a saved or resident state differed from the log."""

    def __len__(self) -> int:
        return len(self._cache)

    def load_aside(self) -> None:
        """Load long histories aside from now on (`loading.py`): for the thread that others wait for."""
        self._loading = Loading(self._fold)

    def begin_batch(self) -> None:
        """Use what was loaded aside until now, and nothing that is loaded while the batch is being decided."""
        if self._loading is not None:
            self._loading.take_over()

    def look_up(self, streams: Iterable[StreamId]) -> None:
        """Find out, in one go, which of these have no events yet. What was found the last time counts no more."""
        if self._new_of is not None:
            unknown = {stream for stream in streams if stream not in self._cache}
            self._new = self._new_of(unknown) if unknown else frozenset()

    def check_out(self, stream: StreamId) -> Aggregate:
        """The aggregate, out of the cache or folded from the log. The caller puts it back or drops it.

        Raises `UnknownName`, `Damaged`, `UnknownEvent`, `HandlerFailed` (a raising evolve handler), or `StillLoading`.
        """
        resident = self._cache.pop(stream, None)
        if resident is not None:
            return resident
        return self.load(stream) if self._loading is None else self._load_or_put_aside(stream, self._loading)

    def _load_or_put_aside(self, stream: StreamId, loading: Loading) -> Aggregate:
        if stream in loading:
            raise StillLoading(str(stream))
        aggregate = loading.taken(stream)
        if aggregate is None:  # one may be false in a condition
            if stream in self._new or (self._version_of is not None and not self._version_of(stream)):
                return self._catalogue.aggregate(stream.type)(stream.id)
            aggregate = self._beginning(stream, None)
        for events, size_bytes in self._fold(aggregate, stream):
            if events >= LOADED_AT_ONCE_EVENTS or size_bytes >= LOADED_AT_ONCE_BYTES:
                loading.begin(stream, aggregate)
                raise StillLoading(str(stream))
        return aggregate

    def put_back(self, aggregate: Aggregate, stream: StreamId) -> None:
        """Keep an aggregate whose state is exactly what the log holds."""
        if not aggregate.version:
            return
        self._cache[stream] = aggregate
        if len(self._cache) > self._residents_max:
            self._cache.popitem(last=False)

    def grew(self, size_bytes: int) -> None:
        """A batch is stored, and residents have taken in events of so many bytes. Keeps all of them within
        `RESIDENTS_BYTES_MAX`.

        States are weighed only once events of as many bytes were taken in as there was room for, since most events
        change a state and do not make it larger: 10,000 small states in 60 ms, every 256 MiB of events.
        """
        self._new = frozenset()
        self._grown_bytes += size_bytes
        if self._grown_bytes <= self._room_bytes:
            return
        weights = {stream: _weight(aggregate) for stream, aggregate in self._cache.items()}
        total = sum(weights.values())
        for stream, weight in weights.items():  # the least recently used one first
            if total <= RESIDENTS_BYTES_MAX // 2 or len(self._cache) == 1:
                break
            del self._cache[stream]
            total -= weight
        self._grown_bytes, self._room_bytes = 0, max(RESIDENTS_BYTES_MAX - total, RESIDENTS_BYTES_MAX // 8)

    def forget(self, stream: StreamId) -> None:
        """Drop it from memory; the next check-out reads the log."""
        self._cache.pop(stream, None)
        if self._loading is not None:
            self._loading.forget(stream)

    def forget_all(self) -> None:
        """Drop everything from memory."""
        self._cache.clear()
        if self._loading is not None:
            self._loading.forget_all()

    def sampled(self) -> tuple[StreamId, Aggregate] | None:
        """One of the residents, each as likely as any other; it stays where it is."""
        if not self._cache:
            return None
        stream = next(islice(self._cache, OWN.randrange(len(self._cache)), None))
        return stream, self._cache[stream]

    def distrust(self, stream: StreamId) -> None:
        """Drop it from memory, what is being loaded aside too, and load it from its events from now on."""
        self.forget(stream)
        self._offered.pop(stream, None)
        self._distrusted[stream] = None
        if len(self._distrusted) > _DISTRUSTED_MAX:
            self._distrusted.popitem(last=False)

    def is_distrusted(self, stream: StreamId) -> bool:
        """Whether its snapshots are not to be used."""
        return stream in self._distrusted

    def saved(self, first: int) -> list[SavedResident]:
        """The next residents after the `first` lately used ones, for the partition's next actor; none at the end. One
        that takes no snapshots, or cannot be saved, is left out: it is loaded from its events."""
        listed = []
        for stream in islice(reversed(self._cache), first, first + SAVED_AT_ONCE):
            aggregate = self._cache[stream]
            if aggregate.snapshot_every:
                with suppress(Exception):  # of a state that would not come back as it is
                    schema, state = state_fingerprint(type(aggregate)), checked_state(aggregate)
                    listed.append(SavedResident(stream, aggregate.version, schema, state))
        return listed

    def offer(self, saved: Iterable[SavedResident]) -> None:
        """Begin with these where the log has no later snapshot. They are of this log, at whatever version."""
        for stream, version, schema, state in islice(saved, self._residents_max):
            self._offered[stream] = schema, Snapshot(version, state)

    def load(self, stream: StreamId, at_or_before: int | None = None) -> Aggregate:
        """The aggregate as the log has it: its latest usable snapshot, then the events after that."""
        aggregate = self._beginning(stream, at_or_before)
        for _ in self._fold(aggregate, stream, at_or_before):
            pass
        return aggregate

    def _beginning(self, stream: StreamId, at_or_before: int | None) -> Aggregate:
        cls = self._catalogue.aggregate(stream.type)
        aggregate = self._from_snapshot(cls, stream, at_or_before)
        return cls(stream.id) if aggregate is None else aggregate

    def _fold(
        self, aggregate: Aggregate, stream: StreamId, at_or_before: int | None = None
    ) -> Iterator[tuple[int, int]]:
        """Fold the events after the aggregate's version into it, page by page. Yields how many it were by then, and the
        bytes of their records, while there may be more."""
        events = size_bytes = 0
        while True:
            records = self._log.read_stream(stream, aggregate.version + 1, at_or_before, _PAGE, _PAGE_BYTES)
            for record in records:
                take_in(aggregate, self._catalogue, decode_record(record))
            page_bytes = sum(map(len, records))
            if len(records) < _PAGE and page_bytes < _PAGE_BYTES:
                return
            events, size_bytes = events + len(records), size_bytes + page_bytes
            self._grown_bytes += page_bytes
            yield events, size_bytes

    def _from_snapshot(self, cls: type[Aggregate], stream: StreamId, at_or_before: int | None) -> Aggregate | None:
        """A snapshot saves time and is never the truth: one that cannot be used, why ever, is passed over."""
        if not cls.snapshot_every or stream in self._distrusted:
            return None
        snapshot = self._log.find_snapshot(stream, state_fingerprint(cls), at_or_before)
        if at_or_before is None and stream in self._offered:
            schema, offered = self._offered.pop(stream)
            if schema == state_fingerprint(cls) and (snapshot is None or snapshot.version < offered.version):
                snapshot = offered
        if snapshot is None:
            return None
        try:
            return decode_state(cls, snapshot.state, stream.id, snapshot.version)
        except InvalidMessage:
            return None


def take_in(aggregate: Aggregate, catalogue: Catalogue, stored: StoredEvent) -> None:
    """Advance the aggregate by one stored event: one event, or as many as an upcast makes of it, all at its version.

    Raises `UnknownEvent`, `HandlerFailed`; the state is then unusable.
    """
    for event in catalogue.decode_events(stored):
        evolve_with(aggregate, event)
        aggregate.version = stored.version - 1
    aggregate.version = stored.version


def _weight(aggregate: Aggregate) -> int:
    """The bytes of its state as it would be saved; of one that cannot be saved, as much as an average large one."""
    try:
        return len(encode_state(aggregate))
    except BaseException as error:  # whatever it holds
        if is_ctrl_c(error):
            raise
        return _UNSAVED_BYTES


def evolve_with(aggregate: Aggregate, event: Event) -> None:
    """Advance the aggregate by one event. A handler that raises is a `HandlerFailed`; the state is then unusable."""
    handler = aggregate.evolvers.get(type(event)) or nearest(type(event), aggregate.evolvers)
    if handler is None:
        remedy = "write one, which may do nothing, or retire the event"
        what = f"{type(aggregate).__name__} has no @evolve handler for it; {remedy}"
        raise HandlerFailed("evolve", f"{type(event).__name__} of {aggregate.aggregate_type}/{aggregate.id}", what)
    try:
        handler(aggregate, event)
        if len(aggregate.__dict__) != aggregate.attribute_count:
            check_declared(aggregate)
    except BaseException as error:
        if is_ctrl_c(error):
            raise
        subject = f"{aggregate.aggregate_type}/{aggregate.id}"
        raise HandlerFailed.caused_by(f"{type(aggregate).__name__}.{handler.__name__}", subject, error) from error
    aggregate.version += 1
