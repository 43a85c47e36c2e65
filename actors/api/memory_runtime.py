"""MemoryRuntime: a system in the memory of this process, for tests of applications: `rayfold.testing.system(...)`.

The entrance of the write path ([1]) and of the read path ([8]), as `runtime.py` is. What a program does with it is the
same code (`operations.py`); what is beneath it is `actors/memory/`.

Rules kept here: nothing of Ray or LMDB is imported, and nothing is written to a disk, but by a projection that asks for
such a store; what cannot be in memory is refused by name; the clock belongs to one system, and no runtime takes one.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypedDict, Unpack

from ...runtime.arguments import checked_class
from ...runtime.domain.aggregate import Aggregate
from ...runtime.domain.messages import Event
from ...runtime.domain.projection import Projection
from ...runtime.errors import CallerError, InvalidMessage
from ...runtime.processes.effects import Effects
from ...runtime.processes.process import Process
from ...runtime.store.memory_logs import MemoryLogs
from ..memory.clock import FIRST_TIME, Clock
from ..memory.couriers import Fake
from ..memory.projectors import Held
from ..memory.system import MemorySystem
from ..packaging.application import Application, application_here, check_partitions, checked_settings
from ..settings import Settings
from .blocking import BlockingOperations
from .operations import Operations
from .runtime import PARTITIONS_DEFAULT

__all__ = [
    "BlockingMemoryRuntime",
    "MemoryRuntime",
    "SystemOptions",
    "fixture",
    "fixture_blocking",
    "system",
    "system_blocking",
]

Classes = type[Aggregate] | type[Projection] | Application  # processes are aggregates too
"""What a system is made of."""

_SYSTEM: Final = "testing.system"

_NO_FAKES: Final[Mapping[Callable[..., Any], Fake | None]] = {}

Fakes = Mapping[str, Fake | None]
"""By the name of the function, with that of its class."""


class MemoryRuntime(Operations):
    """A system in the memory of this process. Made by `rayfold.testing.system`, started by `async with`; it has the
    operations of `Runtime`.

    Commands are decided, stored and read by the code of production, in the caller's process. A read model has taken in
    what was executed before, unless a test holds it back. What processes do about a command has happened when it is
    answered, up to their timers, which are fired while the clock is moved. Stopped and started again the system has its
    events: every state is folded from them then, as after a restart.

    Example:
        async with system(Account, Balances) as bank:
            receipt = await bank.execute(Account, "alice", Deposit(amount=100))
            assert await bank.ask(Balances, BalanceOf(account="alice"), after=receipt) == 100
    """

    def __init__(
        self, application: Application, partitions: int, settings: Settings, clock: Clock, fakes: Fakes
    ) -> None:
        """Use `system` to make one."""
        super().__init__("the system in memory is not running; use `async with`, or start() it")
        self._application, self._settings = application, settings
        self._clock, self._fakes = clock, fakes
        self._logs = MemoryLogs(partitions, clock.now_us)
        self._held: Held = {}

    @property
    def clock(self) -> Clock:
        """The time of its events, which stands still until a test moves it."""
        return self._clock

    @contextlib.contextmanager
    def holding_back(self, *projections: type[Projection]) -> Iterator[None]:
        """Have these projections, or all, take in no event while the `with` block runs, as if they were far behind: for
        tests of what a program does then. It holds for whatever serves them meanwhile: further replicas, a rebuild, the
        system when it was started again. Raises `UnknownName`.

        Example:
            with bank.holding_back(Balances):
                receipt = await bank.execute(Account, "alice", Deposit(amount=5))
                with pytest.raises(NotYetVisible):
                    await bank.ask(Balances, BalanceOf(account="alice"), after=receipt, timeout_s=0.01)
        """
        running = self._here
        assert isinstance(running, MemorySystem)
        for one in projections:
            checked_class("holding_back", one, Projection)
        names = running.hold_back(projections)
        try:
            yield
        finally:
            self._let_go(names)

    def _check_loop(self) -> None:
        """Raises `CallerError`, as for any runtime; a test meets it where its fixture runs on another loop."""
        try:
            super()._check_loop()
        except CallerError:
            raise CallerError(
                "this system in memory was started on another event loop than the one that this test runs on. Write "
                "the fixture with the plugin and the scope that run the test: @pytest_asyncio.fixture(loop_scope="
                "'module'), or @pytest.fixture for anyio, over `async def bank(): async with system(...) as running: "
                "yield running`"
            ) from None

    def _let_go(self, names: Sequence[str]) -> None:
        """End one block of `holding_back`, also where the system was stopped meanwhile."""
        for name in names:
            self._held[name].pop()
            if not self._held[name]:
                del self._held[name]
        if isinstance(self._running, MemorySystem):
            self._running.go_on()

    def _made(self) -> MemorySystem:
        if self._running is not None:
            raise CallerError("the system in memory is started already")
        application = self._application
        logs, clock, held = self._logs, self._clock, self._held
        return MemorySystem(application.catalogue, application.replicas, self._settings, logs, clock, held, self._fakes)


class BlockingMemoryRuntime(BlockingOperations):
    """A system in memory without `await`. Made by `rayfold.testing.system_blocking`, started by `with`; it has the
    operations of `BlockingRuntime`, and any thread may call it.

    Example:
        with system_blocking(Account, Balances) as bank:
            receipt = bank.execute(Account, "alice", Deposit(amount=100))
            assert bank.ask(Balances, BalanceOf(account="alice"), after=receipt) == 100
    """

    def __init__(self, runtime: MemoryRuntime) -> None:
        """Use `system_blocking` to make one."""
        super().__init__(runtime)
        self._memory = runtime

    @property
    def clock(self) -> Clock:
        """See `MemoryRuntime.clock`."""
        return self._memory.clock

    @contextlib.contextmanager
    def holding_back(self, *projections: type[Projection]) -> Iterator[None]:
        """See `MemoryRuntime.holding_back`."""
        held = self._here(lambda: self._memory.holding_back(*projections))
        self._here(held.__enter__)
        try:
            yield
        finally:
            ended = functools.partial(held.__exit__, None, None, None)
            if self._loop is None:  # it was stopped meanwhile
                ended()
            else:
                self._here(ended)


class SystemOptions(TypedDict, total=False):
    """The options of `system`, for functions of your own that hand them on.

    Example:
        def bank_system(**options: Unpack[SystemOptions]) -> MemoryRuntime:
            return system(bank_application, **options)
    """

    partitions: int
    replicas: int | Mapping[type[Projection], int]
    timeout_s: float
    settings: Settings
    events: Sequence[type[Event]]
    retired: Sequence[str]
    processes: Sequence[type[Process]]
    effects: Sequence[type[Effects]]
    fakes: Mapping[Callable[..., Any], Fake | None]
    now: datetime


def system(
    *classes: Classes,
    partitions: int | None = None,
    replicas: int | Mapping[type[Projection], int] = 1,
    timeout_s: float | None = None,
    settings: Settings | None = None,
    events: Sequence[type[Event]] = (),
    retired: Sequence[str] = (),
    processes: Sequence[type[Process]] = (),
    effects: Sequence[type[Effects]] = (),
    fakes: Mapping[Callable[..., Any], Fake | None] = _NO_FAKES,
    now: datetime = FIRST_TIME,
) -> MemoryRuntime:
    """A system in the memory of this process, without Ray and disk, started by `async with` within milliseconds.

    Args:
        classes: Aggregates, processes, effects and projections, in any order; or one `Application`.
        partitions: By default as many as a `Runtime` has.
        replicas: Of each projection, or a mapping from projection to number.
        timeout_s: Seconds after which a call is `Unavailable`.
        settings: Bounds and deadlines. Those of processes have no meaning here.
        events: Classes of events that no aggregate here evolves.
        retired: Stored names of events and aggregate types that were given up.
        processes: Further processes. All of them react from the first event on.
        effects: Further effects.
        fakes: What is called in place of each `@effect` and `@settle` function: a function of the event and the `Call`
            that returns a result at once, or None to have that call wait. The functions themselves are never called.
        now: What the clock shows at first.

    Raises:
        InvalidMessage: An effect without a fake, what is neither an aggregate nor a projection, and what `Runtime`
            refuses.
        DefinitionError: Two classes have the same name.

    Example:
        async with system(Account, Balances) as bank:
            receipt = await bank.execute(Account, "alice", Deposit(amount=100))
            bank.clock.advance(timedelta(days=1))
            assert (await bank.state_at(Account, "alice", at=bank.clock.now)).balance == 100
    """
    application, listed, projections = _sorted(classes)
    aggregates = tuple(one for one in listed if not one.is_process)
    given = (*processes, *(one for one in listed if issubclass(one, Process)))
    calling = (*effects, *(one for one in listed if issubclass(one, Effects)))
    if not classes and not events and not retired:
        raise InvalidMessage(
            _SYSTEM, "there is nothing to run", "give aggregate and projection classes, or an Application"
        )
    made = application_here(
        _SYSTEM,
        application,
        aggregates=aggregates,
        projections=projections,
        replicas=replicas,
        settings=settings,
        events=events,
        retired=retired,
        processes=given,
        effects=calling,
    )
    named = _named_fakes(made, fakes)
    count = check_partitions(partitions, _SYSTEM) or made.partitions or PARTITIONS_DEFAULT
    chosen = checked_settings(made.settings if settings is None else settings, None, timeout_s)
    return MemoryRuntime(made, count, chosen, Clock(now), named)


def system_blocking(*classes: Classes, **options: Unpack[SystemOptions]) -> BlockingMemoryRuntime:
    """`system` without `await`: started by `with`. Arguments and errors are the same.

    Example:
        with system_blocking(Account, Balances) as bank:
            bank.execute(Account, "alice", Deposit(amount=100))
    """
    return BlockingMemoryRuntime(system(*classes, **options))


def fixture(*classes: Classes, **options: Unpack[SystemOptions]) -> Any:
    """A pytest fixture: each test has a system of its own, running. Assign it to the name that tests ask for. It is run
    by the plugin that runs your asynchronous tests, pytest-asyncio or anyio.

    Example:
        bank = fixture(Account, Balances)  # in a test file, or in conftest.py

        async def test_a_deposit_is_seen(bank: MemoryRuntime) -> None:
            receipt = await bank.execute(Account, "alice", Deposit(amount=5))
            assert await bank.ask(Balances, BalanceOf(account="alice"), after=receipt) == 5
    """

    async def running(_test_class: object = None) -> AsyncIterator[MemoryRuntime]:  # given where it is one's attribute
        async with system(*classes, **options) as started:
            yield started

    return _asynchronous_fixture()(running)


def fixture_blocking(*classes: Classes, **options: Unpack[SystemOptions]) -> Any:
    """`fixture` for tests without `await`.

    Example:
        bank = fixture_blocking(Account, Balances)

        def test_a_deposit_is_seen(bank: BlockingMemoryRuntime) -> None:
            receipt = bank.execute(Account, "alice", Deposit(amount=5))
            assert bank.ask(Balances, BalanceOf(account="alice"), after=receipt) == 5
    """
    import pytest

    def running(_test_class: object = None) -> Iterator[BlockingMemoryRuntime]:  # given where it is one's attribute
        with system_blocking(*classes, **options) as started:
            yield started

    return pytest.fixture(running)


def _asynchronous_fixture() -> Callable[[Any], Any]:
    try:
        import pytest_asyncio
    except ImportError:
        import pytest

        return pytest.fixture
    return pytest_asyncio.fixture


def _named_fakes(application: Application, fakes: Mapping[Callable[..., Any], Fake | None]) -> Fakes:
    """Raises `InvalidMessage` for a function without a fake, and for a fake of what is no such function."""
    left, found = dict(fakes), {}
    for cls in application.catalogue.processes.values():
        for method in (*cls.effects.values(), *cls.looks.values()) if cls.is_effects else ():
            name = f"{cls.__name__}.{method.name}"
            if method.function not in left:
                remedy = f"give fakes={{{name}: lambda event, call: Done()}}, or None to have it wait"
                raise InvalidMessage(_SYSTEM, f"{name} calls the outside, and has no fake", remedy)
            found[name] = left.pop(method.function)
    for one in left:
        shown = getattr(one, "__qualname__", repr(one))
        raise InvalidMessage(_SYSTEM, f"the fake is of {shown}, which is no function of its effects", "leave it out")
    return found


def _sorted(
    classes: Sequence[object],
) -> tuple[Application | None, tuple[type[Aggregate], ...], tuple[type[Projection], ...]]:
    """The application, the aggregates and the projections among these. Raises `InvalidMessage`."""
    applications = [one for one in classes if isinstance(one, Application)]
    aggregates = tuple(one for one in classes if isinstance(one, type) and issubclass(one, Aggregate))
    projections = tuple(one for one in classes if isinstance(one, type) and issubclass(one, Projection))
    known = {id(one) for one in (*applications, *aggregates, *projections)}
    for one in classes:
        if id(one) not in known:
            remedy = "give aggregate and projection classes, or one Application"
            raise InvalidMessage(_SYSTEM, f"{one!r} is neither an Aggregate nor a Projection class", remedy)
    if len(applications) > 1:
        raise InvalidMessage(_SYSTEM, f"{len(applications)} Applications were given", "give one")
    return next(iter(applications), None), aggregates, projections
