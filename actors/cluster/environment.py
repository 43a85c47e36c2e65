"""Environment: the settings that Rayfold needs of Ray, as the environment variables from which Ray reads them.

Rule kept here: what the user has set is left as it is.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from .node import DATA_VARIABLE

__all__ = [
    "GCS_FOLDER",
    "OBJECT_STORE_BYTES",
    "OWN_ACTOR_SLOT",
    "kept_from_processes",
    "node_environment",
    "prepare_environment",
]

OWN_ACTOR_SLOT: Final = "rayfold_own_actor"
"""The Ray resource of which each own actor takes one: `num_cpus=0` alone would admit any number of them."""

_ENVIRONMENT: Final = {
    # Ray starts workers at nice 15: they would lose every race against the process that calls them.
    "RAY_worker_niceness": "0",
    # A client that reaches a Ray cluster can run code in it: only with the token.
    "RAY_AUTH_MODE": "token",
    # Under `uv run` Ray would start workers in a copy of the project with a fresh environment.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Whatever calls Ray after a runtime has left it would otherwise join any Ray that it finds on this machine.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # A node would answer a program only when the first workers are up: without end if one of them hangs, and Ray waits
    # for it in C++ without releasing the interpreter, so that the program does not notice Ctrl-C either.
    "RAY_prestart_worker_first_driver": "0",
}

_OF_A_PROGRAM: Final = {
    # After that long without its head Ray ends the process, which is not Ray's: a web service, for example. Ray's own
    # 60 s stay for the processes of nodes (`node_environment`).
    "RAY_gcs_rpc_server_reconnect_timeout_s": "31536000",
}
"""For the process that uses a cluster, and not for the nodes that it starts."""

_LOOPBACK: Final = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""A local cluster otherwise listens on all interfaces; `0` makes it loopback only, and no other machine can join."""

_READ_AT_IMPORT: Final = {"RAY_AUTH_MODE", _LOOPBACK, "RAY_ENABLE_UV_RUN_RUNTIME_ENV"}

_DETECTION: Final = {
    # A lost node is noticed after some 5 s, where Ray's defaults take up to 65 s. Only where there are several nodes:
    # on a single machine the check has no use, and a false alarm on a busy machine ends everything.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    # Not `RAY_grpc_client_keepalive_*`: at 3 s Ray's own servers answer with "too many pings" and close the connection,
    # and a killed or frozen node was noticed no sooner with it (at once, and after 8.6 s).
    # Not `RAY_gcs_rpc_server_reconnect_timeout_s`, which would have the processes of a cut-off node end sooner than
    # after Ray's 60 s: the nodes of a head that restarts would end as well. That a lost node's actors go on is harmless
    # here: the log refuses what they append once another has taken over.
}

GCS_FOLDER: Final = "gcs"
"""In the head's data folder: Ray's own directory of nodes, actors and names, so that a restarted head has them."""

OBJECT_STORE_BYTES: Final = 128 * 1024 * 1024
"""Nothing large goes through the object store; Ray's default of 30 % of memory would be reserved for nothing."""


def prepare_environment(*, loopback: bool = True) -> None:
    """Set what Ray reads from the environment, except what the caller has set.

    Whether Ray uses tokens is read when it is imported: once it is, changing that would set this process and the
    cluster it starts at odds with one another. `loopback`: whether the cluster keeps to this machine.
    """
    imported = "ray" in sys.modules
    for name, value in {**_ENVIRONMENT, **_OF_A_PROGRAM, **({_LOOPBACK: "0"} if loopback else {})}.items():
        if not (imported and name in _READ_AT_IMPORT):
            os.environ.setdefault(name, value)


@contextlib.contextmanager
def kept_from_processes() -> Iterator[None]:
    """The processes of a Ray of this program, which inherit its environment, do without what is for programs: they
    would never end after a program that was killed. So does the program itself, since Ray reads its settings between
    starting them and connecting to them: without its Ray for 60 s, it is ended by it."""
    ours = {name: value for name, value in _OF_A_PROGRAM.items() if os.environ.get(name) == value}
    for name in ours:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(ours)


def node_environment(base: Mapping[str, str], data: Path, *, head: bool, loopback: bool) -> dict[str, str]:
    """The environment of the processes of a node: `base`, the data folder, and settings that `base` does not have.

    head: also keep Ray's directory in the data folder. loopback: whether all nodes are on this machine.
    """
    environment = {**_ENVIRONMENT, **_DETECTION, **base, DATA_VARIABLE: str(data)}
    environment.pop("RAY_ADDRESS", None)  # of another cluster: this node's workers would inherit it
    for name, value in _OF_A_PROGRAM.items():
        if environment.get(name) == value:
            del environment[name]
    if loopback:
        environment[_LOOPBACK] = "0"
    else:
        environment.pop(_LOOPBACK, None)
    if head:
        environment.setdefault("RAY_gcs_storage", "rocksdb")
        environment.setdefault("RAY_gcs_storage_path", str(data / GCS_FOLDER))
    return environment
