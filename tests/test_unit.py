"""What is not marked `slow` can neither start a process, Ray among them, nor sleep: so `make unit` takes a minute."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from tests.conftest import SLOW_EVENTS

NOTHING = [sys.executable, "-c", ""]
REFUSED = r"in a test that is not marked slow"


@pytest.mark.parametrize("event", sorted(SLOW_EVENTS))
def test_python_tells_of_it_before_it_happens_and_it_is_refused(event: str) -> None:
    with pytest.raises(AssertionError, match=rf"{event}.* {REFUSED}"):
        sys.audit(event)


def test_a_process_is_refused_on_another_thread_as_well() -> None:
    told: list[BaseException] = []

    def start() -> None:
        try:
            subprocess.run(NOTHING, check=True)
        except AssertionError as error:
            told.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    [error] = told
    assert REFUSED in str(error)


@pytest.mark.slow
def test_what_is_marked_slow_may_start_one() -> None:
    assert subprocess.run(NOTHING, check=True).returncode == 0
