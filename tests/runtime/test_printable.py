"""Text from outside that would control a terminal, or forge a line of a log, is shown escaped."""

from __future__ import annotations

import io
import json
import logging
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayfold.runtime.printable import exc_info_of, printable, printable_json, printable_lines, printable_log

HOSTILE = [
    "\x1b]0;owned\x07",  # the title of the terminal
    "\x9b2J",  # the same escape in one character
    "good\rbad",
    "one\ntwo",
    "\u202egnp.exe",  # right to left
    "\u2066hidden\u2069",
    "\u2028",
    "a\u200bb",
    "\x7f\x08",
    "\ud800",  # no character at all: printing it would raise
]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_nothing_hostile_is_left_in_a_text(text: str) -> None:
    assert printable(text).isprintable()
    assert printable(text) == "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


@pytest.mark.parametrize("text", ["Account/alice", "Konto/Müller", "勘定", "", "a ~ b", "\\x1b"])
def test_what_is_printable_stays_as_it_is(text: str) -> None:
    assert printable(text) == printable_lines(text) == text


def test_lines_and_tabs_of_a_longer_text_are_kept() -> None:
    assert printable_lines("one\n\ttwo\x1b[2J\r") == "one\n\ttwo\\x1b[2J\\r"


@given(st.text(st.characters(codec=None)))
def test_json_stays_json_of_the_same_value_and_is_printable(text: str) -> None:
    line = printable_json({"id": text})
    assert line.isprintable()
    assert json.loads(line) == {"id": text}


@given(st.text(st.characters(codec=None)))
def test_no_text_keeps_a_control_character(text: str) -> None:
    assert not {unicodedata.category(one) for one in printable(text)} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


def test_a_line_of_a_log_and_the_trace_below_it_are_printable() -> None:
    written = io.StringIO()
    log = printable_log("rayfold.test.printable")
    log.propagate = False
    log.addHandler(logging.StreamHandler(written))
    for _ in range(2):  # asking twice filters once
        log = printable_log("rayfold.test.printable")
    try:
        raise ValueError("\x1b]0;owned\x07")
    except ValueError:
        log.exception("%s failed", "Account/\x1b[2J")
    text = written.getvalue()
    assert "Account/\\x1b[2J failed\nTraceback (most recent call last):\n" in text
    assert "ValueError: \\x1b]0;owned\\x07\n" in text
    assert "\x1b" not in text
    assert len(log.filters) == 1


class Endless(Exception):
    """Delegates to what it has not, as a wrapper with a mistake does."""

    def __getattr__(self, name: str) -> object:
        return getattr(self.wrapped, name)


class Undecided(Exception):
    """Cannot be asked whether it is true."""

    def __bool__(self) -> bool:
        raise ValueError("neither")


@pytest.mark.parametrize("kind", [Endless, Undecided])
def test_an_exception_that_cannot_be_shown_is_logged_all_the_same(kind: type[Exception]) -> None:
    written = io.StringIO()
    log = printable_log("rayfold.test.hostile")
    log.propagate = False
    log.addHandler(logging.StreamHandler(written))
    try:
        raise kind("what happened")
    except kind as error:
        log.exception("caught")
        log.warning("handed in", exc_info=exc_info_of(error))
    text = written.getvalue()
    assert "caught\n" in text
    assert "handed in\n" in text
    assert text.count(kind.__name__) >= 2
