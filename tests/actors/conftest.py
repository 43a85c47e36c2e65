"""One Ray for all tests of this folder, started as a runtime would; each test has a store and a runtime of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rayfold import Runtime
from rayfold.actors.cluster.environment import prepare_environment
from rayfold.actors.cluster.ray_cluster import Cluster
from tests.bank import Account, Balances, Turnover, Vault

OWN_ACTORS = 4

PATIENCE_S = 60.0
"""Of a runtime for which a test sets nothing else: on a machine that is busy with more, an actor takes longer to start
than a caller waits by default."""

prepare_environment()  # before any test of this folder imports ray


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    started = Cluster.start_or_join(num_cpus=2, own_actors_max=OWN_ACTORS)
    yield started
    started.stop()


Bank = Callable[..., Runtime]


@pytest.fixture
def bank(cluster: Cluster, tmp_path: Path) -> Bank:
    """Makes a runtime of the bank over one directory; the same one whenever it is called again."""

    def make(**options: Any) -> Runtime:
        options.setdefault("projections", [Balances, Turnover])
        options.setdefault("own_actors_max", OWN_ACTORS)
        options.setdefault("timeout_s", PATIENCE_S)
        return Runtime(tmp_path / "bank-data", aggregates=[Account, Vault], **options)

    return make
