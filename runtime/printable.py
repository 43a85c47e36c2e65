"""Printable: the one place that makes text fit for a terminal and for a line of a log.

Beside all steps. Ids, names and the texts of errors come from outside. Written to a terminal as they are, they could
set its title, hide or forge lines, or reverse the direction of what is read (ANSI escapes, carriage returns,
bidirectional controls); a line break in an id forges a line of a log. Every character that Unicode does not call
printable is shown as `repr` shows it: `\\x1b`, `\\u202e`.

Who uses it: the texts of errors (`errors.py`), every logger (`printable_log`), every screen (`actors/cli/console.py`),
and JSON that goes to a terminal (`printable_json`). Facts and files keep the text as it is.
"""

from __future__ import annotations

import json
import logging
import re
import traceback
from types import TracebackType
from typing import Any, Final, TypeAlias
from uuid import UUID

from .user_code import class_name, is_ctrl_c, trace_of

__all__ = ["exc_info_of", "printable", "printable_json", "printable_lines", "printable_log", "shown", "shown_id"]

ExcInfo: TypeAlias = tuple[type[BaseException], BaseException, TracebackType | None]

TRACE_CHARS_MAX: Final = 16_384
"""Of the trace of an exception in a log, its beginning and its end: some hundred lines. The text of one may have many
megabytes, and a chain of exceptions thousands of links."""

SHOWN_CHARS_MAX: Final = 60
"""Of a value in the text of an error, which is one line with the reason and the remedy behind it."""

_SUSPECT: Final = re.compile(r"[^ -~]")
"""Characters outside printable ASCII are checked one by one."""


def printable(text: str) -> str:
    r"""The text with every character escaped that is not printable, line breaks included.

    Example: `printable("Account/\x1b[2J")` is `Account/\\x1b[2J`.
    """
    return text if text.isprintable() else _SUSPECT.sub(_escaped, text)


def printable_lines(text: str) -> str:
    """The same for a text of several lines: line feeds and tabs are kept."""
    return text if text.isprintable() else _SUSPECT.sub(_escaped_in_lines, text)


def printable_json(value: Any) -> str:
    """The value as one line of JSON, in which everything that is not printable is escaped, as JSON has it."""
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else _SUSPECT.sub(_escaped_in_json, text)


def printable_log(name: str) -> logging.Logger:
    """The logger of this name, whose lines and traces are printable."""
    logger = logging.getLogger(name)
    if not any(isinstance(one, _Printable) for one in logger.filters):
        logger.addFilter(_Printable())
    return logger


def exc_info_of(error: BaseException | None) -> ExcInfo | None:
    """What a logging call takes as `exc_info`. Not the exception itself: `logging` asks whether it is true, and an
    exception of a user's class may answer that with another one, and so it may when it is asked for its trace."""
    return None if error is None else (type(error), error, trace_of(error))


def shown(value: object, chars_max: int = SHOWN_CHARS_MAX) -> str:
    """A value that a caller has given, as Python shows it, in at most 60 characters: for the text of an error about it.
    Never raises: an integer of over 4,300 digits has no text, and a user's `__repr__` may raise anything.

    Example: `shown("a")` is `'a'`, with its quotes.
    """
    try:
        text = repr(value)
    except BaseException as error:  # of user code, which may raise anything
        if is_ctrl_c(error):
            raise
        text = f"a value of class {class_name(value)} whose repr raises {class_name(error)}"
    return text if len(text) <= chars_max else f"{text[: chars_max - 3]}..."


def shown_id(id_bytes: bytes) -> str:
    """The id of a command, stored as 16 bytes, as callers have it: a UUID. Other bytes as they are."""
    return repr(UUID(bytes=id_bytes)) if len(id_bytes) == 16 else repr(id_bytes)


class _Printable(logging.Filter):
    """Lets every record pass, with its text made printable. An exception of a user's class may raise anything while it
    is formatted: its record is logged without its trace."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if not text.isprintable():
            record.msg, record.args = printable_lines(text), None
        if record.exc_info and record.exc_info[0] is not None and not record.exc_text:
            trace = _formatted_trace(*record.exc_info)
            if trace is None:
                kind = class_name(record.exc_info[1])
                record.exc_text, record.exc_info = f"{kind}, whose trace cannot be formatted", None  # taken as it is
            elif len(trace) > TRACE_CHARS_MAX:
                half = TRACE_CHARS_MAX // 2
                left_out = f"\n... {len(trace) - 2 * half:,} characters are left out ...\n"
                record.exc_text = printable_lines(f"{trace[:half]}{left_out}{trace[-half:]}")
            elif not trace.replace("\n", "").isprintable():
                record.exc_text = printable_lines(trace)
        return True


def _formatted_trace(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> str | None:
    """The trace of an exception as Python prints it; None if the exception's own code fails meanwhile."""
    try:
        return "".join(traceback.format_exception(kind, error, trace)).rstrip("\n")
    except BaseException as failure:  # of user code, which may raise anything
        if is_ctrl_c(failure):
            raise
        return None


def _escaped(found: re.Match[str]) -> str:
    character = found[0]
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def _escaped_in_lines(found: re.Match[str]) -> str:
    return found[0] if found[0] in "\n\t" else _escaped(found)


def _escaped_in_json(found: re.Match[str]) -> str:
    return found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1]
