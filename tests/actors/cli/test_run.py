"""How `rayfold run` ends, and with which exit code. A real end of its Ray: tests/actors/system/test_owner_ends.py."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

from rayfold.actors.cli.run import _kept_up, _terminate


@pytest.mark.parametrize(
    ("number", "handler", "ends"),
    [(signal.SIGTERM, _terminate, (0, "stopped")), (signal.SIGINT, signal.default_int_handler, (130, "stopped"))],
)
def test_a_service_manager_ends_it_without_a_failure_and_ctrl_c_with_130(
    number: signal.Signals, handler: Callable[..., object], ends: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        signal.signal(number, handler)
        monkeypatch.setattr(time, "sleep", lambda _: os.kill(os.getpid(), number))
        assert _kept_up() == ends
    finally:
        for one, handled in before.items():
            signal.signal(one, handled)
