"""Cluster: the Ray that the actors run on, started here or joined, with the settings that measurements call for.

Rules kept here: a runtime never joins a Ray that merely happens to run on the machine (`address="local"`); if the
caller has initialised Ray in this process, that one is used and left running. What this process started, it stops.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

__all__ = ["OWN_ACTOR_SLOT", "Cluster", "prepare_environment"]

OWN_ACTOR_SLOT: Final = "rayfold_own_actor"
"""The Ray resource of which each own actor takes one: `num_cpus=0` alone would admit any number of them."""

_ENVIRONMENT: Final = {
    # Ray starts workers at nice 15: they would lose every race against the process that calls them.
    "RAY_worker_niceness": "0",
    # Whoever reaches a Ray cluster runs code in it: only with the token.
    "RAY_AUTH_MODE": "token",
    # A local cluster otherwise listens on all interfaces; this makes it loopback only.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Under `uv run` Ray would start workers in a copy of the project with a fresh environment.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}

_READ_AT_IMPORT: Final = {"RAY_AUTH_MODE", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_ENABLE_UV_RUN_RUNTIME_ENV"}

_OBJECT_STORE_BYTES: Final = 128 * 1024 * 1024
"""Nothing large goes through the object store; Ray's default of 30 % of memory would be reserved for nothing."""


@dataclass(slots=True)
class Cluster:
    """A Ray cluster that this process is connected to."""

    namespace: str
    owned: bool
    """Started by us, to be stopped by us."""
    counts_slots: bool
    """Whether the cluster has `OWN_ACTOR_SLOT`s; one that somebody else started may not."""

    @classmethod
    def start_or_join(cls, *, num_cpus: int | None, own_actors_max: int) -> Cluster:
        """The Ray of this process: the one the caller has initialised, or else a new local one."""
        prepare_environment()
        import ray  # a second of CPU: paid when a runtime starts, not when rayfold is imported

        owned = not ray.is_initialized()
        if owned:
            ray.init(
                address="local",
                num_cpus=num_cpus,
                namespace="rayfold",
                resources={OWN_ACTOR_SLOT: own_actors_max} if own_actors_max else None,
                object_store_memory=_OBJECT_STORE_BYTES,
                include_dashboard=False,
                logging_level=logging.ERROR,
            )
            _protect_token()
        namespace = ray.get_runtime_context().namespace
        return cls(namespace, owned, OWN_ACTOR_SLOT in ray.cluster_resources())

    @property
    def address(self) -> str:
        """Where another process reaches this cluster."""
        import ray

        address: str = ray.get_runtime_context().gcs_address
        return address

    def actor_named(self, name: str) -> Any:
        """The handle of a named actor. Raises `ValueError` if it has ended."""
        import ray

        return ray.get_actor(name, self.namespace)

    def stop(self) -> None:
        """End every process of a cluster that was started here; leave any other alone."""
        if self.owned:
            import ray

            self.owned = False
            ray.shutdown()


def prepare_environment() -> None:
    """Set what Ray reads from the environment, except what the caller has set.

    Whether Ray uses tokens is read when it is imported: once it is, changing that would set this process and the
    cluster it starts at odds with one another.
    """
    imported = "ray" in sys.modules
    for name, value in _ENVIRONMENT.items():
        if not (imported and name in _READ_AT_IMPORT):
            os.environ.setdefault(name, value)


def _protect_token() -> None:
    """Ray writes its token readable by everybody on the machine."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    with contextlib.suppress(OSError):
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            path.chmod(0o600)
