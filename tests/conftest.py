"""What every test runs under: the budget of Hypothesis, and no settings of the machine's own for Ray or Rayfold.

Fixtures of one folder's tests live in the `conftest.py` of that folder.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

# No deadline for a single example: on a shared machine it would time the neighbours. Each test has pytest's timeout.
settings.register_profile("thorough", deadline=None, print_blob=True)
# In continuous integration the same examples every time: a red run is about the change that is being tried.
settings.register_profile("repeatable", parent=settings.get_profile("thorough"), derandomize=True)
settings.load_profile("repeatable" if os.environ.get("CI") else "thorough")

# A shell without job control starts what it sends to the background with Ctrl-C switched off, and that is inherited:
# the programs that tests interrupt would never hear of it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A cluster whose address stands in somebody's profile must never be joined by a test.
for name in ("RAY_ADDRESS", "RAY_NAMESPACE"):
    os.environ.pop(name, None)


@pytest.fixture(scope="session", autouse=True)
def _streams_are_in_the_same_partitions_in_each_run() -> Iterator[None]:
    """A new store places streams by a rule with a random key; those that tests make in this process do without, unless
    the rule is what a test is about."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rayfold.runtime.log.store.new_placement", lambda: "crc32")
        yield
