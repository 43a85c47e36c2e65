"""EventApplier: some adjoining records of one partition, a page, given to the handlers of a projection as fast as
Python can.

Step [7] of the read path. Before it: `read_model.py` has put the records in order and closed the gaps. After it:
`stored_model.py` commits what the handlers did, or undoes it.

Rules kept here: records are applied in order and the first that cannot be ends the page, with its reason;
what has no handler, or belongs to another part, is passed over without decoding its payload; sizes are bounded before
anything is decoded.

Why one loop over local names: it is what a rebuild spends its time in. No `StoredEvent` for each event, a `Recorded`
only for a handler that takes one, and what is made is made by `tuple.__new__`. What goes wrong on the fast path is
decoded once more on the slow one, which knows the words for it.
"""

from __future__ import annotations

import inspect
import time
import zlib
from collections.abc import Callable, Container, Sequence
from typing import Any, Final, NamedTuple

import msgpack

from ..domain.projection import Projection, part_of
from ..domain.read_store import InMemory
from ..domain.recorded import Recorded
from ..domain.state import check_declared
from ..encoding.catalogue import Catalogue
from ..encoding.codec import SMALL_BYTES, validator_of
from ..errors import Damaged, HandlerFailed, RayfoldError, StorageFailed
from ..log.format import BODY_AT, HEADER_ITEMS_MAX, decode_record, is_intact, pack_position
from ..stream import StreamId, is_reserved
from ..user_code import is_ctrl_c

__all__ = ["Failure", "Page", "EventApplier", "recorded_at_us_of"]

_NO_EVENTS: Final[Sequence[Any]] = ()

_new_tuple: Final = tuple.__new__
_crc32: Final = zlib.crc32


class Page(NamedTuple):
    """Adjoining records, and how they are to be applied."""

    partition: int
    first: int
    """The position of the first of them."""
    records: Sequence[bytes]
    checked: bool
    """They come from a reader of this process, which has checked them."""
    replayed_up_to: int
    """Events up to this position are marked as replayed."""
    set_aside: Container[int] = ()
    """Positions that are passed over."""
    until_s: float = float("inf")
    """The end by `time.perf_counter`: no further record is begun after it."""


class Failure(NamedTuple):
    """Why a page ended before its end."""

    applied: int
    """Records of the page that were applied before it: its index."""
    error: RayfoldError
    half_applied: bool
    """True when a handler was called, so that the read model may hold half of what it does."""
    stream: str = ""
    version: int = 0
    event: str = ""


class _Target(NamedTuple):
    """Where an event of one name goes."""

    schema_version: int
    validate: Callable[..., Any]
    function: Callable[..., None]
    takes_recorded: bool
    name: str
    """The name of the handler, for errors."""


class EventApplier:
    """The handlers of one part of a projection."""

    def __init__(self, projection: type[Projection], catalogue: Catalogue, part: int) -> None:
        self._projection = projection
        self._catalogue = catalogue
        self._part = part
        self._targets: dict[str, _Target] = {}
        for cls, handler in catalogue.projectors(projection).items():
            validate = validator_of(cls)
            target = _Target(cls.schema_version, validate, handler.function, handler.takes_recorded, handler.name)
            self._targets[cls.message_name] = target
        self._splitting = {
            name: cls.schema_version for name, cls in catalogue.events.items() if catalogue.may_become(name)
        }
        """Names of which old events may be upcast to others -> the version from which they are not."""
        self._key = projection.part_key
        self._key_takes_recorded = self._key is not None and len(inspect.signature(self._key).parameters) > 1
        divided, by_key = projection.parts > 1, projection.part_key is not None
        self._divided = divided and by_key, divided and not by_key
        """By a key, by stream."""
        self.done = 0
        """Records of the last page that were applied, if none of them has failed."""

    def run(self, model: Projection, page: Page) -> Failure | None:
        """Apply the records of a page. None if all that were begun succeeded; `done` is their number."""
        partition, first, records, checked, replayed_up_to, set_aside, until_s = page
        self.done, clock, unpack = len(records), time.perf_counter, msgpack.unpackb
        targets, splitting, is_set_aside, n = self._targets, self._splitting, bool(set_aside), HEADER_ITEMS_MAX
        by_key, by_stream = self._divided
        given = () if isinstance(model.read_store, InMemory) else frozenset(model.__dict__)  # by its store
        attribute_count = model.attribute_count if isinstance(model.read_store, InMemory) else len(given)
        for position, record in enumerate(records, first):
            try:
                if not checked:
                    _check(record, position)
                fields = unpack(
                    record[BODY_AT:],
                    use_list=False,
                    strict_map_key=False,
                    max_array_len=n,
                    max_map_len=n,
                    max_ext_len=0,
                )
                try:
                    kind, ident, version, at_us, name, schema, payload, command, correlation, causation, _ = fields
                except ValueError:  # a record of format 1 or 2, without headers
                    kind, ident, version, at_us, name, schema, payload, command, correlation, causation = fields
            except (Damaged, ValueError, TypeError) as error:
                return Failure(position - first, _damage(partition, position, error), half_applied=False)
            target, events = targets.get(name), _NO_EVENTS
            if target is None and schema >= splitting.get(name, 0):
                continue
            if (is_set_aside and position in set_aside) or ("." in kind and is_reserved(kind)):
                continue
            if by_stream and _crc32(ident.encode()) % self._projection.parts != self._part:
                continue
            if target is not None and schema == target.schema_version and len(payload) <= SMALL_BYTES:
                try:
                    events = ((target, target.validate(unpack(payload, use_list=False, max_ext_len=0))),)
                except BaseException as error:
                    if is_ctrl_c(error):
                        raise
            if not events and isinstance(events := self._decoded(position - first, record), Failure):
                return events
            for (_, _, function, takes_recorded, handler), event in events:
                called, recorded = False, None
                try:
                    if takes_recorded or by_key:
                        stream, replayed = _new_tuple(StreamId, (kind, ident)), position <= replayed_up_to
                        place = stream, version, partition, position, at_us, command, correlation, causation, replayed
                        recorded = _new_tuple(Recorded, place)
                        if by_key and self._part_by_key(event, recorded) != self._part:
                            continue
                    called = True
                    if takes_recorded:
                        function(model, event, recorded)
                    else:
                        function(model, event)
                    if len(model.__dict__) != attribute_count:
                        check_declared(model, given)
                except BaseException as error:
                    if is_ctrl_c(error):
                        raise
                    named = handler if called else ""
                    return self._raised(position - first, partition, position, named, fields, error)
            if clock() > until_s:
                self.done = position - first + 1
                return None
        return None

    def _decoded(self, index: int, record: bytes) -> Sequence[tuple[_Target, Any]] | Failure:
        """What the codec makes of it: old, large and odd events, and what cannot be read, with the words for it."""
        stored = decode_record(record, checked=True)
        try:
            events = self._catalogue.decode_events(stored)
        except RayfoldError as error:
            return Failure(index, error, False, str(stored.stream), stored.version, stored.name)
        found = [(self._targets.get(event.message_name), event) for event in events]
        return [(target, event) for target, event in found if target is not None]

    def _part_by_key(self, event: Any, recorded: Recorded) -> int:
        assert self._key is not None  # else no part is asked for by key
        key = self._key(event, recorded) if self._key_takes_recorded else self._key(event)
        return part_of(key, self._projection.parts)

    def _raised(
        self, index: int, partition: int, position: int, handler: str, fields: Any, error: BaseException
    ) -> Failure:
        """The failure for what a handler, or without its name the `key=`, raised."""
        kind, ident, version, _, event, *_ = fields
        if type(error) is Damaged or type(error) is StorageFailed:  # of the read store: no fault of the handler
            return Failure(index, error, True, f"{kind}/{ident}", version, event)
        subject = f"event {position} of partition {partition} ({kind}/{ident} {version})"
        name = f"{self._projection.__name__}.{handler}" if handler else f"key= of {self._projection.__name__}"
        failed = HandlerFailed.caused_by(name, subject, error)
        failed.__cause__ = error
        return Failure(index, failed, True, f"{kind}/{ident}", version, event)


def recorded_at_us_of(record: bytes) -> int:
    """When the event in a record was recorded. The record was read before, so it is one."""
    fields = msgpack.unpackb(record[BODY_AT:], use_list=False, strict_map_key=False)
    return int(fields[3])


def _check(record: bytes, position: int) -> None:
    """Raises `Damaged` unless this is the intact record of the event at this position."""
    if is_intact(record, pack_position(position)):
        return
    stored = decode_record(record)
    if stored.position != position:
        raise Damaged("", f"the record that stands for it is that of event {stored.position}")


def _damage(partition: int, position: int, error: Exception) -> Damaged:
    what = error.what if isinstance(error, Damaged) else f"its body is not that of an event: {error}"
    return Damaged(f"event {position} of partition {partition}", what)
