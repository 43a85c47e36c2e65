"""Damage: random bits flipped in a copy of a store, files cut off; every way of reading is tried on each.

Each answer has to be what was stored, or an error:

- *wrong*: an answer that was never true. There may be none
- *denied*: "there is no such thing", or only its beginning, about something that is there. There may be none: LMDB
  finds a key by comparing keys, so a bit that flips in a key, or in a page above it, hides an entry from mere look-ups
- *ended*: LMDB ended the process, by an assertion of its own or by a page that is not there. No answer, but loud

`rayfold verify` walks the file without LMDB first. It has to survive, and to name each of these with place and kind.

Rule kept here: each damage is tried in a child that may end of it, and undone afterwards; the truth is read before.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from rayfold.runtime.encoding.saved_state import state_fingerprint
from rayfold.runtime.errors import RayfoldError
from rayfold.runtime.log.reader import LmdbReader
from rayfold.runtime.store.store import Store, open_store
from rayfold.runtime.store.verify import verify_store
from rayfold.runtime.stream import StreamId

from ..bank import Till
from ..contract import Context, Findings, scenario
from ..processes import Forked, ForkServer
from .workload import TILLS, data_of, everything, expected, make_store

__all__ = ["BATCHES", "make_two", "questions", "verdict"]

BATCHES: Final = 60
PER_CHILD: Final = 200
"""Damages tried by one child, unless it ends earlier."""

SHOWN_CHARS: Final = 200


class Question(NamedTuple):
    """One way of reading a log."""

    asked: str
    ask: Callable[[LmdbReader], Any]
    hint: bool = False
    """An answer that may be missing or older and is still right: a snapshot."""


class Damage(NamedTuple):
    """A file that is not what it was."""

    what: str
    offset: int
    new: bytes | None
    """None: the file is cut off at `offset`."""


def make_two(path: Path, seed: int) -> Store:
    """A store with two partitions and a log of its own in each."""
    return make_store(path, seed, BATCHES, 2)


def questions(seed: int) -> list[Question]:
    """Every read of the public contract, about what is stored and about what is not."""
    ids = [command.command_id for batch in expected(seed, BATCHES).batches for command in batch]
    ids += [number.to_bytes(16, "big") for number in range(8)]
    schema = state_fingerprint(Till)
    asked = [Question("head", LmdbReader.head), Question("epoch", LmdbReader.epoch), Question("all", everything)]
    for after in range(0, 100, 13):
        asked.append(Question(f"read after {after}", partial(LmdbReader.read, after=after, limit=13)))
    for number in range(TILLS + 1):
        stream = StreamId("Till", f"till-{number}")
        find_snapshot = partial(LmdbReader.find_snapshot, stream=stream, schema=schema)
        asked += [
            Question(f"version of {stream}", partial(LmdbReader.version, stream=stream)),
            Question(f"stream {stream}", partial(LmdbReader.read_stream, stream=stream)),
            Question(f"end of {stream}", partial(LmdbReader.read_stream, stream=stream, from_version=7)),
            Question(f"snapshot of {stream}", find_snapshot, hint=True),
        ]
    asked += [Question(f"command {one.hex()}", partial(LmdbReader.find_command, command_id=one)) for one in ids]
    asked.append(Question("commands", partial(_find_all, command_ids=ids)))
    return asked


def _find_all(reader: LmdbReader, command_ids: list[bytes]) -> dict[bytes, Any]:
    """As the write loop looks ids up: many at once, each with its entry or its error."""
    found = reader.find_commands(command_ids)
    for entry in found.values():
        if isinstance(entry, RayfoldError):
            raise entry
    return dict(found)


def verdict(question: Question, answer: Any, truth: Any, states: Sequence[Any]) -> str:
    """`right`, `denied` or `wrong`."""
    if answer == truth or (question.hint and (answer is None or answer in states)):
        return "right"
    if answer is None or (isinstance(answer, int) and answer < truth):
        return "denied"
    beginning = isinstance(answer, list) and answer == truth[: len(answer)]
    part = isinstance(answer, dict) and answer.items() <= truth.items()
    return "denied" if beginning or part else "wrong"


# --- in the child -----------------------------------------------------------------------------------------------------


def damaged(report: Any, *, path: str, seed: int, first: int, count: int, cut: bool, verify_every: int) -> None:
    """A job: damage the file of partition 0 in so many ways, one after the other, and report what came of each."""
    store = open_store(path)
    data = data_of(store.path)
    asked = questions(seed)
    whole = data.read_bytes()
    reader = store.open_reader(0)
    truths = [question.ask(reader) for question in asked]
    schema = state_fingerprint(Till)
    states = [reader.find_snapshot(StreamId("Till", f"till-{n}"), schema, at) for n in range(TILLS) for at in range(99)]
    reader.close()
    for number in range(first, first + count):
        damage = _drawn(random.Random(f"{seed} {number} {cut}"), whole, cut)
        _put(data, damage, whole)
        report.send(number=number, damage=damage.what)
        told = _ask_all(store, asked, truths, states)
        problems = None
        if number % verify_every == 0 or set(told) != {"right"}:
            problems = [[one.database, one.key[:60], one.kind] for one in verify_store(path).problems[:3]]
        report.send(number=number, told=told, problems=problems)
        _put(data, None, whole)


def _drawn(rng: random.Random, whole: bytes, cut: bool) -> Damage:
    if cut:
        length = rng.randrange(len(whole))
        return Damage(f"cut off at byte {length}", length, None)
    offset, bit = rng.randrange(len(whole)), rng.randrange(8)
    return Damage(f"bit {bit} of byte {offset}", offset, bytes([whole[offset] ^ 1 << bit]))


def _put(data: Path, damage: Damage | None, whole: bytes) -> None:
    """Damage a file that is whole, or make it whole again."""
    with data.open("r+b") as file:
        if damage is None:
            file.write(whole)
        elif damage.new is None:
            file.truncate(damage.offset)
        else:
            file.seek(damage.offset)
            file.write(damage.new)


def _ask_all(store: Store, asked: list[Question], truths: list[Any], states: list[Any]) -> dict[str, str]:
    """By verdict, the first question that got it: `right`, `error`, `denied`, `wrong`."""
    told: dict[str, str] = {}
    try:
        reader = store.open_reader(0)
    except RayfoldError as error:
        return {"error": f"open: {type(error).__name__} {error}"[:SHOWN_CHARS]}
    for question, truth in zip(asked, truths, strict=True):
        try:
            answer = question.ask(reader)
        except RayfoldError as error:
            told.setdefault("error", f"{question.asked}: {type(error).__name__} {error}"[:SHOWN_CHARS])
            continue
        kind = verdict(question, answer, truth, states)
        told.setdefault(kind, f"{question.asked}: {str(answer)[:60]}, not {str(truth)[:60]}")
    reader.close()
    return told


# --- in the parent ----------------------------------------------------------------------------------------------------


@scenario(
    "bit-flips",
    "random bits flipped and files cut off in a copy of a store",
    "I10",
    counts="damages wrong denied error right ended verified",
    times=(6, 60, 2.0),
)
def bits_and_cuts(context: Context, findings: Findings) -> None:
    """The short form takes a few hundred; the long form at least 1,000, then goes on with other stores."""
    bits, cuts = (200, 30) if context.short else (1_000, 100)
    with ForkServer() as server:
        for number in context.rounds():
            for cut, count in ((False, bits), (True, cuts)):
                _try(server, context, context.seed + 10 * number, count, cut, findings)


def _try(server: ForkServer, context: Context, seed: int, count: int, cut: bool, findings: Findings) -> None:
    """So many damages of one store, with as many children as it takes."""
    store = make_two(context.folder / f"{'cut' if cut else 'bits'}-{seed}", seed)
    whole = data_of(store.path).read_bytes()
    first, every = 0, 4 if context.short else 1
    while first < count and (context.left_s > 0 or not first):  # once at least, however slow the machine
        arguments = {"first": first, "count": min(PER_CHILD, count - first), "cut": cut, "verify_every": every}
        child = server.run(damaged, path=str(store.path), seed=seed, **arguments)
        first = _counted(child, first, findings)
        data_of(store.path).write_bytes(whole)


def _counted(child: Forked, first: int, findings: Findings) -> int:
    """Count what a child reports; the number of the damage to go on with."""
    damage = ""
    for line in child.lines:
        first = line["number"]
        if "damage" in line:
            damage = line["damage"]
            continue
        told, problems = line["told"], line["problems"]
        findings.count("damages")
        kinds = set(told)
        worst = next(kind for kind in ("wrong", "denied", "error", "right") if kind in kinds)
        findings.count(worst)
        findings.check("I10", worst not in ("wrong", "denied"), f"{damage}: {told.get('wrong') or told.get('denied')}")
        if worst != "right":
            findings.check("I10", bool(problems), f"{damage}: verify finds nothing, but {told}")
        if problems is not None:
            findings.count("verified")
            placed = all(database and key and kind for database, key, kind in problems)
            findings.check("I10", placed, f"{damage}: verify does not name the place: {problems}")
        first += 1
    if child.status:
        findings.count("damages")
        findings.count("ended")
        findings.figures["ended_by"] = f"{damage}: status {child.status}"
        return first + 1
    return first
