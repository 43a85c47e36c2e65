"""Hostile input: too large, too deep, too many, no numbers, no ids; from a caller, and from a peer without our client.

A caller's message is refused while it is made or packed. A peer who speaks to a partition directly sends bytes; those
are refused when they are unpacked, decoded, or looked up. Every refusal has a name, comes before the input costs more
memory than it takes itself, stores nothing, and leaves no file anywhere but in the store.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgpack
from pydantic import ValidationError

from rayfold import Aggregate, Command, Envelope, Event, Shared, decide, evolve
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.envelope import PackedCommand, pack, unpack_batch
from rayfold.runtime.encoding.outcome import Outcome
from rayfold.runtime.errors import CallerError, RayfoldError
from rayfold.runtime.receipt import Receipt
from rayfold.runtime.store.store import create_or_open_store
from rayfold.runtime.stream import ANY, StreamId
from rayfold.runtime.write.write_loop import WriteLoop

from ..contract import Context, Findings, scenario
from ..processes import ForkServer

__all__ = ["INPUTS"]

LARGE_BYTES: Final = 50_000_000
CALLER_MIB_MAX: Final = 160
"""What one input of at most 50 MB may make the caller's own process grow by, over what the input takes itself: where
nothing else bounds a field, it is packed to see how large it is, which takes three times as much for a moment."""

PARTITION_MIB_MAX: Final = 64
"""The same where it arrives: one copy of 50 MB, and no more."""

FLOOD_BATCH: Final = 1_000
FLOOD_MIB_MAX: Final = 64
FILES: Final = re.compile(r"store\.(json|lock)|partition-00000/(data|lock)\.mdb")
"""All that a store has."""


class Keep(Command):
    """Keep anything at all."""

    value: Any = None
    text: str = ""
    ratio: float = 0.0
    number: int = 0


class Kept(Event):
    """It is kept."""

    value: Any = None


class Need(Command):
    """Refused where nothing is kept."""


class Box(Aggregate, placement=Shared()):
    """Keeps the last thing it was given."""

    value: Any = None

    @decide(creates=True)
    def keep(self, command: Keep) -> Kept:
        return Kept(value=command.value)

    @decide
    def need(self, command: Need) -> None:
        """Only of a box that there is."""

    @evolve
    def kept(self, event: Kept) -> None:
        self.value = event.value


def nested(levels: int) -> list[Any]:
    """Lists in lists."""
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


class Input(NamedTuple):
    """Something that has to be refused."""

    name: str
    make: Callable[[], Any]
    """Made first, so that what it takes itself is not counted."""
    give: Callable[[WriteLoop, Any], object]
    """Raises, or gives what came of it."""


def _packed(_loop: WriteLoop, fields: dict[str, Any]) -> object:
    return pack(Envelope(Box, "box", Keep(**fields)))[1]


def _id(_loop: WriteLoop, ident: Any) -> object:
    return pack(Envelope(Box, ident, Keep()))[1]


def _executed(loop: WriteLoop, command: PackedCommand) -> object:
    return loop.execute([command]).outcomes[0]


def _unpacked(_loop: WriteLoop, blob: bytes) -> object:
    return list(unpack_batch(blob))


GOOD: Final = PackedCommand(b"i" * 16, StreamId("Box", "box"), "Keep", msgpack.packb({}), ANY, b"", b"")


HALF: Final = GOOD._replace(stream=StreamId("Box", "\ud800"))


def _payload(name: str, make: Callable[[], bytes]) -> Input:
    return Input(f"payload: {name}", lambda: GOOD._replace(payload=make()), _executed)


def _stream(name: str, make: Callable[[], tuple[Any, Any]]) -> Input:
    return Input(f"address: {name}", lambda: GOOD._replace(stream=StreamId(*make())), _executed)


INPUTS: Final = (
    Input("a text of 50 MB", lambda: {"text": "x" * LARGE_BYTES}, _packed),
    Input("50 MB in a field of any kind", lambda: {"value": b"x" * LARGE_BYTES}, _packed),
    Input("5 million numbers", lambda: {"value": list(range(5_000_000))}, _packed),
    Input("no number", lambda: {"ratio": math.nan}, _packed),
    Input("infinity", lambda: {"ratio": math.inf}, _packed),
    Input("an integer of 5,000 digits", lambda: {"number": 10**5_000}, _packed),
    Input("5,000 digits as text", lambda: {"number": "9" * 5_000}, _packed),
    Input("an integer of 65 bits", lambda: {"number": 1 << 64}, _packed),
    Input("10,000 levels", lambda: {"value": nested(10_000)}, _packed),
    Input("65 levels", lambda: {"value": nested(65)}, _packed),
    Input("half a character", lambda: {"text": "\ud800"}, _packed),
    Input("an object", lambda: {"value": object()}, _packed),
    Input("a field that is none", lambda: {"txet": ""}, _packed),
    Input("an id of 600 bytes", lambda: "x" * 600, _id),
    Input("an id of 201 characters and 402 bytes", lambda: "é" * 201, _id),
    Input("an id of 50 MB", lambda: "x" * LARGE_BYTES, _id),
    Input("no id", lambda: "", _id),
    Input("an id of bytes", lambda: b"box", _id),
    Input("an id of half a character", lambda: "\ud800", _id),
    _payload("50 MB", lambda: bytes(LARGE_BYTES)),
    _payload("empty", lambda: b""),
    _payload("not a map", lambda: msgpack.packb([1, 2])),
    _payload("an array of 4 billion", lambda: b"\xdd\xff\xff\xff\xff"),
    _payload("a map of 4 billion", lambda: b"\xdf\xff\xff\xff\xff"),
    _payload("a text of 4 billion", lambda: b"\x81\xa5value\xdb\xff\xff\xff\xff"),
    _payload("16 MB of empty maps", lambda: b"\xdd\x01\x00\x00\x00" + b"\x80" * (16 << 20)),
    _payload("1 MB of empty maps", lambda: b"\x81\xa5value\xdd\x00\x0f\x00\x00" + b"\x80" * 0xF0000),
    _payload("10,000 levels", lambda: b"\x81\xa5value" + b"\x91" * 10_000 + b"\xc0"),
    _payload("a million levels", lambda: b"\x81\xa5value" + b"\x91" * 1_000_000 + b"\xc0"),
    _payload("an extension type", lambda: msgpack.packb({"value": msgpack.ExtType(42, b"x")})),
    _payload("no number", lambda: msgpack.packb({"ratio": math.nan})),
    _payload("a field that is none", lambda: msgpack.packb({"__class__": "x"})),
    _payload("keys that are not text", lambda: msgpack.packb({1: 2, b"x": 3})),
    _payload("text that is not UTF-8", lambda: b"\x81\xa4text\xa1\xff"),
    _payload("half of it", lambda: msgpack.packb({"text": "x" * 100})[:50]),
    _stream("an id of 600 bytes", lambda: ("Box", "x" * 600)),
    _stream("no id", lambda: ("Box", "")),
    _stream("an unknown type", lambda: ("Bomb", "box")),
    _stream("a type that is a path", lambda: ("../../Box", "box")),
    _stream("no type", lambda: ("", "box")),
    Input("an unknown command", lambda: GOOD._replace(name="Explode"), _executed),
    Input("a command named as a dunder", lambda: GOOD._replace(name="__init__"), _executed),
    Input("a command id of 15 bytes", lambda: GOOD._replace(command_id=b"i" * 15), _executed),
    Input("no command id", lambda: GOOD._replace(command_id=b""), _executed),
    Input("a command id of 600 bytes", lambda: GOOD._replace(command_id=b"i" * 600), _executed),
    Input("a correlation id of 3 bytes", lambda: GOOD._replace(correlation_id=b"abc"), _executed),
    Input("an expected version of -7", lambda: GOOD._replace(expected_version=-7), _executed),
    Input("a batch of noise", lambda: bytes(range(256)) * 100, _unpacked),
    Input("a batch of 4 billion", lambda: b"\xdd\xff\xff\xff\xff", _unpacked),
    Input("a batch of 10,000 levels", lambda: b"\x91" * 10_000, _unpacked),
    Input("a batch of 50 MB of empty maps", lambda: b"\x80" * LARGE_BYTES, _unpacked),
    Input("a batch with half a character", lambda: msgpack.packb(HALF, unicode_errors="surrogatepass"), _unpacked),
    Input("a batch with half a command", lambda: msgpack.packb(GOOD)[:-1], _unpacked),
)
"""All of these have to be refused."""

ACCEPTED_IDS: Final = (
    *("../x", "../../../../../../etc/passwd", "/", "/tmp/x", ".", "..", "a\0b", "\0", "\n", "é", "e\u0301", "É", "Å"),
    *("\u212b", "x", "X", "\uff38", "\u202ex", "x" * 400, "é" * 200, "CON", "~", "$HOME", "%s%n", "store.json"),
    "partition-00000",
)
"""Odd, and allowed: each is one aggregate, another than all others, and no file is named after it."""


@scenario(
    "hostile-input",
    "too large, too deep, too many, no ids: from a caller and from a peer",
    "I3 I7 I10 I11",
    counts="inputs refused growth_mib_max files_outside",
    times=(12, 15, 0.3),
)
def hostile_input(context: Context, findings: Findings) -> None:
    """Every input in one child after the other, then ids without end."""
    findings.figures["inputs"] = len(INPUTS)
    before = _outside(context.folder)
    jobs: dict[Callable[..., None], dict[str, int]] = {refuse: {}, odd_ids: {}}
    jobs[flood] = {"ids": 20_000 if context.short else 100_000}
    with ForkServer() as server:
        for job, arguments in jobs.items():
            folder = context.folder / "stores" / job.__name__
            child = server.run(job, folder=str(folder), **arguments)
            child.check_status(findings, f"{job.__name__}, after {child.lines[-1:]}")
            for line in child.lines:
                _judged(line, findings)
            files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
            odd = [name for name in files if not FILES.fullmatch(name)]
            findings.check("I11", not odd, f"{folder.name}: files that a store does not have: {odd}")
    outside = _outside(context.folder) - before
    findings.figures["files_outside"] = len(outside)
    findings.check("I11", not outside, f"files outside the store: {sorted(outside)[:5]}")


def _outside(folder: Path) -> set[str]:
    """The files that ids of ours could have become, if they became files."""
    around = {folder, folder.parent, Path.cwd(), Path("/"), Path("/tmp"), Path("/etc")}
    names = {name for ident in ACCEPTED_IDS for name in (ident, ident.rsplit("/", 1)[-1]) if name and "\0" not in name}
    found = {str(place / name) for place in around for name in names if len(os.fsencode(name)) < 256}
    beside = {str(path) for path in folder.iterdir() if path.name != "stores"}
    return beside | {path for path in found if os.path.lexists(path)}


def _judged(line: dict[str, Any], findings: Findings) -> None:
    if "refused" in line:
        name, refused, grown = line["input"], line["refused"], line["grown_mib"]
        findings.count("refused", bool(refused))
        findings.check("I7", bool(refused), f"{name}: accepted, {line['told']}")
        findings.check("I7", line["head"] == 0, f"{name}: something is stored")
        bound = CALLER_MIB_MAX if line["by_caller"] else PARTITION_MIB_MAX
        findings.check("I11", grown <= bound, f"{name}: it made the process grow by {grown} MiB, over {bound}")
        findings.figures["growth_mib_max"] = max(int(findings.figures["growth_mib_max"]), grown)
        if grown == findings.figures["growth_mib_max"]:
            findings.figures["growth_most_by"] = name
    if "streams" in line:
        findings.check("I3", line["streams"] == "each its own", line["streams"])
    if "flood" in line:
        findings.figures["flood_ids"] = line["flood"]
        findings.figures["flood_growth_mib"] = line["grown_mib"]
        findings.check("I7", line["head"] == 0 and line["refused_ids"] == line["flood"], f"a flood of ids: {line}")
        findings.check("I11", line["grown_mib"] <= FLOOD_MIB_MAX, f"a flood of ids: grown by {line['grown_mib']} MiB")
        findings.check("I11", line["residents"] == 0, f"a flood of ids: {line['residents']} aggregates in memory")


# --- in the child -----------------------------------------------------------------------------------------------------


def _loop(folder: str) -> tuple[WriteLoop, Callable[[], int]]:
    log = create_or_open_store(folder, 1).open_log(0)
    loop = WriteLoop(0, log, Catalogue([Box]))
    loop.activate()
    return loop, log.head


class _Memory:
    """How far this process grows: its peak is set back to what it has now."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        self._before = self._kib("VmRSS")

    @property
    def grown_mib(self) -> int:
        return max(0, self._kib("VmHWM") - self._before) >> 10

    @staticmethod
    def _kib(field: str) -> int:
        found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert found is not None
        return int(found[1])


def refuse(report: Any, *, folder: str) -> None:
    """A job: give every input, and report what came of it and what it cost."""
    loop, head = _loop(folder)
    for one in INPUTS:
        given = one.make()
        memory = _Memory()
        told, refused = "", True
        try:
            outcome = one.give(loop, given)
            told, refused = type(outcome).__name__, isinstance(outcome, RayfoldError)
        except (CallerError, ValidationError) as error:
            told = type(error).__name__
        grown_mib, by_caller = memory.grown_mib, one.give in (_packed, _id)
        report.send(input=one.name, refused=refused, told=told, grown_mib=grown_mib, by_caller=by_caller, head=head())
        del given


def odd_ids(report: Any, *, folder: str) -> None:
    """A job: one event for each odd id, then check that each has its own."""
    loop, _ = _loop(folder)
    commands = [pack(Envelope(Box, ident, Keep(value=number)))[0] for number, ident in enumerate(ACCEPTED_IDS)]
    outcomes: list[Outcome] = [loop.execute([command]).outcomes[0] for command in commands]
    versions = [one.version if isinstance(one, Receipt) else str(one) for one in outcomes]
    loop.residents.forget_all()
    values = [loop.residents.load(command.stream).value for command in commands]  # type: ignore[attr-defined]
    own = versions == [1] * len(commands) and values == list(range(len(commands)))
    report.send(streams="each its own" if own else f"versions {versions}, values {values}")


def flood(report: Any, *, folder: str, ids: int) -> None:
    """A job: a command to each of very many aggregates that are not there."""
    loop, head = _loop(folder)
    memory = _Memory()
    refused = 0
    for batch in _strangers(ids):
        refused += sum(isinstance(one, RayfoldError) for one in loop.execute(batch).outcomes)
    facts = {"flood": ids, "refused_ids": refused, "head": head(), "residents": len(loop.residents)}
    report.send(grown_mib=memory.grown_mib, **facts)


def _strangers(ids: int) -> Iterator[list[PackedCommand]]:
    template = pack(Envelope(Box, "x", Need()))[0]
    for first in range(0, ids, FLOOD_BATCH):
        yield [
            template._replace(command_id=number.to_bytes(16, "big"), stream=StreamId("Box", f"stranger-{number}"))
            for number in range(first, first + FLOOD_BATCH)
        ]
