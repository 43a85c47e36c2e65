"""One Ray for the scenarios that share one; one that was started already is kept."""

from __future__ import annotations

import pytest

from rayfold.actors.cluster.environment import prepare_environment

prepare_environment()  # before any test of this folder imports ray


@pytest.fixture(scope="session")
def shared_ray() -> object:
    """The Ray of this process, ended with the session."""
    from rayfold.benchmarks.torture.local.harness import ray_of_this_process, stop_ray

    yield ray_of_this_process()
    stop_ray()
