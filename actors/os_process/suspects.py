"""Suspects: which queries of a batch may have ended the process that answered it.

Beside step [8], the caller's half. The record of a projector (`runtime/in_hand.py`) names the few queries that were
being answered when its process ended; on its own machine a client reads it. Without it, every query that was in flight
is suspect.

Rules kept here: a suspect is asked again alone, and of the next process of the same replica, so that it never ends the
others in turn. If that ends as well, while it had nothing else of this client to answer, the suspect is refused for a
while, by name; the process before and the one after have different incarnations, or it was not the process that ended.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from ...runtime.errors import HandlerFailed, RayfoldError
from ...runtime.in_hand import KEY_BYTES, REFUSED_S, key_in_hand_at_death, keys_in_hand
from ...runtime.read.read_model import ENCODING, QUERIES_STEP
from .watchdog import record_path

__all__ = ["Refused", "key_of_batch", "record_of", "suspects_alone", "suspects_of"]

T = TypeVar("T")

_REFUSED_MAX: Final = 256
"""Queries of one projection that are refused at once; a forgotten one is asked, and refused, once more."""


def key_of_batch(batch: bytes) -> bytes:
    """The key under which a batch of queries is in hand; its last byte is the place in the batch."""
    return hashlib.blake2b(batch, digest_size=KEY_BYTES - 1).digest() + b"\0"


def record_of(actor_id: str) -> str:
    """What the record of a projector is called (`os_process/watchdog.py`)."""
    return f"projector {actor_id}"


def suspects_of(
    batch: Sequence[T], key: bytes, record: str, incarnation: bytes, *, only_known: bool = False
) -> list[T]:
    """Those of a batch, sent under this key, that the process of this incarnation was answering when it ended, or is
    answering still. Where that is not known here: all of them, or none if `only_known`."""
    in_hand = _in_hand(key, record, incarnation)
    if in_hand is None:
        return [] if only_known else list(batch)
    if in_hand[:-1] != key[:-1]:
        return []
    step = in_hand[-1]
    if step >= ENCODING - 1:
        return list(batch[(ENCODING - 1) * QUERIES_STEP :] if step < ENCODING else batch)
    return list(batch[step * QUERIES_STEP : (step + 1) * QUERIES_STEP])


def suspects_alone(batch: Sequence[T], key_of: Callable[[T], bytes], record: str, incarnation: bytes) -> list[T]:
    """The same for queries that are answered one by one, each under its own key; none where it is not known here."""
    try:
        path = record_path(record)
    except (OSError, RayfoldError):
        return []
    in_hand = [key_in_hand_at_death(path, incarnation)] if incarnation else keys_in_hand(path)
    known = {key[:-1] for key in in_hand or () if key}
    return [one for one in batch if key_of(one)[:-1] in known] if known else []


def _in_hand(key: bytes, record: str, incarnation: bytes) -> bytes | None:
    """What the process had in hand; of one that never answered, this batch if any process of it had."""
    try:
        path = record_path(record)
    except (OSError, RayfoldError):
        return None
    if incarnation:
        return key_in_hand_at_death(path, incarnation)
    found = keys_in_hand(path)
    if found is None:
        return None
    return next((one for one in found if one[:-1] == key[:-1]), b"")


class Refused:
    """Queries that have ended two processes, for as long as they are not asked again. Used on one event loop only."""

    def __init__(self) -> None:
        self._until_s: OrderedDict[bytes, float] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._until_s)

    def add(self, key: bytes) -> None:
        """Refuse it from now on."""
        self._until_s[key] = time.monotonic() + REFUSED_S
        if len(self._until_s) > _REFUSED_MAX:
            self._until_s.popitem(last=False)

    def find(self, key: bytes, projection: str, name: str) -> HandlerFailed | None:
        """Why it is not asked; None if it may be."""
        until_s = self._until_s.get(key)
        if until_s is None:
            return None
        if until_s < time.monotonic():
            del self._until_s[key]
            return None
        what = "the process that answered it ended, more than once; it is not tried again for"
        return HandlerFailed(f"{projection} @answer", name, f"{what} {REFUSED_S / 60:g} minutes")
