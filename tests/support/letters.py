"""Letters, whose effect nothing can look up: what became of a mail is not known."""

from __future__ import annotations

import asyncio
import os

from rayfold import Aggregate, Backoff, Call, Command, Done, Effects, Event, Shared, decide, effect, evolve
from rayfold.benchmarks.torture.outside import note


class Mailed(Event):
    """A mail is to be sent."""

    bank: str
    how: str


class Mail(Command):
    """Send a mail."""

    bank: str
    how: str = "ok"


class Letter(Aggregate, placement=Shared()):
    """What is mailed."""

    count: int = 0

    @decide
    def mail(self, command: Mail) -> Mailed:
        """Ask for it."""
        return Mailed(bank=command.bank, how=command.how)

    @evolve
    def mailed(self, event: Mailed) -> None:
        """One more."""
        self.count += 1


class Mailing(Effects):
    """Nothing can look up what became of a mail."""

    @effect(timeout_s=1, retry=Backoff(first_s=0.1))
    async def mail(self, event: Mailed, call: Call) -> Done:
        """`raise`: its end is unknown."""
        note(event.bank, "mail", call.key, call.recorded.aggregate_id, call.attempt)
        if event.how == "raise":
            raise ConnectionResetError("reset")
        return Done(note="sent")


class Posting(Effects):
    """The same, where a second mail under one key is taken for the first."""

    @effect(timeout_s=10, retry=Backoff(first_s=0.5), repeatable=True)
    async def post(self, event: Mailed, call: Call) -> Done:
        """`exit`: ends the process, each time."""
        note(event.bank, "post", call.key, call.recorded.aggregate_id, call.attempt)
        if event.how == "exit":
            os._exit(7)
        await asyncio.sleep(0.2)
        note(event.bank, "posted", call.key, call.recorded.aggregate_id)
        return Done()
