"""Wrong arguments of what a runtime can do: each is refused by us, by name, and nothing is sent.

One system in memory for all tests of this file, whose arguments are checked by the code that checks a runtime's. What
needs none is in `tests/runtime/test_arguments.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import date
from functools import partial
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import field_validator

from rayfold import (
    Aggregate,
    Application,
    BlockingRuntime,
    CallerError,
    Command,
    DefinitionError,
    Envelope,
    Event,
    HandlerFailed,
    InvalidId,
    InvalidMessage,
    LocalCluster,
    Projection,
    Query,
    Receipt,
    Settings,
    Shared,
    StorageFailed,
    StreamId,
    Unavailable,
    UnknownName,
    answer,
    connect,
    decide,
    evolve,
    project,
)
from rayfold.testing import system_blocking
from tests.bank import Account, BalanceOf, Balances, Deposit, Deposited, Open, Vault

DEPOSIT = Deposit(amount=1)
QUERY = BalanceOf(account="alice")
RAISES = Account("alice")


@pytest.fixture(scope="module")
def bank() -> Iterator[Any]:
    """A system, as a program without a type checker sees it."""
    with system_blocking(Account, Vault, Balances) as running:
        running.execute(Account, "alice", Open(owner="Ada"))
        yield running


def refused(kind: type[Exception], text: str, call: Callable[..., Any], *arguments: Any) -> None:
    """The call raises just this kind of error, with this in its sentence; a generator does when it is used."""
    with pytest.raises(CallerError) as caught:  # noqa: PT012 - a generator
        answered = call(*arguments)
        if hasattr(answered, "__next__"):
            list(answered)
    assert type(caught.value) is kind
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"until": True}, InvalidMessage, "until: True is not a list; give a Projection class, or a list of them"),
        ({"until": False}, InvalidMessage, "until: False is not a list"),
        ({"until": 1}, InvalidMessage, "until: 1 is not a list"),
        ({"until": "Balances"}, InvalidMessage, "until: 'Balances' is not a list"),
        ({"until": ["Balances"]}, InvalidMessage, "projection: 'Balances' is not a class; give the class itself"),
        ({"until": [None]}, InvalidMessage, "projection: None is not a class"),
        ({"until": Account}, UnknownName, "no projection is named 'Account'; known: Balances"),
        ({"decisive": "no"}, InvalidMessage, "decisive: is 'no'; give True or False"),
        ({"decisive": None}, InvalidMessage, "decisive: is None; give True or False"),
        ({"decisive": 1}, InvalidMessage, "decisive: is 1; give True or False"),
        ({"timeout_s": "1"}, CallerError, "timeout_s is '1'; give a positive number of seconds"),
        ({"timeout_s": True}, CallerError, "timeout_s is True"),
        ({"timeout_s": -(10**400)}, CallerError, "timeout_s is -1000"),
        ({"expected_version": True}, InvalidMessage, "expected_version: True is not a version"),
        ({"command_id": "7"}, InvalidId, "command id '7' is str, not uuid.UUID"),
    ],
)
def test_a_wrong_option_of_a_command_is_refused(
    bank: Any, options: dict[str, Any], kind: type[Exception], text: str
) -> None:
    before = bank.heads()
    refused(kind, text, lambda: bank.execute(Account, "alice", DEPOSIT, **options))
    if "until" in options or "timeout_s" in options:
        refused(kind, text, lambda: bank.session().execute(Account, "alice", DEPOSIT, **options))
    assert bank.heads() == before


def test_a_timeout_of_more_seconds_than_a_float_has_is_as_long_as_it_takes(bank: Any) -> None:
    assert isinstance(bank.execute(Account, "alice", DEPOSIT, timeout_s=10**400), Receipt)


@pytest.mark.parametrize(
    ("aggregate", "id", "command", "kind", "text"),
    [
        (None, "alice", DEPOSIT, InvalidMessage, "aggregate: None is not a class; give the class itself"),
        ("Account", "alice", DEPOSIT, InvalidMessage, "aggregate: 'Account' is not a class"),
        (RAISES, "alice", DEPOSIT, InvalidMessage, "aggregate: Account(id='alice'"),
        (Balances, "alice", DEPOSIT, UnknownName, "no aggregate is named 'Balances'; known: Account, Vault"),
        (Account, 5, DEPOSIT, InvalidId, "aggregate id '5' is int, not str"),
        (Account, "alice", None, InvalidMessage, "NoneType: is not a Command; give an instance of a Command class"),
        (Account, "alice", {"amount": 1}, InvalidMessage, "dict: is not a Command; give an instance of a Command"),
        (Account, "alice", QUERY, InvalidMessage, "BalanceOf: is not a Command: it is a Query; queries are for ask("),
        (Account, "alice", Deposit, InvalidMessage, "Deposit: is a class and no Command; make one of it: Deposit(...)"),
    ],
)
def test_what_is_no_address_or_command_is_refused_alone_and_among_many(
    bank: Any, aggregate: Any, id: Any, command: Any, kind: type[Exception], text: str
) -> None:
    refused(kind, text, lambda: bank.execute(aggregate, id, command))
    good = Envelope(Account, "alice", DEPOSIT)
    outcomes = [outcome for _, outcome in bank.execute_all([good, Envelope(aggregate, id, command), good])]
    assert [type(outcome) for outcome in outcomes] == [Receipt, kind, Receipt]
    assert text in str(outcomes[1])


class Broken(Event):
    pass


class Fragile(Command):
    text: str = ""

    @field_validator("text")
    @classmethod
    def look(cls, text: str) -> str:
        return text if text != "broken" else FRAGILE.popleft()


class FragileQuery(Query[int]):
    text: str = ""

    @field_validator("text")
    @classmethod
    def look(cls, text: str) -> str:
        return text if text != "broken" else FRAGILE.popleft()


FRAGILE: deque[str] = deque()
"""What the validators of these classes take from, and fail where there is nothing."""


class Vase(Aggregate, placement=Shared()):
    @decide
    def fragile(self, command: Fragile) -> Broken:
        return Broken()

    @evolve
    def broken(self, event: Broken) -> None:
        pass


class Shards(Projection):
    @project
    def broken(self, event: Broken) -> None:
        pass

    @answer
    def count(self, query: FragileQuery) -> int:
        return 1


def test_a_message_whose_own_code_fails_when_it_is_packed_is_one_outcome_among_many() -> None:
    with system_blocking(Vase, Shards) as running:
        commands = [Fragile(), Fragile.model_construct({"text"}, text="broken"), Fragile()]
        queries = [FragileQuery(), FragileQuery.model_construct({"text"}, text="broken"), FragileQuery()]
        told = list(running.execute_all([Envelope(Vase, "ming", command) for command in commands]))
        answers = list(running.ask_all(Shards, queries))
    assert [type(outcome) for _, outcome in told] == [Receipt, HandlerFailed, Receipt]
    assert [answer if isinstance(answer, int) else type(answer) for _, answer in answers] == [1, HandlerFailed, 1]
    assert "the code of Fragile failed on a message: IndexError: pop from an empty deque" in str(told[1][1])


@pytest.mark.parametrize("wrong", [(Account, "alice", DEPOSIT), None, DEPOSIT, "Account/alice"])
def test_what_stands_in_place_of_an_envelope_is_an_outcome_of_its_own(bank: Any, wrong: Any) -> None:
    good = Envelope(Account, "alice", DEPOSIT)
    for source in ([good, wrong, good], iter([good, wrong, good])):
        outcomes = [outcome for _, outcome in bank.execute_all(source)]
        assert [type(outcome) for outcome in outcomes] == [Receipt, InvalidMessage, Receipt]
        told = f"execute_all: a {type(wrong).__name__} is not an Envelope; give an Envelope(aggregate, id, command)"
        assert told in str(outcomes[1])


@pytest.mark.parametrize("source", [None, 5, "Account/alice", Envelope(Account, "alice", DEPOSIT), Account])
def test_commands_that_are_no_list_are_refused(bank: Any, source: Any) -> None:
    refused(InvalidMessage, "is not a list; give a list, each item of it an Envelope", lambda: bank.execute_all(source))


@pytest.mark.parametrize("source", [None, QUERY, BalanceOf, "alice"])
def test_queries_that_are_no_list_are_refused(bank: Any, source: Any) -> None:
    told = "is not a list; give a list, each item of it a Query"
    refused(InvalidMessage, told, lambda: bank.ask_all(Balances, source))


@pytest.mark.parametrize("options", [{"timeout_s": "x"}, {"timeout_s": 0}, {"timeout_s": float("nan")}])
def test_a_wrong_timeout_of_many_is_refused_once(bank: Any, options: dict[str, Any]) -> None:
    envelopes = [Envelope(Account, "alice", DEPOSIT)]
    refused(CallerError, "give a positive number of seconds", lambda: bank.execute_all(envelopes, **options))
    refused(CallerError, "give a positive number of seconds", lambda: bank.ask_all(Balances, [QUERY], **options))


@pytest.mark.parametrize("after", [True, {True: 1}, "token", [None], {0: True}, {0: 2**70}])
def test_what_is_no_place_is_refused(bank: Any, after: Any) -> None:
    refused(InvalidMessage, "after: ", lambda: bank.ask(Balances, QUERY, after=after))
    refused(InvalidMessage, "after: ", lambda: bank.session().join(after))


@pytest.mark.parametrize("projection", ["Balances", None, 5, Account, Balances()])
def test_what_is_no_projection_is_refused_by_everything_that_takes_one(bank: Any, projection: Any) -> None:
    calls: dict[str, Callable[[], Any]] = {
        "replica": lambda: bank.replica(projection),
        "scale": lambda: bank.scale(projection, replicas=1),
        "rebuild": lambda: bank.rebuild(projection),
        "rebuild_stream": lambda: bank.rebuild_stream(projection, Account, "alice"),
        "retry_quarantined": lambda: bank.retry_quarantined(projection),
        "as_of": lambda: bank.as_of(projection, {}, QUERY),
    }
    for name, call in calls.items():
        refused(InvalidMessage, f"{name}: ", call)
    for call in (lambda: bank.ask(projection, QUERY), lambda: bank.caught_up(projection)):
        with pytest.raises(CallerError):
            call()


def test_a_query_that_is_none_is_refused_by_everything_that_takes_one(bank: Any) -> None:
    told = {
        DEPOSIT: "Deposit: is not a Query: it is a Command; commands are for execute(",
        None: "NoneType: is not a Query",
        BalanceOf: "BalanceOf: is a class and no Query; make one of it",
    }
    with bank.replica(Balances) as replica:
        for query, text in told.items():
            refused(InvalidMessage, text, bank.ask, Balances, query)
            refused(InvalidMessage, text, bank.as_of, Balances, {}, query)
            refused(InvalidMessage, text, replica.ask, query)
            refused(InvalidMessage, text, bank.session().ask, Balances, query)


@pytest.mark.parametrize("timeout_s", ["x", True, 0, -1, None, float("nan")])
def test_a_replica_refuses_a_wrong_timeout_also_where_it_need_not_wait(bank: Any, timeout_s: Any) -> None:
    with bank.replica(Balances) as replica:
        refused(CallerError, "timeout_s is", lambda: replica.ask(QUERY, after={}, timeout_s=timeout_s))
        refused(CallerError, "timeout_s is", lambda: replica.wait_for({}, timeout_s))


def test_other_wrong_arguments_are_refused(bank: Any) -> None:
    refused(InvalidMessage, "ask_replica: None is not a Replica", lambda: bank.session().ask_replica(None, QUERY))
    refused(InvalidMessage, "progress: is 5; give a function", lambda: bank.as_of(Balances, {}, QUERY, progress=5))
    refused(InvalidMessage, "place: True: 1 is not a position", lambda: bank.as_of(Balances, {True: 1}, QUERY))
    refused(InvalidMessage, "is not a place", lambda: bank.as_of(Balances, date(2013, 1, 1), QUERY))
    told = "rebuild_stream: None is not a subclass of Aggregate"
    refused(InvalidMessage, told, lambda: bank.rebuild_stream(Balances, None, "a"))
    refused(InvalidMessage, "aggregate: None is not a class", lambda: bank.history(None, "alice"))
    refused(InvalidMessage, "aggregate: 'Account' is not a class", lambda: bank.state_at("Account", "alice"))
    for timeout_s in ("x", True, 0):
        refused(CallerError, "timeout_s is", bank.health, timeout_s)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"types": True}, "types: True is not a list"),
        ({"types": []}, "types: is empty, so that no event would ever match; leave it out for all events"),
        ({"types": [5]}, "types: 5 is not a type of event; give event classes, or names of events"),
        ({"types": Deposited(amount=1)}, "types: Deposited(amount=1, currency='EUR') is not a list"),
        ({"types": [Deposited(amount=1)]}, "types: Deposited(amount=1, currency='EUR') is not a type of event"),
        ({"types": object}, "no event is named 'object'"),
        ({"streams": True}, "streams: True is not a list"),
        ({"streams": RAISES}, "streams: Account(id='alice'"),
        ({"streams": []}, "streams: is empty"),
        ({"member": False}, "a member of a group needs the group's name"),
        ({"of": True}, "a member of a group needs the group's name"),
        ({"name": "mailer", "member": 0, "of": 2, "key": 5}, "key: is 5; give a function"),
    ],
)
def test_a_wrong_option_of_a_subscription_is_refused(bank: Any, options: dict[str, Any], text: str) -> None:
    with pytest.raises(CallerError) as caught:
        bank.subscribe(**options)
    assert text in str(caught.value)


def test_a_subscription_takes_one_stream_id_as_it_takes_one_text(bank: Any) -> None:
    first = {}
    for streams in (StreamId("Account", "alice"), "Account/alice"):
        with bank.subscribe(streams=streams) as events:
            first[streams] = next(events)
    assert len({recorded for _, recorded in first.values()}) == 1


def test_what_is_acknowledged_has_to_be_the_place_of_an_event(bank: Any) -> None:
    with closing(bank.subscribe("acknowledging")) as events:
        for wrong in (5, True, "x", (1, 2), Deposited(amount=1)):
            refused(InvalidMessage, "acknowledge: ", events.acknowledge, wrong)
        events.acknowledge(next(events)[1])


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        (
            {"aggregates": Account},
            DefinitionError,
            "aggregates=: Account is not a list of classes; give aggregates=[...]",
        ),
        ({"aggregates": 5}, DefinitionError, "aggregates=: 5 is not a list of classes"),
        ({"projections": Balances}, DefinitionError, "projections=: Balances is not a list of classes"),
        ({"events": Deposited}, DefinitionError, "events=: Deposited is not a list of classes"),
        ({"partitions": "2"}, InvalidMessage, "Runtime: partitions is '2'; give 1 to 1,024"),
        ({"partitions": True}, InvalidMessage, "Runtime: partitions is True"),
        ({"partitions": 0}, InvalidMessage, "Runtime: partitions is 0"),
        ({"replicas": "1"}, InvalidMessage, "replicas: is '1'"),
        ({"replicas": True}, InvalidMessage, "replicas: is True"),
        ({"replicas": 0}, InvalidMessage, "replicas: is 0"),
        ({"settings": {}}, InvalidMessage, "settings: {} is none; give a Settings(...)"),
        ({"settings": 5}, InvalidMessage, "settings: 5 is none"),
        ({"num_cpus": "2"}, InvalidMessage, "Runtime: num_cpus is '2'; give a number from 1"),
        ({"num_cpus": True}, InvalidMessage, "Runtime: num_cpus is True"),
        ({"cluster": 5}, InvalidMessage, "Runtime: cluster is 5; give a LocalCluster()"),
        ({"cluster": LocalCluster}, InvalidMessage, "Runtime: cluster is <class"),
        ({"timeout_s": float("nan")}, InvalidMessage, "Settings: timeout_s is nan; give a positive number"),
    ],
)
def test_a_wrong_option_of_a_runtime_is_refused_when_it_is_made(
    tmp_path: Path, options: dict[str, Any], kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind) as caught:
        BlockingRuntime(tmp_path / "bank-data", **({"aggregates": [Account]} | options))
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize("settings", [{}, [], 0, "", False])
def test_settings_that_are_none_are_refused_beside_an_application_too(tmp_path: Path, settings: Any) -> None:
    application = Application("bank", aggregates=[Account])
    makers: list[Callable[..., Any]] = [partial(BlockingRuntime, tmp_path / "bank-data"), system_blocking]
    for make in makers:
        with pytest.raises(InvalidMessage, match=r"^settings: .* is none; give a Settings"):
            make(application, settings=settings)


@pytest.mark.parametrize("path", [None, 5, "", "a\0b", b"bank-data", True])
def test_what_is_no_directory_is_refused_when_a_runtime_is_made(path: Any) -> None:
    with pytest.raises(InvalidMessage, match="Runtime: path is .*; give the directory of the store"):
        BlockingRuntime(path, aggregates=[Account])


def test_an_application_takes_classes_from_any_iterable() -> None:
    application: Any = Application
    made = application("bank", aggregates=iter([Account]), projections=(one for one in [Balances]))
    assert made.projections == (Balances,)
    assert list(made.catalogue.projections) == ["Balances"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"own_actors_max": 1.5}, "own_actors_max is 1.5; give a whole number"),
        ({"local_sockets": "no"}, "local_sockets is 'no'; give True or False"),
        ({"silent_s": float("nan")}, "silent_s is nan; give a positive number"),
    ],
)
def test_a_wrong_setting_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidMessage, match=text):
        Settings(**options)


@pytest.mark.parametrize("address", [None, 5, True])
def test_what_is_no_address_of_a_cluster_is_refused(address: Any) -> None:
    with pytest.raises(InvalidMessage, match='connect: address is .*; give "HOST:PORT" or "auto"'):
        connect("bank", address=address)


# --- Another class of the same name -----------------------------------------------------------------------------


class Lookalikes:
    """Classes with the names of those of `tests/bank.py`."""

    class Account(Aggregate):
        """Not the one that runs."""

    class Balances(Projection):
        """Not the one that runs."""

    class Deposit(Command):
        """Not the one that is decided."""

        amount: int

    class BalanceOf(Query[int]):
        """Not the one that is answered."""

        account: str


def test_another_class_of_a_known_name_is_told_from_it_by_its_place(bank: Any) -> None:
    here, there = f"{__name__}.Lookalikes", "tests.bank"

    def differs(kind: str, name: str) -> str:
        what = f"this '{name}' is not the {kind} that was registered, but another class of that name: it is"
        return f"{what} {here}.{name}, and {there}.{name} was registered; use that one, or restart the runtime"

    other = Lookalikes
    refused(UnknownName, differs("aggregate", "Account"), lambda: bank.execute(other.Account, "alice", DEPOSIT))
    refused(UnknownName, differs("aggregate", "Account"), lambda: bank.history(other.Account, "alice"))
    refused(UnknownName, differs("aggregate", "Account"), lambda: bank.subscribe(streams=other.Account))
    refused(UnknownName, differs("projection", "Balances"), lambda: bank.ask(other.Balances, QUERY))
    refused(
        UnknownName,
        differs("command of Account", "Deposit"),
        lambda: bank.execute(Account, "alice", other.Deposit(amount=1)),
    )

    class Answering(Projection, name="Balances"):
        """Not the one that runs, though it has an answer to the same query."""

        @answer
        def balance(self, query: BalanceOf) -> int:
            return -1

    answering = f"Answering, and {there}.Balances was registered; use that one, or restart the runtime with this one"
    refused(UnknownName, answering, lambda: bank.ask(Answering, QUERY))
    refused(UnknownName, answering, lambda: list(bank.ask_all(Answering, [QUERY])))
    asked = other.BalanceOf(account="alice")
    refused(UnknownName, differs("query of Balances", "BalanceOf"), lambda: bank.ask(Balances, asked))
    refused(UnknownName, differs("query of Balances", "BalanceOf"), lambda: bank.as_of(Balances, {}, asked))
    with bank.replica(Balances) as replica:
        refused(UnknownName, differs("query of Balances", "BalanceOf"), lambda: replica.ask(asked))


@pytest.mark.parametrize("application", [None, b"bank-data", "bank\0data", 5])
def test_what_is_no_application_to_connect_to_is_refused(application: Any) -> None:
    text = f"connect: application is {application!r}; give the directory of a store, the name of an application"
    refused(InvalidMessage, text, connect, application)


def test_a_folder_that_cannot_be_looked_at_is_reported_when_connecting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageFailed, match="cannot see whether a store is there: File name too long"):
        connect("bank" * 100)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for name in ("bank", Path("bank")):
        with pytest.raises(StorageFailed, match="No such file or directory; give its whole path, or go to a working"):
            connect(name)
    with pytest.raises(StorageFailed, match="the working directory is gone"):
        connect("bank", address="127.0.0.1:1")._made()


async def test_a_name_that_is_found_nowhere_is_also_reported_as_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(Unavailable) as told:
        await connect("bank-dta").start()
    assert f"And {tmp_path} has no folder 'bank-dta' with a store" in str(told.value)


# --- arguments for several ----------------------------------------------------------------------------------------


class Again:
    """Has no end, and is no iterator, so it is read on the event loop."""

    def __init__(self, item: Any) -> None:
        self._item = item

    def __iter__(self) -> Iterator[Any]:
        return repeat(self._item)


@pytest.mark.parametrize("endless", [repeat, Again])
def test_an_argument_for_several_that_has_no_end_is_refused_and_holds_nothing_up(
    bank: Any, endless: Callable[[Any], Any]
) -> None:
    receipt = bank.execute(Account, "alice", DEPOSIT)
    text = "has over 100,000 items; give fewer, in a list"
    refused(InvalidMessage, f"after: {text}", lambda: bank.ask(Balances, QUERY, after=endless(receipt)))
    refused(InvalidMessage, f"after: {text}", lambda: bank.session().join(endless(receipt)))
    until = endless(Balances)
    refused(InvalidMessage, f"until: {text}", lambda: bank.execute(Account, "alice", DEPOSIT, until=until))
    refused(InvalidMessage, f"types: {text}", lambda: bank.subscribe(types=endless(Deposited)))
    refused(InvalidMessage, f"streams: {text}", lambda: list(bank.events(streams=endless(Account))))


def test_receipts_are_taken_from_an_iterator_on_the_callers_thread_so_it_may_call_the_runtime(bank: Any) -> None:
    before = bank.ask(Balances, QUERY)
    receipts = (bank.execute(Account, "alice", DEPOSIT) for _ in range(3))
    assert bank.ask(Balances, QUERY, after=receipts) == before + 3
    session = bank.session()
    session.join(bank.execute(Account, "alice", DEPOSIT) for _ in range(3))
    assert session.ask(Balances, QUERY) == before + 6


def test_what_claims_to_have_positions_and_has_none_is_refused(bank: Any) -> None:
    claim = SimpleNamespace(positions=repeat((0, 1)))
    refused(InvalidMessage, "after: is SimpleNamespace", lambda: bank.ask(Balances, QUERY, after=claim))
