"""A page: some adjoining records of one partition, given to the handlers of a projection as fast as Python can.

Step [7] of the read path. Before it: `read_model.py` has put the records in order and closed the gaps. After it:
`kept_model.py` commits what the handlers did, or undoes it.

Rules kept here: records are applied in order and the first that cannot be ends the page, with its reason;
what has no handler, or belongs to another part, is passed over without decoding its payload; sizes are bounded before
anything is decoded.

Why one loop over local names: it is what a rebuild spends its time in. No `StoredEvent` for each event, a `Recorded`
only for a handler that takes one, and what is made is made by `tuple.__new__`. What goes wrong on the fast road is
decoded once more on the slow one, which knows the words for it.
"""

from __future__ import annotations

import inspect
import time
import zlib
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any, Final, NamedTuple

import msgpack

from .catalogue import Catalogue
from .codec import SMALL_BYTES, decode_payload, validator_of
from .errors import Damaged, HandlerFailed, RayfoldError, StorageFailed, UnknownEvent
from .log.format import BODY_AT, HEADER_ITEMS_MAX, decode_record, is_intact, pack_position
from .projection import Projection, part_of
from .recorded import Recorded
from .stream import RESERVED_PREFIX, StreamId
from .user_code import is_ctrl_c

__all__ = ["Failure", "PageLoop", "recorded_at_us_of"]

_NO_EVENTS: Final[Sequence[Any]] = ()

_new_tuple: Final = tuple.__new__
_crc32: Final = zlib.crc32


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
    """Of the handler, for errors."""


class PageLoop:
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
        self._unreadable: Failure | None = None
        self.done = 0
        """Records of the last page that were applied, if none of them has failed."""

    def run(
        self,
        model: Projection,
        partition: int,
        first: int,
        records: Sequence[bytes],
        *,
        checked: bool,
        replayed_up_to: int,
        set_aside: Container[int] = (),
        until_s: float = float("inf"),
    ) -> Failure | None:
        """Apply records at `first, first + 1, …`, save those at the positions in `set_aside`. None when all were.

        No further one is begun after `until_s` (of `time.perf_counter`); then `done` says how many were.

        `checked` says that they come from a reader of this process, which has checked them.
        """
        self._unreadable, self.done, clock = None, len(records), time.perf_counter
        by_key = self._key is not None and self._projection.parts > 1
        for position, target, event, fields in self._events(partition, first, records, checked, set_aside):
            _, _, function, takes_recorded, _ = target
            called = False
            try:
                if takes_recorded or by_key:
                    try:
                        kind, ident, version, at_us, _, _, _, command, correlation, causation, _ = fields
                    except ValueError:
                        kind, ident, version, at_us, _, _, _, command, correlation, causation = fields
                    stream = _new_tuple(StreamId, (kind, ident))
                    replayed = position <= replayed_up_to
                    recorded: Any = _new_tuple(
                        Recorded,
                        (stream, version, partition, position, at_us, command, correlation, causation, replayed),
                    )
                    if by_key and self._part_by_key(event, recorded) != self._part:
                        continue
                    called = True
                    if takes_recorded:
                        function(model, event, recorded)
                    else:
                        function(model, event)
                else:
                    called = True
                    function(model, event)
            except BaseException as error:
                if is_ctrl_c(error):
                    raise
                return self._raised(position - first, partition, position, target.name if called else "", fields, error)
            if clock() > until_s:
                self.done = position - first + 1
                return None
        return self._unreadable

    def _events(
        self, partition: int, first: int, records: Sequence[bytes], checked: bool, set_aside: Container[int]
    ) -> Iterator[tuple[int, _Target, Any, Any]]:
        """Position, target, event and fields of each record that a handler is for; ends early at one that cannot be
        read, and says so in `_unreadable`."""
        targets, splitting, part, parts = self._targets, self._splitting, self._part, self._projection.parts
        by_stream, older = parts > 1 and self._key is None, _NO_EVENTS
        unpack, is_set_aside, position = msgpack.unpackb, bool(set_aside), first - 1
        items_max, reserved, reserved_chars = HEADER_ITEMS_MAX, RESERVED_PREFIX, len(RESERVED_PREFIX)
        for record in records:
            position += 1
            try:
                if not checked:
                    _check(record, position)
                fields = unpack(
                    record[BODY_AT:],
                    use_list=False,
                    strict_map_key=False,
                    max_array_len=items_max,
                    max_map_len=items_max,
                    max_ext_len=0,
                )
                try:
                    kind, ident, _, _, name, schema, payload, _, _, _, _ = fields
                except ValueError:  # a record of format 1 or 2, without headers
                    kind, ident, _, _, name, schema, payload, _, _, _ = fields
            except (Damaged, ValueError, TypeError) as error:
                self._unreadable = Failure(position - first, _damage(partition, position, error), half_applied=False)
                return
            target = targets.get(name)
            if target is None and schema >= splitting.get(name, 0):
                continue
            if (is_set_aside and position in set_aside) or kind[:reserved_chars] == reserved:
                continue
            if by_stream and _crc32(ident.encode()) % parts != part:
                continue
            try:
                if target is None or schema != target.schema_version:
                    event, older = None, self._catalogue.decode_events(decode_record(record, checked=True))
                elif len(payload) > SMALL_BYTES:
                    event = target.validate(decode_payload(payload, name), by_alias=False, by_name=True)
                else:  # `decode_payload` in line: so little breaks no limit; it also knows keys that are no text
                    try:
                        fields_of_event = unpack(payload, use_list=False, max_ext_len=0)
                    except ValueError:
                        fields_of_event = decode_payload(payload, name)
                    event = target.validate(fields_of_event, by_alias=False, by_name=True)
            except BaseException as error:
                if is_ctrl_c(error):
                    raise
                self._unreadable = self._undecodable(position - first, record)
                return
            if event is not None and target is not None:
                yield position, target, event, fields
                continue
            for event in older:
                target = targets.get(event.message_name)
                if target is not None:
                    yield position, target, event, fields

    def _part_by_key(self, event: Any, recorded: Recorded) -> int:
        assert self._key is not None
        key = self._key(event, recorded) if self._key_takes_recorded else self._key(event)
        return part_of(key, self._projection.parts)

    def _undecodable(self, index: int, record: bytes) -> Failure:
        """Decode it once more by the codec, which says what is wrong with it."""
        stored = decode_record(record, checked=True)
        error: RayfoldError
        try:
            self._catalogue.decode_events(stored)
        except RayfoldError as told:
            error = told
        else:
            error = UnknownEvent(stored.name, stored.schema_version, "it could be decoded only at the second try")
        return Failure(index, error, False, str(stored.stream), stored.version, stored.name)

    def _raised(
        self, index: int, partition: int, position: int, handler: str, fields: Any, error: BaseException
    ) -> Failure:
        """The failure for what a handler, or without its name the `key=`, raised."""
        kind, ident, version, _, event, *_ = fields
        if isinstance(error, Damaged | StorageFailed):  # of the read store: no fault of the handler
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
