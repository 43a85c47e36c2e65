"""The doors of a default local runtime: closed to all without the token, and open on this machine alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.short_form import held

pytestmark = pytest.mark.slow


def test_strangers_are_not_let_in_and_nothing_listens_beyond_this_machine(tmp_path: Path) -> None:
    figures = held("doors", tmp_path).figures
    assert (figures["strangers"], figures["let_in"], figures["beyond_loopback"]) == (2, 0, 0)
    assert int(figures["listening"]) > 0
