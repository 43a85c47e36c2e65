"""Payments: an order has a card charged at a bank that this store does not hold.

`Charging` is the effects class: its call is begun in the log before it is made, and what it has come to is a command to
the order. Its rules are tested without a bank, at the end.
"""

import asyncio

from pydantic import Field

from rayfold import (
    Aggregate,
    Backoff,
    Call,
    Command,
    Declined,
    Done,
    Effects,
    Event,
    NotDone,
    Rejected,
    Send,
    Shared,
    Unknown,
    decide,
    effect,
    evolve,
    settle,
)
from rayfold.testing import system


class Buy(Command):
    card: str
    amount: int = Field(gt=0)


class Confirm(Command):
    charge: str


class Cancel(Command):
    reason: str


class ChargeRequested(Event):
    card: str
    amount: int


class Confirmed(Event):
    charge: str


class Cancelled(Event):
    reason: str


class Purchase(Aggregate, placement=Shared()):
    state: str = "new"

    @decide
    def buy(self, command: Buy) -> ChargeRequested | Rejected:
        if self.state != "new":
            return Rejected("already_bought", state=self.state)
        return ChargeRequested(card=command.card, amount=command.amount)

    @decide
    def confirm(self, command: Confirm) -> Confirmed:
        return Confirmed(charge=command.charge)

    @decide
    def cancel(self, command: Cancel) -> Cancelled:
        return Cancelled(reason=command.reason)

    @evolve
    def requested(self, event: ChargeRequested) -> None:
        self.state = "charging"

    @evolve
    def confirmed(self, event: Confirmed) -> None:
        self.state = "paid"

    @evolve
    def cancelled(self, event: Cancelled) -> None:
        self.state = "cancelled"


class Bank:
    """Stands for the client of a bank: a charge is made once for each key."""

    def __init__(self) -> None:
        self.charges: dict[str, tuple[str, int]] = {}

    async def charge(self, key: str, card: str, amount: int) -> str:
        await asyncio.sleep(0)
        if card == "expired":
            raise PermissionError("the card has expired")
        self.charges[key] = card, amount
        return key[:8]

    async def find(self, key: str) -> str | None:
        await asyncio.sleep(0)
        return key[:8] if key in self.charges else None


bank = Bank()


class Charging(Effects):
    """Charges cards, those of one card one after the other."""

    @effect(retry=Backoff(first_s=2), timeout_s=10, at_once=8, order_by=lambda event: str(event.card))
    async def charge(self, event: ChargeRequested, call: Call) -> Send | Declined | NotDone:
        order = call.recorded.aggregate_id
        try:
            charge = await bank.charge(call.key, event.card, event.amount)
        except PermissionError as error:
            return Declined(str(error), Send(Purchase, order, Cancel(reason=str(error))))
        except ConnectionRefusedError as error:  # nothing has reached the bank
            return NotDone(str(error))
        return Send(Purchase, order, Confirm(charge=charge))

    @settle(charge)
    async def look(self, event: ChargeRequested, call: Call) -> Send | NotDone | Unknown:
        charge = await bank.find(call.key)
        if charge is None:
            return NotDone("the bank has no such charge")
        return Send(Purchase, call.recorded.aggregate_id, Confirm(charge=charge))


async def main() -> None:
    """Buy twice in a system in memory, where a fake stands for the bank."""

    def charged(event: ChargeRequested, call: Call) -> Done | Declined:
        order = call.recorded.aggregate_id
        if event.card == "expired":
            return Declined("expired", Send(Purchase, order, Cancel(reason="expired")))
        return Done(Send(Purchase, order, Confirm(charge=call.key[:8])))

    async with system(Purchase, Charging, fakes={Charging.charge: charged, Charging.look: None}) as shop:
        await shop.execute(Purchase, "1", Buy(card="ada", amount=5))
        await shop.execute(Purchase, "2", Buy(card="expired", amount=5))
        print((await shop.state_at(Purchase, "1")).state, (await shop.state_at(Purchase, "2")).state)


if __name__ == "__main__":
    asyncio.run(main())
