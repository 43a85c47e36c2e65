"""Inputs: the commands that every process decides: an input, which a courier sends, and what an operator may do.

Step [1] of the write path. Before it: `delivery.py`, or a program. After it: `step.py`.
"""

from __future__ import annotations

from pydantic import Field

from ..domain.messages import Command
from ..stream import RESERVED_PREFIX

__all__ = ["End", "Input", "Retry", "Skip"]


class Input(Command):
    """An input of a process. Rayfold sends it; no program does."""

    kind: int
    input_id: bytes
    """Its command id, which the ids of what it leads to are derived from."""
    head: bytes
    """What it is, packed."""
    payload: bytes
    again: bool = False
    """Of an event: it may have been given before the courier was started."""
    park: str = ""
    """Why it is to wait in a parked instance and not to be run: its process has ended on it."""
    hops: int = 0
    """How many inputs and commands have led to it, each at once."""


Input.message_name = f"{RESERVED_PREFIX}Input"


class Retry(Command):
    """Have a parked instance try again what it stopped at; then what waits behind it, in order.

    A command that was refused and that nothing takes is sent again; so is one that a restored log has lost, also of an
    instance that has ended. A schedule whose instance has ended starts again. Refused as `not_parked` for an instance
    that is not parked. Stored with the name and the reason.

    Example:
        bank.execute(Fulfilment, "order-1", Retry(by="ada", reason="the till is mended"))
    """

    by: str = Field(min_length=1)
    reason: str = Field(min_length=1)


class Skip(Command):
    """Have a parked instance leave out what it stopped at, and go on with what waits behind it.

    A compensation that was refused is left undone. Refused as `not_parked` for an instance that is not parked. Stored
    with the name and the reason.

    Example:
        bank.execute(Fulfilment, "order-1", Skip(by="ada", reason="refunded by hand, ticket 7"))
    """

    by: str = Field(min_length=1)
    reason: str = Field(min_length=1)


class End(Command):
    """Have an instance end where it is: timers and what waits are forgotten, nothing is taken back, and what comes of
    commands on their way is ignored. A schedule stays ended until `Retry`. Refused as `already_ended`. Stored with the
    name and the reason.

    Example:
        bank.execute(Fulfilment, "order-1", End(by="ada", reason="settled by hand, ticket 7"))
    """

    by: str = Field(min_length=1)
    reason: str = Field(min_length=1)


for _operation in (Retry, Skip, End):
    _operation.message_name = RESERVED_PREFIX + _operation.__name__
