"""Targets: whether an application has the aggregates that its processes send to, found out before anything runs.

Beside the write path, at a start. Before it: the catalogue of the application. After it: a command to an aggregate that
is not there fails, and parks what has sent it unless a `@failed` method takes that.

A `Send` is known when it is made. What shows it earlier are the commands of `@accepted`, `@refused` and `@failed`,
which are a `DefinitionError`, and the classes that methods name, which may be there for something else and are logged.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import CodeType
from typing import Final

from ..domain.aggregate import Aggregate
from ..domain.declaration import where
from ..encoding.catalogue import Catalogue
from ..errors import DefinitionError
from ..printable import printable_log

__all__ = ["check_targets"]

logger = printable_log(__name__)

_OWN: Final = __name__.removesuffix("processes.targets")
"""What the names of the runtime's modules begin with: its methods send nothing."""


def check_targets(catalogue: Catalogue) -> None:
    """Raises `DefinitionError` for a command whose outcome a process takes, and that no aggregate decides. Logs the
    aggregates that methods name and that are missing."""
    decided = {command for aggregate in catalogue.aggregates.values() for command in aggregate.deciders}
    for process in catalogue.processes.values():
        for method in process.outcome_methods.values():
            if method.command is not None and method.command not in decided:
                what = f"nothing in aggregates= decides {method.command.__name__}, whose outcome it takes"
                raise DefinitionError(where(process, method.name), what, "list the aggregate that decides it")
    for sender in catalogue.aggregates.values():
        for name, target in _named_in(sender) if sender.is_process or sender.has_outputs else ():
            if target.aggregate_type not in catalogue.aggregates:
                message = "%s names %s, which is not in aggregates=: what it sends there fails"
                logger.warning(message, where(sender, name), target.__name__)


def _named_in(sender: type[Aggregate]) -> Iterator[tuple[str, type[Aggregate]]]:
    """The aggregate classes that the methods of a class name, with the method."""
    for name, function in inspect.getmembers(sender, inspect.isfunction):
        if not function.__module__.startswith(_OWN):
            scope = {**function.__globals__, **inspect.getclosurevars(function).nonlocals}
            for one in sorted(set(_names(function.__code__))):
                target = scope.get(one)
                if (
                    isinstance(target, type)
                    and issubclass(target, Aggregate)
                    and not target.__module__.startswith(_OWN)
                ):
                    yield name, target


def _names(code: CodeType) -> Iterator[str]:
    yield from (*code.co_names, *code.co_freevars)
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from _names(one)
