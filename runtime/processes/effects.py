"""Effects: the vocabulary of calls to the outside world, as a plain class, and the checks when it is defined.

Step [4] of the write path: each call is an instance, whose inputs are commands that couriers send, as those of a
process are. Before it: an event. After it: `call_step.py` records what is to be called, a runner calls it, and what it
has come to is an input again.

Rules kept here: a function of this class runs in a process of its own and never in a partition; nothing that it does
changes a state; what cannot work is a `DefinitionError` while the class is defined.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from typing import Any, ClassVar, Final, Literal, TypeVar, overload

from pydantic import Field

from ..domain.aggregate import Decider, Shared, Waker
from ..domain.declaration import Method, being_unpickled, described, mark, methods_of, where
from ..domain.messages import Command, Event
from ..domain.outputs import WAKE_NAME_BYTES_MAX
from ..effects.backoff import Backoff
from ..effects.call import Call
from ..effects.methods import EffectMethod, EffectRules, LookMethod
from ..effects.open_call import BEGUN_STATE, SENDING, OpenCall, called
from ..effects.results import DECLINED, DONE, Declined, Done, NotDone, PackedResult, packed_result, unpacked_result
from ..encoding.outputs import AFTER, FORGET, REST, SWITCH, WAKE
from ..errors import DefinitionError, InvalidMessage, Rejected
from ..printable import shown
from ..stream import ID_BYTES_MAX, RESERVED_PREFIX
from .call_step import LATE, call_outputs, over_entries
from .inputs import Input, Retry, Skip
from .instance import Instance, Reaction
from .kinds import CALLED, OUTCOME, SKIPPED, WOKEN
from .progress import Body, Stepped, advanced, body_of
from .step import SWITCHES, UNROUTED, retry, skip, take
from .step import settle as settled

__all__ = ["Effects", "Settle", "Switch", "effect", "settle"]

FunctionType = TypeVar("FunctionType", bound=Callable[..., Any])

_RULES: Final = EffectRules()

_TIMEOUT_MAX_S: Final = 86_400.0
"""A day: until then a call whose runner was lost stays begun."""

_AT_ONCE_MAX: Final = 1_000
"""Calls of one function at a time in one partition: each is a task of its runner, and has its event in memory."""


class Settle(Command):
    """Settle a call by hand whose end is unknown, which was given up, or which rests. Refused as `no_call`, or as
    `it_is_running` until its attempt is over. Stored with the name and the reason.

    Attributes:
        outcome: `done`: it took effect. `declined`: it did not, and is not called again. `not_done`: it did not, and is
            called again.

    Example:
        await bank.execute(Charging, "order-1:3", Settle(outcome="done", by="ada", reason="seen at the bank"))
        confirm = Done(Send(Order, "order-1", Confirm()))
        await bank.execute(Charging, "order-1:3", Settle.as_result(confirm, by="ada", reason="seen at the bank"))
    """

    outcome: Literal["done", "declined", "not_done"]
    by: str = Field(min_length=1)
    reason: str = Field(min_length=1)
    result: bytes = b""
    """A packed result, whose commands are sent."""

    @classmethod
    def as_result(cls, result: Done | Declined | NotDone, *, by: str, reason: str) -> Settle:
        """What the call is to have come to, with what that sends. Raises `InvalidMessage`."""
        outcomes: dict[type, Literal["done", "declined", "not_done"]]
        outcomes = {Done: "done", Declined: "declined", NotDone: "not_done"}
        if type(result) not in outcomes:
            raise InvalidMessage("Settle", f"{shown(result)} settles nothing", "give Done(), Declined() or NotDone()")
        return cls(outcome=outcomes[type(result)], by=by, reason=reason, result=packed_result(result))


Settle.message_name = f"{RESERVED_PREFIX}Settle"


class Switch(Command):
    """Switch the calls of one `Effects` in one partition on or off. Sent to an instance that lies there
    (`Operations.switch_effects`). Attempts that have begun go on. Stored with the name and the reason."""

    on: bool
    by: str = Field(min_length=1)
    reason: str = Field(min_length=1)


Switch.message_name = f"{RESERVED_PREFIX}Switch"


class Effects(Instance):
    """The base of your calls to the outside world: payments, mails, anything that this store does not hold.

    Each event for which a function is marked `@effect` leads to one call. Every attempt is begun in the log, with an
    fsync, before the function runs; what it has come to is stored too. An attempt whose end is unknown, since it raised
    or took too long, or since its process ended, is never called again blindly: its `@settle` function looks it up, and
    without one it waits for people (`Settle`, `rayfold effects`).

    The functions are async, and run in a process of their own; one object of the class is made there. An event leads to
    a call in an instance with the id `AGGREGATE_ID:VERSION`, or, with `order_by=`, in one with that key as its id, in
    which calls are made one after the other. Raises `DefinitionError` while the class is defined.

    Example:
        class Charging(Effects):
            @effect(timeout_s=10, at_once=8)
            async def charge(self, event: ChargeRequested, call: Call) -> Send | Declined:
                answer = await bank.post("/charges", amount=event.amount, idempotency_key=call.key)
                if answer.status == 402:
                    return Declined("no_money", Send(Order, event.order, Cancel(reason="no_money")))
                return Send(Order, event.order, Confirm(charge=answer.id))

            @settle(charge)
            async def look(self, event: ChargeRequested, call: Call) -> Send | NotDone:
                answer = await bank.get("/charges", idempotency_key=call.key)
                return NotDone("not there") if answer is None else Send(Order, event.order, Confirm(charge=answer.id))
    """

    calling: OpenCall | None = None
    """The call that is open."""

    effects: ClassVar[dict[str, EffectMethod]] = {}
    """By the name of the function."""
    looks: ClassVar[dict[str, LookMethod]] = {}
    is_effects: ClassVar[bool] = True

    def __init_subclass__(cls, *, name: str | None = None) -> None:
        """Find and check the functions. Raises `DefinitionError`."""
        _check_body(cls)
        super().__init_subclass__(name=name, placement=Shared())
        if being_unpickled():
            return
        _check_vocabulary(cls)
        cls.effects, cls.looks = _functions(cls)
        cls.evolvers = {**cls.evolvers, Stepped: _evolve}
        cls.reactions = {one.event.message_name: _reaction(one) for one in cls.effects.values()}
        cls.reacts_to = tuple(one.event for one in cls.effects.values())
        cls.wakers = {name: Waker(name, _never, False) for name in (*cls.effects, *cls.looks, LATE)}
        cls.deciders = {
            Input: Decider("take", take, False, ()),
            Retry: Decider("retry", retry, False, ()),
            Skip: Decider("skip", skip, False, ()),
            Settle: Decider("settle", _settle, False, ()),
            Switch: Decider("switch", _switch, False, ()),
        }

    @classmethod
    def instance_id(cls, ident: str, version: int) -> str:
        """See `Instance`: one for each event."""
        found = f"{ident}:{version}"
        if len(found.encode()) <= ID_BYTES_MAX:
            return found
        return f"{hashlib.blake2b(ident.encode(), digest_size=16).hexdigest()}:{version}"

    @property
    def is_busy(self) -> bool:
        """See `Instance`."""
        return self.calling is not None

    def runs_ahead(self, kind: int) -> bool:
        """See `Instance`."""
        return self.calling is not None and kind in (WOKEN, CALLED, OUTCOME)

    def awaits(self, head: list[Any]) -> bool:
        """See `Instance`."""
        calling = self.calling
        return calling is not None and calling.state == BEGUN_STATE and [calling.version, calling.attempt] == head[:2]

    def outputs_of(self, kind: int, head: list[Any], payload: bytes, how: int) -> list[list[Any]] | None:
        """See `Instance`."""
        if self.id == UNROUTED or kind == OUTCOME:
            return None
        return call_outputs(self.calling, self.effects, self.looks, self.progress.count, kind, head, payload, how)

    def resumes(self, body: Body) -> bool:
        """See `Instance`."""
        if self.id == UNROUTED:
            return super().resumes(body)
        was_open = self.calling is not None or body[5]
        after = advanced(self.progress, body, self.version + 1)
        return bool(was_open and after.waiting) and _called(self, body) is None


@overload
def effect(function: FunctionType, /) -> FunctionType: ...
@overload
def effect(
    *,
    retry: Backoff = ...,
    timeout_s: float = ...,
    at_once: int = ...,
    order_by: Callable[[Any], str] | None = ...,
    repeatable: bool = ...,
    target: str = ...,
) -> Callable[[FunctionType], FunctionType]: ...
def effect(
    function: Any = None,
    /,
    *,
    retry: Backoff = _RULES.retry,
    timeout_s: float = _RULES.timeout_s,
    at_once: int = _RULES.at_once,
    order_by: Callable[[Any], str] | None = None,
    repeatable: bool = False,
    target: str = "",
) -> Any:
    """Mark an async function that calls the outside because of an event: that of its first parameter. It may take a
    `Call` as well. It returns `Done`, `Declined`, `NotDone`, `Unknown`, or a `Send`.

    Args:
        function: The method, where it is marked without options.
        retry: The pauses after attempts that were not done, and between looks.
        timeout_s: Seconds that one attempt may take: then it is cancelled, and its end is unknown.
        at_once: Attempts of this function that run at the same time in one partition.
        order_by: A function of the event that returns a text, of 1 to 400 bytes and not with `rayfold:` first: calls
            with the same one are made one after the other, in the order of their events.
        repeatable: The other side takes a second call under the same key for the first. Then one whose end is unknown
            is called again, under its key. Not for one that `@settle` looks up.
        target: What is called: five failures one after the other have calls to it pause. By default that is the class.

    Raises:
        DefinitionError: Options or annotations that do not fit.

    Example:
        @effect(retry=Backoff(first_s=2), timeout_s=10, order_by=lambda event: event.customer)
        async def charge(self, event: ChargeRequested, call: Call) -> Send | Declined: ...
    """
    rules = EffectRules(retry, timeout_s, at_once, order_by, repeatable, target)
    _check_rules(rules)
    if function is None:
        return lambda later: mark(later, "effect", route=rules)
    return mark(function, "effect", route=rules)


def settle(function: Callable[..., Any], /) -> Callable[[FunctionType], FunctionType]:
    """Mark an async function that looks up what became of an attempt of this `@effect` function whose end is unknown.
    It takes the same event, and a `Call` with the same key; it returns what an effect may: `NotDone` has it called
    again, `Unknown` has it looked up again. It runs with the timeout and the pauses of the effect.

    Example:
        @settle(charge)
        async def look(self, event: ChargeRequested, call: Call) -> Done | NotDone | Unknown: ...
    """
    found = getattr(function, "__rayfold__", None)
    if found is None or found.verb != "effect":
        raise DefinitionError("@settle", f"{shown(function)} is no @effect", "write @settle(charge), below the effect")
    return lambda later: mark(later, "settle", route=function.__name__)


async def _never(*_: Any) -> None:
    raise AssertionError("the functions of Effects run in a process of their own")


def _evolve(process: Effects, event: Stepped) -> None:
    """A step has happened. The version of its record is the next one."""
    body = body_of(event)
    calling = _called(process, body)
    process.progress = advanced(process.progress, body, process.version + 1)
    process.calling = calling


def _called(process: Effects, body: Body) -> OpenCall | None:
    """The call after a step."""
    how, kind, _, input_id, waits, _, parked, outputs = body[:8]
    calling, version = process.calling, process.version + 1
    if how == SKIPPED and kind in (WOKEN, CALLED):
        return None
    if waits or (parked and not outputs):
        return calling
    open_sends = bool(advanced(process.progress, body, version).sends)
    return called(calling, outputs, input_id, version, open_sends=open_sends)


def _settle(process: Effects, command: Settle) -> list[Event] | Rejected:
    """An operator settles a call by hand."""
    calling, parked = process.calling, process.progress.parked
    if calling is None or calling.state == SENDING:
        return Rejected("no_call")
    if calling.state == BEGUN_STATE and not parked:
        return Rejected("it_is_running")
    if command.outcome == "not_done":
        why = f"settled by {command.by}: {command.reason}"
        outputs = [[FORGET, LATE], [REST, 0, 0, False, why[:500]], [WAKE, calling.method, AFTER, 0]]
        return settled(process, outputs, command.by, command.reason)
    sends = unpacked_result(command.result).sends if command.result else ()
    result = PackedResult(DONE if command.outcome == "done" else DECLINED, command.reason[:500], sends)
    return settled(process, over_entries(calling, result, process.progress.count), command.by, command.reason)


def _switch(process: Effects, command: Switch) -> list[Event] | Rejected:
    """An operator switches the calls of this partition."""
    if not process.id.startswith(SWITCHES):
        return Rejected("no_switch")
    return settled(process, [[SWITCH, command.on]], command.by, command.reason)


# --- the checks --------------------------------------------------------------------------------------------------


def _check_body(cls: type[Effects]) -> None:
    own = [name for name in vars(cls).get("__annotations__", {}) if "ClassVar" not in str(cls.__annotations__[name])]
    if own:
        what = "an Effects class has no state of its own; what it knows is in the event"
        raise DefinitionError(where(cls, own[0]), what, "take the field out, or annotate it as a ClassVar")


def _check_vocabulary(cls: type[Effects]) -> None:
    found = [*(one.name for one in cls.deciders.values()), *(one.name for one in cls.wakers.values())]
    found += [one.__name__ for one in cls.evolvers.values()]
    if found:
        what = "an Effects class has @effect and @settle functions alone"
        raise DefinitionError(where(cls, found[0]), what, "write an aggregate or a Process for it")


def _functions(cls: type[Effects]) -> tuple[dict[str, EffectMethod], dict[str, LookMethod]]:
    effects: dict[str, EffectMethod] = {}
    looks: dict[str, LookMethod] = {}
    events: dict[type[Event], str] = {}
    for method in methods_of(cls, "effect"):
        event = _event(cls, method)
        if (other := events.setdefault(event, method.name)) != method.name:
            what = f"{event.__name__} is already taken by {other}"
            raise DefinitionError(where(cls, method.name), what, "write one of the two in a class of its own")
        takes_call = len(method.parameters) > 1
        effects[method.name] = EffectMethod(method.name, method.function, event, takes_call, method.mark.route, "")
    for method in methods_of(cls, "settle"):
        effect_name = method.mark.route
        effect_found = effects.get(effect_name)
        if effect_found is None:
            what = f"it settles {effect_name}, which is no @effect of this class"
            raise DefinitionError(where(cls, method.name), what, "write @settle(charge), with an effect of the class")
        if effect_found.look:
            what = f"{effect_name} is already settled by {effect_found.look}"
            raise DefinitionError(where(cls, method.name), what, "keep one of the two functions")
        if effect_found.rules.repeatable:
            what = f"it looks {effect_name} up, which is repeatable=True, and so is called again instead"
            raise DefinitionError(where(cls, method.name), what, "keep one of the two")
        if (event := _event(cls, method)) is not effect_found.event:
            what = f"it takes {event.__name__}, and {effect_name} takes {effect_found.event.__name__}"
            raise DefinitionError(where(cls, method.name), what, "take the event of the effect")
        looks[method.name] = LookMethod(method.name, method.function, effect_name, len(method.parameters) > 1)
        effects[effect_name] = effect_found._replace(look=method.name)
    if not effects:
        raise DefinitionError(where(cls), "it calls nothing", "mark an async function @effect()")
    return effects, looks


def _event(cls: type[Effects], method: Method) -> type[Event]:
    """The event that a function takes. Raises `DefinitionError`."""
    here, verb = where(cls, method.name), method.mark.verb
    if len(method.name.encode()) > WAKE_NAME_BYTES_MAX:
        what = f"its name has over {WAKE_NAME_BYTES_MAX} bytes, and it is that of a timer"
        raise DefinitionError(here, what, "give it a shorter one")
    fits = 1 <= len(method.parameters) <= 2 and method.parameters[1:] in ((), (Call,))
    event = method.parameters[0] if method.parameters else None
    if not fits or not (inspect.isclass(event) and issubclass(event, Event)) or event is Event:
        taken = ", ".join(map(described, method.parameters)) or "nothing"
        what = f"a @{verb} function takes one event class, or also a Call; this one takes {taken}"
        raise DefinitionError(here, what, "annotate its parameters so")
    return event


def _check_rules(rules: EffectRules) -> None:
    if not isinstance(rules.retry, Backoff):
        raise DefinitionError("@effect", f"retry={shown(rules.retry)} is not a Backoff", "give retry=Backoff(...)")
    timeout = rules.timeout_s
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= _TIMEOUT_MAX_S:
        what = f"timeout_s={shown(timeout)} is not over 0 and up to {_TIMEOUT_MAX_S:g}"
        raise DefinitionError("@effect", what, "give seconds")
    if type(rules.at_once) is not int or not 1 <= rules.at_once <= _AT_ONCE_MAX:
        what = f"at_once={shown(rules.at_once)} is not between 1 and {_AT_ONCE_MAX:,}"
        raise DefinitionError("@effect", what, "give how many calls may run at the same time")
    order_by: Any = rules.order_by
    if order_by is not None and not callable(order_by):
        what = f"order_by={shown(order_by)} is not a function"
        raise DefinitionError("@effect", what, "write order_by=lambda event: event.customer")
    if not isinstance(rules.repeatable, bool):
        raise DefinitionError("@effect", f"repeatable={shown(rules.repeatable)} is not a bool", "give True or False")
    if not isinstance(rules.target, str):
        raise DefinitionError("@effect", f"target={shown(rules.target)} is not text", "name what is called")


def _reaction(one: EffectMethod) -> Reaction:
    return Reaction(one.name, _never, one.event, False, True, one.rules.order_by)
