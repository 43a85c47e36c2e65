"""SmallBank: six kinds of transactions over customers with a savings and a checking account.

After Alomari, Cahill, Fekete, Röhm, 2008, in the mix of H-Store: 15 % amalgamate, 15 % balance, 15 % deposit, 25 % send
a payment, 15 % change savings, 15 % write a check. One aggregate is one customer with both accounts, so what concerns
one customer is one command:

=============== =====================================================================================
balance         a query
deposit         `DepositChecking`
change savings  `ChangeSavings`, refused if savings would fall below zero
write a check   `WriteCheck`, with a penalty of 1 if it overdraws
send a payment  `Send` to the payer, then `Receive` to the payee
amalgamate      `SendAll` to the first, a query for how much that was, then `Receive` to the second
=============== =====================================================================================

**What is not atomic.** The last two concern two customers. SmallBank's transactions take both accounts in one step;
here the money leaves the first, is in transit, and arrives at the second with a command of its own. In between another
program may see it at neither. It cannot get lost or arrive twice: `Sent` is stored, and the id of `Receive` is derived
from the transfer, so it takes effect at most once however often it is sent. If the sender of commands ends in between,
the money stays in transit until a program sends `Receive`; a process manager would do that.

The oracle: money is conserved. The sum of all accounts and of what is in transit is the sum at first, plus what came
in, minus what went out.
"""

from __future__ import annotations

import random
from typing import Final, NamedTuple

from pydantic import PositiveInt

from rayfold import (
    Aggregate,
    Command,
    Event,
    Projection,
    Query,
    Recorded,
    Rejected,
    Shared,
    answer,
    decide,
    evolve,
    project,
)

MIX: Final = {
    "amalgamate": 15,
    "balance": 15,
    "deposit": 15,
    "send payment": 25,
    "change savings": 15,
    "write check": 15,
}
"""Percent of each kind."""

PENALTY: Final = 1
"""For a check that overdraws."""


class Open(Command):
    """Become a customer, with money."""

    savings: int
    checking: int


class DepositChecking(Command):
    """Put money into checking."""

    amount: PositiveInt


class ChangeSavings(Command):
    """Put money into savings, or take some out."""

    amount: int


class WriteCheck(Command):
    """Pay from checking, into the red if need be."""

    amount: PositiveInt


class Send(Command):
    """Send money from checking to another customer."""

    transfer: str
    amount: PositiveInt


class SendAll(Command):
    """Send all there is to another customer."""

    transfer: str


class Receive(Command):
    """Take in what another customer has sent."""

    transfer: str
    amount: int


class Opened(Event):
    """A customer came."""

    savings: int
    checking: int


class CheckingDeposited(Event):
    """Money came into checking."""

    amount: int


class SavingsChanged(Event):
    """Money came into savings, or left them."""

    amount: int


class CheckPaid(Event):
    """A check was paid, with its penalty if there was one."""

    amount: int
    penalty: int


class Sent(Event):
    """Money left for another customer: from now on it is in transit."""

    transfer: str
    savings: int
    checking: int


class Received(Event):
    """Money from another customer arrived."""

    transfer: str
    amount: int


class Customer(Aggregate, placement=Shared()):
    """One customer's two accounts."""

    savings: int = 0
    checking: int = 0

    @decide(creates=True)
    def open(self, command: Open) -> Opened | Rejected:
        """Once."""
        if self.version:
            return Rejected("open_already")
        return Opened(savings=command.savings, checking=command.checking)

    @decide
    def deposit(self, command: DepositChecking) -> CheckingDeposited:
        return CheckingDeposited(amount=command.amount)

    @decide
    def change_savings(self, command: ChangeSavings) -> SavingsChanged | Rejected:
        """Never below zero."""
        if self.savings + command.amount < 0:
            return Rejected("insufficient_savings", savings=self.savings)
        return SavingsChanged(amount=command.amount)

    @decide
    def write_check(self, command: WriteCheck) -> CheckPaid:
        """Paid in any case; overdrawing both accounts together has a price."""
        overdraws = self.savings + self.checking < command.amount
        return CheckPaid(amount=command.amount, penalty=PENALTY if overdraws else 0)

    @decide
    def send(self, command: Send) -> Sent | Rejected:
        """Only what is in checking."""
        if self.checking < command.amount:
            return Rejected("insufficient_checking", checking=self.checking)
        return Sent(transfer=command.transfer, savings=0, checking=command.amount)

    @decide
    def send_all(self, command: SendAll) -> Sent:
        """Both accounts are empty afterwards; checking in the red takes its share with it."""
        return Sent(transfer=command.transfer, savings=self.savings, checking=self.checking)

    @decide
    def receive(self, command: Receive) -> Received:
        return Received(transfer=command.transfer, amount=command.amount)

    @evolve
    def opened(self, event: Opened) -> None:
        """With what was brought."""
        self.savings, self.checking = event.savings, event.checking

    @evolve
    def checking_deposited(self, event: CheckingDeposited) -> None:
        self.checking += event.amount

    @evolve
    def savings_changed(self, event: SavingsChanged) -> None:
        self.savings += event.amount

    @evolve
    def check_paid(self, event: CheckPaid) -> None:
        self.checking -= event.amount + event.penalty

    @evolve
    def sent(self, event: Sent) -> None:
        self.savings -= event.savings
        self.checking -= event.checking

    @evolve
    def received(self, event: Received) -> None:
        self.checking += event.amount


class CustomerBalance(Query[int]):
    """Both accounts of one customer together."""

    customer: str


class Transit(Query[int]):
    """How much one transfer has in transit."""

    transfer: str


class Total(Query[dict[str, int]]):
    """All accounts, all that is in transit, and all penalties that were taken."""


class Ledger(Projection):
    """What every customer has, and what is between two of them."""

    balances: dict[str, int] = {}
    transit: dict[str, int] = {}
    """Transfer -> what left and has not arrived. In two partitions the arrival may be seen first: then it is
    negative for a moment."""
    penalties: int = 0

    @project
    def opened(self, event: Opened, recorded: Recorded) -> None:
        """A balance to begin with."""
        self._add(recorded, event.savings + event.checking)

    @project
    def checking_deposited(self, event: CheckingDeposited, recorded: Recorded) -> None:
        self._add(recorded, event.amount)

    @project
    def savings_changed(self, event: SavingsChanged, recorded: Recorded) -> None:
        self._add(recorded, event.amount)

    @project
    def check_paid(self, event: CheckPaid, recorded: Recorded) -> None:
        self._add(recorded, -event.amount - event.penalty)
        self.penalties += event.penalty

    @project
    def sent(self, event: Sent, recorded: Recorded) -> None:
        """Less here, more in transit."""
        self._add(recorded, -event.savings - event.checking)
        self._move(event.transfer, event.savings + event.checking)

    @project
    def received(self, event: Received, recorded: Recorded) -> None:
        """More here, less in transit."""
        self._add(recorded, event.amount)
        self._move(event.transfer, -event.amount)

    def _add(self, recorded: Recorded, amount: int) -> None:
        customer = recorded.stream.id
        self.balances[customer] = self.balances.get(customer, 0) + amount

    def _move(self, transfer: str, amount: int) -> None:
        left = self.transit.get(transfer, 0) + amount
        if left:
            self.transit[transfer] = left
        else:
            self.transit.pop(transfer, None)

    @answer
    def balance(self, query: CustomerBalance) -> int:
        """Nothing, for a customer that does not exist."""
        return self.balances.get(query.customer, 0)

    @answer
    def in_transit(self, query: Transit) -> int:
        """Nothing, once it has arrived."""
        return self.transit.get(query.transfer, 0)

    @answer
    def total(self, query: Total) -> dict[str, int]:
        return {
            "accounts": sum(self.balances.values()),
            "transit": sum(self.transit.values()),
            "penalties": self.penalties,
        }


class Transaction(NamedTuple):
    """One transaction of the mix."""

    number: int
    kind: str
    customer: str
    other: str
    """The second customer, where there is one."""
    amount: int


def drawn(seed: int, customers: list[str], count: int) -> list[Transaction]:
    """So many transactions of the mix."""
    chosen = random.Random(f"smallbank/{seed}")
    kinds = chosen.choices(list(MIX), list(MIX.values()), k=count)
    transactions = []
    for number, kind in enumerate(kinds):
        customer, other = chosen.sample(customers, 2)
        amount = chosen.randint(-50, 50) if kind == "change savings" else chosen.randint(1, 50)
        transactions.append(Transaction(number, kind, customer, other, amount or 1))
    return transactions
