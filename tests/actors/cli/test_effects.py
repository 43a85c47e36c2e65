"""What an operator writes, and the command that it is."""

from __future__ import annotations

import pytest

from rayfold import Settle
from rayfold.actors.cli.effects import Action, Outcome, command_for


@pytest.mark.parametrize("written", ["not_done", "not-done"])
def test_not_done_is_taken_as_the_command_has_it_and_as_options_are_written(written: str) -> None:
    settle = Settle(outcome="not_done", by="ada", reason="seen")
    assert command_for(Action.SETTLE, Outcome(written), "ada", "seen") == settle
