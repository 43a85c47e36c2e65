"""The bank of the README: one command, one event, one query. `python examples/bank.py`."""

from rayfold import (
    Aggregate,
    BlockingRuntime,
    Command,
    Event,
    Projection,
    Query,
    Recorded,
    answer,
    decide,
    evolve,
    project,
)


class Deposit(Command):
    amount: int


class Deposited(Event):
    amount: int


class Account(Aggregate):
    balance: int = 0

    @decide
    def deposit(self, command: Deposit) -> Deposited:
        return Deposited(amount=command.amount)

    @evolve
    def deposited(self, event: Deposited) -> None:
        self.balance += event.amount


class BalanceOf(Query[int]):
    account: str


class Balances(Projection):
    balances: dict[str, int] = {}

    @project
    def deposited(self, event: Deposited, recorded: Recorded) -> None:
        self.balances[recorded.aggregate_id] = self.balances.get(recorded.aggregate_id, 0) + event.amount

    @answer
    def balance(self, query: BalanceOf) -> int:
        return self.balances.get(query.account, 0)


if __name__ == "__main__":
    with BlockingRuntime("bank-data", aggregates=[Account], projections=[Balances]) as bank:
        receipt = bank.execute(Account, "alice", Deposit(amount=100))
        print(bank.ask(Balances, BalanceOf(account="alice"), after=receipt))
