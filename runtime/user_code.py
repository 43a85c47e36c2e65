"""User code: what may come out of a handler, a validator, an upcaster or a filter, and which of it is Ctrl-C.

Beside all steps: wherever code of the user's runs in an actor, whatever it raises is its own failure,
`KeyboardInterrupt`, `GeneratorExit` and `CancelledError` included; what no code of the user's has raised is the wish of
a person to stop.

Why the instruction is examined: Ctrl-C arrives between any two instructions of a handler and raises the same class that
a handler may raise by itself. Only the second stands at a `raise`.
"""

from __future__ import annotations

import opcode
import signal
from types import TracebackType
from typing import Any, Final

__all__ = ["cause_of", "class_name", "is_ctrl_c", "trace_of"]

_RAISES: Final = frozenset({opcode.opmap["RAISE_VARARGS"], opcode.opmap["RERAISE"]})
_name_of: Final = type.__dict__["__name__"].__get__
_trace_of: Final[Any] = BaseException.__dict__["__traceback__"].__get__
_cause_of: Final[Any] = BaseException.__dict__["__cause__"].__get__

_YIELD: Final = opcode.opmap["YIELD_VALUE"]
_RESUME: Final = opcode.opmap["RESUME"]


def trace_of(error: BaseException) -> TracebackType | None:
    """Its trace, whatever its class has of that name."""
    trace: TracebackType | None = _trace_of(error)
    return trace


def cause_of(error: BaseException) -> BaseException:
    """What it was raised from, or itself. It is not asked whether it is true, which its class decides."""
    cause: BaseException | None = _cause_of(error)
    return error if cause is None else cause


def class_name(value: object) -> str:
    """The name of a value's class. Runs no code of the user's: a metaclass may have a `__name__` that raises."""
    return str.__str__(_name_of(type(value)))


def is_ctrl_c(error: BaseException) -> bool:
    """True for a `KeyboardInterrupt` that came as a signal, which is to go on; False for what a handler raised."""
    if not issubclass(type(error), KeyboardInterrupt):  # `isinstance` asks the value too, whose code may raise
        return False
    last = trace_of(error)
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None:
        return True
    code, at = last.tb_frame.f_code, last.tb_lasti
    return not _raised_at(code.co_code, at) or code is _handler_code(signal.getsignal(signal.SIGINT))


def _raised_at(code: bytes, at: int) -> bool:
    """Whether an error can come from the instruction itself: it raises, or a generator stands there into which one
    was thrown (before Python 3.13 at its `yield`, since then right behind it)."""
    if code[at] in _RAISES or code[at] == _YIELD:
        return True
    return code[at] == _RESUME and at >= 2 and code[at - 2] == _YIELD


def _handler_code(handler: Any) -> Any:
    """The code of the process's own handler of the signal, which raises in Python: asyncio has one."""
    handler = getattr(handler, "func", handler)
    return getattr(getattr(handler, "__func__", handler), "__code__", None)
