"""A parcel service, as one would really write it: rules, creation, versions of events, errors, many commands at once.

`python examples/parcels.py` runs it in a temporary directory. Its tests stand at the end: rules in
`given(...).when(...).then(...)`, and all of it in the memory of the test. They need no Ray and no disk.
"""

import asyncio
import tempfile
from collections.abc import Iterator
from datetime import timedelta

from pydantic import Field

from rayfold import (
    Aggregate,
    Command,
    Conflict,
    Envelope,
    Event,
    Payload,
    Projection,
    Query,
    Receipt,
    Recorded,
    Rejected,
    Runtime,
    Shared,
    Unavailable,
    answer,
    decide,
    derived_id,
    evolve,
    given,
    project,
    upcast,
)
from rayfold.testing import system


class Register(Command):
    """A parcel is announced."""

    to: str = Field(min_length=1, max_length=200)
    weight_g: int = Field(gt=0, le=30_000)


class Scan(Command):
    """A parcel passes a depot."""

    depot: str


class Deliver(Command):
    """A parcel is handed over."""

    signed_by: str


class Registered(Event, version=2):
    """Version 1 had the weight in kilograms, as a float. Stored events are upcast when they are read."""

    to: str
    weight_g: int

    @staticmethod
    @upcast(from_version=1)
    def in_grams(old: Payload) -> Payload:
        """The fields of version 1 as those of version 2."""
        return {"to": old["to"], "weight_g": round(old["weight_kg"] * 1000)}


class Scanned(Event):
    """It was seen at a depot."""

    depot: str


class Delivered(Event):
    """It was handed over."""

    signed_by: str


class Parcel(Aggregate, placement=Shared()):
    """Many and light, so they share their partition's actor. Only `Register` may create one."""

    depot: str = ""
    delivered: bool = False

    @decide(creates=True)
    def register(self, command: Register) -> Registered | Rejected:
        """Once."""
        if self.version:
            return Rejected("already_registered")
        return Registered(to=command.to, weight_g=command.weight_g)

    @decide
    def scan(self, command: Scan) -> Scanned | Rejected | None:
        """Two scans at one depot are one; a delivered parcel is not scanned."""
        if self.delivered:
            return Rejected("already_delivered", depot=command.depot)
        return None if command.depot == self.depot else Scanned(depot=command.depot)

    @decide
    def deliver(self, command: Deliver) -> Iterator[Scanned | Delivered]:
        """From wherever it is: one that was never scanned is scanned at the door, in the same transaction."""
        if self.delivered:
            raise Rejected("already_delivered")
        if not self.depot:
            yield Scanned(depot="door")
        yield Delivered(signed_by=command.signed_by)

    @evolve
    def registered(self, event: Registered) -> None:
        """Nothing that a rule needs."""

    @evolve
    def scanned(self, event: Scanned) -> None:
        """Where it is."""
        self.depot = event.depot

    @evolve
    def was_delivered(self, event: Delivered) -> None:
        """For good."""
        self.delivered = True


class Waiting(Query[list[str]]):
    """The parcels at a depot, in the order of their ids."""

    depot: str


class Depots(Projection):
    """Which parcels are where."""

    parcels: dict[str, str] = {}

    @project
    def scanned(self, event: Scanned, recorded: Recorded) -> None:
        """It moved."""
        self.parcels[recorded.aggregate_id] = event.depot

    @project
    def delivered(self, event: Delivered, recorded: Recorded) -> None:
        """It is gone."""
        del self.parcels[recorded.aggregate_id]

    @answer
    def waiting(self, query: Waiting) -> list[str]:
        """All of them."""
        return sorted(parcel for parcel, depot in self.parcels.items() if depot == query.depot)


async def main(directory: str) -> None:
    """Some parcels on their way."""
    async with Runtime(directory, aggregates=[Parcel], projections=[Depots], replicas=2) as service:
        # Many at once: batches form by themselves, and outcomes are values.
        new = (Envelope(Parcel, f"p{number}", Register(to="Bern", weight_g=500)) for number in range(1000))
        registered = [outcome async for _, outcome in service.execute_all(new)]
        print(sum(isinstance(outcome, Receipt) for outcome in registered), "registered")

        # A rule refuses, with its reason.
        await service.execute(Parcel, "p7", Deliver(signed_by="Ada"))
        try:
            await service.execute(Parcel, "p7", Scan(depot="Basel"))
        except Rejected as rejected:
            print(rejected)

        # Another writer was faster.
        seen = await service.execute(Parcel, "p8", Scan(depot="Basel"))
        await service.execute(Parcel, "p8", Scan(depot="Olten"))
        try:
            await service.execute(Parcel, "p8", Deliver(signed_by="Bob"), expected_version=seen.version)
        except Conflict as conflict:
            print(conflict)

        # The id comes from the scanner's own number, so sending it again after a timeout is safe.
        scan, scan_id = Scan(depot="Basel"), derived_id("scanner 12", 4711)
        try:
            receipt = await service.execute(Parcel, "p9", scan, command_id=scan_id, timeout_s=5)
        except Unavailable:
            receipt = await service.execute(Parcel, "p9", scan, command_id=scan_id)
        again = await service.execute(Parcel, "p9", scan, command_id=scan_id)
        print("repeated:", again.repeated, "same position:", again.position == receipt.position)

        # Read your own write, on whichever replica answers.
        print(await service.ask(Depots, Waiting(depot="Basel"), after=receipt))


def test_a_parcel_is_delivered_once() -> None:
    """The rules of an aggregate."""
    given(Parcel, Registered(to="Bern", weight_g=500)).when(Deliver(signed_by="Ada")).then(
        Scanned(depot="door"), Delivered(signed_by="Ada")
    )
    given(Parcel, Scanned(depot="Basel"), Delivered(signed_by="Ada")).when(Deliver(signed_by="Bob")).rejected(
        "already_delivered"
    )
    given(Parcel, Scanned(depot="Basel")).when(Scan(depot="Basel")).then_nothing()


async def test_a_parcel_waits_where_it_was_scanned_last() -> None:
    """The whole service, in memory."""
    async with system(Parcel, Depots) as service:
        await service.execute(Parcel, "p1", Register(to="Bern", weight_g=500))
        await service.execute(Parcel, "p1", Scan(depot="Basel"))
        service.clock.advance(timedelta(hours=3))
        receipt = await service.execute(Parcel, "p1", Scan(depot="Olten"))
        assert await service.ask(Depots, Waiting(depot="Basel"), after=receipt) == []
        assert await service.ask(Depots, Waiting(depot="Olten")) == ["p1"]
        an_hour_ago = service.clock.now - timedelta(hours=1)
        assert await service.as_of(Depots, an_hour_ago, Waiting(depot="Basel")) == ["p1"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        asyncio.run(main(f"{temporary}/parcels"))
