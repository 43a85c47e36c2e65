"""What every test runs under: the budget of Hypothesis, the order of the files, no settings of this machine's for Ray,
and that only what is marked `slow` starts a process or sleeps.

Fixtures of one folder's tests live in the `conftest.py` of that folder.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import settings
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants

NO_CONSTANTS: Final = Constants()

# No deadline for a single example: on a shared machine it would time the neighbours. Each test has pytest's timeout.
settings.register_profile("thorough", deadline=None, print_blob=True)
# In continuous integration the same examples every time: a red run is about the change that is being tried.
settings.register_profile("repeatable", parent=settings.get_profile("thorough"), derandomize=True)
settings.load_profile("repeatable" if os.environ.get("CI") else "thorough")

# Hypothesis also draws the constants of our modules that are loaded. Which these are depends on what other tests have
# been before, and so would what a fixed seed draws: a test with one failed only beside certain others.
providers._get_local_constants = lambda: NO_CONSTANTS

# A shell without job control starts what it sends to the background with Ctrl-C switched off, and that is inherited:
# the programs that tests interrupt would never get the signal.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Each worker reads every file of tests, and to rewrite their assertions takes longer than all else about it: 16 s of
# CPU instead of 7. So what is rewritten is kept, also where nothing else is. What tests import is not concerned.
_was_kept = not sys.dont_write_bytecode
sys.dont_write_bytecode = False


# To read all tests makes some million objects, nearly all of which stay: the garbage collector, which goes through them
# again and again, takes 2.5 of 5.7 s of CPU, in each worker.
gc.disable()


def pytest_collection_finish() -> None:
    """All files are read."""
    sys.dont_write_bytecode = not _was_kept
    gc.enable()


# The longest first, each ten seconds or more on a quiet machine: the workers take one file after the other, and what
# comes last is short. By the sum of what `--durations=0` prints for a run of all tests.
LONGEST = (
    "actors/rollout/test_deploy.py",
    "benchmarks/suites/test_suites.py",
    "docs/test_tutorial.py",
    "benchmarks/test_flights_demo.py",
    "faults/test_processes.py",
    "benchmarks/suites/test_clusters.py",
    "actors/system/test_spread_runtime.py",
    "faults/test_cluster.py",
    "actors/client/test_one_cause.py",
    "actors/projection/test_rebuild.py",
    "actors/courier/test_on_nodes.py",
    "benchmarks/test_flights_cluster.py",
    "actors/cluster/test_local_cluster.py",
    "actors/control/test_slow_projections.py",
    "actors/courier/test_effects.py",
    "actors/sinks/test_sinks_of_a_system.py",
    "actors/system/test_programs_of_a_cluster.py",
    "actors/projection/test_projectors.py",
    "runtime/write/test_histories.py",
    "actors/partition/test_kills.py",
    "actors/api/test_host_program.py",
    "actors/partition/test_own_actors.py",
    "actors/memory/test_contract.py",
    "actors/observe/test_status.py",
    "benchmarks/test_flights_oracle.py",
    "actors/api/test_lifecycle.py",
    "actors/cli/test_cluster_commands.py",
    "actors/api/test_reconnecting.py",
    "docs/test_code_blocks.py",
    "actors/cli/test_logs.py",
    "test_packaging.py",
    "examples/test_examples.py",
    "actors/system/test_named_subscriptions.py",
    "actors/courier/test_couriers.py",
    "actors/packaging/test_shipping.py",
    "actors/cli/test_anchor_commands.py",
    "actors/rollout/test_deploy_stopped.py",
    "examples/test_web_bank.py",
    "actors/rollout/test_deploy_without.py",
    "faults/test_control_plane.py",
    "benchmarks/harness/test_report.py",
    "benchmarks/harness/test_runs.py",
    "actors/control/test_slow_starts.py",
    "deploy/test_walk_through.py",
    "actors/control/test_projector_moves.py",
    "actors/cli/test_check.py",
    "actors/cluster/test_fork_server.py",
    "actors/system/test_owner_ends.py",
    "actors/courier/test_backups.py",
    "faults/test_damage.py",
    "faults/test_storage_crashes.py",
    "runtime/log/test_store.py",
    "runtime/feed/test_subscription.py",
    "faults/test_security.py",
    "faults/test_power_cut.py",
    "faults/test_network.py",
    "faults/test_any_seed.py",
    "actors/api/test_decisive.py",
    "actors/api/test_commands.py",
)

SHARED_RAYS: Final = {"cluster", "shared_ray", "ray_of_the_run"}
"""The fixtures that start one, or what uses them."""

# A cluster whose address stands in a user's profile must never be joined by a test.
for name in ("RAY_ADDRESS", "RAY_NAMESPACE"):
    os.environ.pop(name, None)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files in the order of `LONGEST`, and the others after them; in a file the tests stay as they are. What uses
    the Ray that tests share is slow."""
    for item in items:
        if not SHARED_RAYS.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
    tests = Path(__file__).parent
    places = {tests / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(LONGEST)))


SLOW_EVENTS: Final = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "time.sleep"}
"""What Python calls its audit hooks for before it happens: starting a process, Ray too, and sleeping."""

_refused = False
"""Whether the test that runs now may do none of it."""


def _refuse_what_is_slow(event: str, arguments: tuple[object, ...]) -> None:
    if not _refused or event not in SLOW_EVENTS:
        return
    # A thread of Ray's, which other tests have started, may sleep meanwhile.
    if event != "time.sleep" or threading.current_thread() is threading.main_thread():
        raise AssertionError(f"{event}{arguments!r:.200} in a test that is not marked slow; mark it, or its file")


sys.addaudithook(_refuse_what_is_slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """`make unit` runs what is not marked `slow`; so what is not can neither start a process nor sleep."""
    yield from _refusing(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """As in the setup. The teardown of the last test of all ends what other tests have shared."""
    yield from _refusing(item)


def _refusing(item: pytest.Item) -> Iterator[None]:
    global _refused
    _refused = item.get_closest_marker("slow") is None
    try:
        yield
    finally:
        _refused = False


@pytest.fixture(scope="session", autouse=True)
def _streams_are_in_the_same_partitions_in_each_run() -> Iterator[None]:
    """A new store places streams by a rule with a random key; those that tests make in this process do without, unless
    the rule is what a test is about."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rayfold.runtime.store.store.new_placement", lambda: "crc32")
        yield


@pytest.fixture(scope="module")
def no_garbage_collection(request: pytest.FixtureRequest) -> Iterator[None]:
    """For files of tests that parse all sources, which makes a million objects: to look for garbage among them takes as
    long as all else about it. What such a file has cached is released before anything looks again."""
    was = gc.isenabled()
    gc.disable()
    yield
    for one in vars(request.module).values():
        if hasattr(one, "cache_clear"):
            one.cache_clear()
    if was:
        gc.enable()
