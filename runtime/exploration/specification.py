"""Specifications: what was found, as `given(...).when(...).then(...)` that fails in the same way.

Beside all steps. Before it: a trial has broken, and Hypothesis has made it as small as it could. After it: `explore`
prints it.

Rule kept here: what is printed as a case that fails was run and has failed so. If no form of it fails alone (where the
cause is outside of the aggregate), the steps are listed instead.
"""

from __future__ import annotations

import keyword
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from ..domain.aggregate import Aggregate, outcome_of
from ..domain.messages import Command, Event
from ..errors import HandlerFailed, Rejected
from ..testing import given
from .source import Names, Source
from .trial import Broken, Done, Invariant

__all__ = ["Case", "chain", "is_same_failure", "printed"]

_WIDTH: Final = 100
"""Characters of a line before a chain is broken into several."""

_EXAMPLE: Final = "example"
"""The id that `given` has without another."""


class Case(NamedTuple):
    """A specification as text."""

    text: str
    names: Names
    """What it needs."""

    def failure(self, surroundings: Names) -> BaseException | None:
        """What it raises."""
        scope = {**surroundings, **self.names}
        try:
            exec(compile(self.text, "<specification>", "exec"), scope)
        except Exception as error:
            return error
        return None

    @property
    def imports(self) -> str:
        """The lines that import what it needs, but for what a function or the program itself has defined."""
        found: dict[str, list[str]] = {"rayfold.testing": ["given"]}
        for name, thing in self.names.items():
            module = getattr(thing, "__module__", None)
            if name == "given" or module in (None, "__main__", "builtins"):
                continue
            if "<locals>" not in getattr(thing, "__qualname__", name):
                found.setdefault(module, []).append(name)
        return "\n".join(f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(found.items()))


def printed(subject: type[Aggregate], broken: Broken, invariants: Sequence[Invariant]) -> str:
    """The specification, with its imports; or the steps, with the reason."""
    surroundings: Names = {}
    for invariant in invariants:
        surroundings |= getattr(invariant, "__globals__", {})
    for make in (_alone, _of_events, _together):
        try:
            case = make(subject, broken, invariants)
            failure = case.failure(surroundings)
        except Exception:  # of a `__repr__` or a handler of the user's: the next form may do without it
            continue
        if failure is not None and is_same_failure(broken.kind, broken.error, failure):
            return f"{case.imports}\n\n{case.text}"
    source = Source()
    lines = [f"{done.id!r}: {source.value(done.command)} -> {_outcome(source, done)}" for done in broken.done]
    if broken.command is not None:
        lines.append(f"{broken.id!r}: {source.value(broken.command)} -> failed")
    listed = "\n".join(f"    {line}" for line in lines)
    return f"no specification of it fails by itself: it depends on more than the aggregate. The commands were\n{listed}"


def is_same_failure(kind: str, error: BaseException | None, failure: BaseException) -> bool:
    """Whether a specification has failed as the trial has, which broke with this kind and this error."""
    if kind == "invariant":
        return isinstance(failure, AssertionError if error is None else type(error))
    if kind == "state" and error is None:
        return isinstance(failure, AssertionError) and "after a crash" in str(failure)
    return isinstance(failure, (type(error), AssertionError, HandlerFailed))


# Forms ----------------------------------------------------------------------------------------------------------------


def _alone(subject: type[Aggregate], broken: Broken, invariants: Sequence[Invariant]) -> Case:
    """The aggregate that broke, with its last command."""
    source, links = Source(), list[str]()
    done = [one for one in broken.done if one.id == broken.id]
    if broken.command is not None:
        links += [_given(source, subject, _events(done), broken.id), f".when({source.value(broken.command)})"]
        if events := _decided(subject, broken.id, _events(done), broken.command):
            links.append(f".then({', '.join(map(source.value, events))})")
        return Case(chain(links), source.names)
    last = max((number for number, one in enumerate(done) if one.outcome and not _refused(one)), default=None)
    if last is None:
        raise ValueError("nothing was accepted")
    links.append(_given(source, subject, _events(done[:last]), broken.id))
    links += _when(source, done[last])
    links.append(_check(source, broken, invariants))
    return Case(chain(links), source.names)


def _of_events(subject: type[Aggregate], broken: Broken, invariants: Sequence[Invariant]) -> Case:
    """The aggregate that broke, by its events: where a command would be decided otherwise each time."""
    source = Source()
    done = [one for one in broken.done if one.id == broken.id]
    links = [_given(source, subject, _events(done), broken.id), _check(source, broken, invariants)]
    return Case(chain([link for link in links if link]), source.names)


def _together(subject: type[Aggregate], broken: Broken, invariants: Sequence[Invariant]) -> Case:
    """All aggregates, in the order in which things happened."""
    source = Source()
    ids = list(dict.fromkeys([one.id for one in broken.done] + [broken.id]))
    variables = {id: _variable(id, number) for number, id in enumerate(ids, 1)}
    lines = [f"{variables[id]} = {_given(source, subject, (), id)}" for id in ids]
    for one in broken.done:
        if one.outcome and not _refused(one):
            name = variables[one.id]
            lines.append(f"{name} = {chain([name, *_when(source, one)])}")
    name = variables[broken.id]
    if broken.command is not None:
        lines.append(chain([name, f".when({source.value(broken.command)})"]))
    else:
        lines.append(chain([name, _check(source, broken, invariants)]))
    return Case("\n".join(lines), source.names)


def _given(source: Source, subject: type[Aggregate], events: Sequence[Event], id: str) -> str:
    source.names["given"] = given
    parts = [source.name(subject), *map(source.value, events)]
    if id != _EXAMPLE:
        parts.append(f"id={source.value(id)}")
    return f"given({', '.join(parts)})"


def _when(source: Source, done: Done) -> Iterator[str]:
    assert not isinstance(done.outcome, Rejected)
    yield f".when({source.value(done.command)})"
    yield ".then_state()" if done.has_outputs else f".then({', '.join(map(source.value, done.outcome))})"


def _check(source: Source, broken: Broken, invariants: Sequence[Invariant]) -> str:
    if broken.kind == "invariant":
        return f".then_holds({source.function(broken.invariant(invariants))})"
    return ".after_crash()" if broken.kind == "state" else ""


def _outcome(source: Source, done: Done) -> str:
    if isinstance(done.outcome, Rejected):
        return f"Rejected({done.outcome.reason!r})"
    return ", ".join(map(source.value, done.outcome)) or "nothing"


def _refused(done: Done) -> bool:
    return isinstance(done.outcome, Rejected)


def _events(done: Sequence[Done]) -> tuple[Event, ...]:
    return tuple(event for one in done if not isinstance(one.outcome, Rejected) for event in one.outcome)


def _decided(subject: type[Aggregate], id: str, history: Sequence[Event], command: Command) -> list[Event]:
    """What it decides about a command, if it decides: then what fails is to evolve with it."""
    try:
        outcome = outcome_of(given(subject, *history, id=id).aggregate, command)
    except Exception:
        return []
    return [] if isinstance(outcome, Rejected) else outcome


def _variable(id: str, number: int) -> str:
    return id if id.isidentifier() and not keyword.iskeyword(id) and id != "given" else f"case_{number}"


def chain(links: Sequence[str]) -> str:
    """In one line, or in one line for each call."""
    whole = "".join(links)
    if len(whole) <= _WIDTH:
        return whole
    return "\n".join(["(", f"    {links[0]}", *(f"    {link}" for link in links[1:] if link), ")"])
