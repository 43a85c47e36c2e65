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
from typing import Any, Final

__all__ = ["printable", "printable_json", "printable_lines", "printable_log"]

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


class _Printable(logging.Filter):
    """Lets every record pass, with its text made printable."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if not text.isprintable():
            record.msg, record.args = printable_lines(text), None
        if record.exc_info and record.exc_info[1] is not None and not record.exc_text:
            told = "".join(traceback.format_exception(record.exc_info[1])).rstrip("\n")
            if not told.replace("\n", "").isprintable():
                record.exc_text = printable_lines(told)  # formatters take it as it is
        return True


def _escaped(found: re.Match[str]) -> str:
    character = found[0]
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def _escaped_in_lines(found: re.Match[str]) -> str:
    return found[0] if found[0] in "\n\t" else _escaped(found)


def _escaped_in_json(found: re.Match[str]) -> str:
    return found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1]
