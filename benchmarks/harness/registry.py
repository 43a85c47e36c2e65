"""The suites by name, and how to get at their cases. Imports none of them: the command line shows this list.

Rule kept here: what a suite needs beyond Rayfold itself is in the extra `bench`; without it there is one clear line.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Final

from .contract import Case, Options

SUITES: Final = {
    "ceiling": "what the machine allows, and a plain program that does the same job",
    "write": "saturated durable commands a second, by partitions, depth, placement and keys",
    "read": "queries a second, by replicas and depth",
    "scale": "writes and reads together: grid, frontier, interference",
    "latency": "latency from the intended send time, at 10 to 90 % of saturation",
    "freshness": "from acknowledged to visible, by write rate",
    "replay": "cold start, activation, rebuild, against the size of the log",
    "jobs": "SmallBank, YCSB and the flights of the demo, each with its oracle",
    "clients": "several programs at once: writes, reads and both, by the size of the system",
    "nodes": "1 to 3 nodes of this machine against none, moves under load, a node lost and back",
    "processes": "steps of processes a second, how soon they react, timers, effects",
    "peers": "the same job with other libraries, side by side",
    "model": "the CPU of each step, and what a queueing model makes of it for 1 to 64 cores and 1 to 100 nodes",
    "profile": "where the CPU time of a command, a query and a replayed event goes",
}
"""Suite -> what it measures, in the order in which `all` lists them."""

ALL: Final = "all"

MODEL: Final = "model"
"""The suite with a command of its own, which `all` leaves out: what it measures is in other suites."""

LONG: Final = frozenset({"clients", "nodes"})
"""Suites that a quick run of all leaves out: starting the clusters alone takes minutes of its ten."""

OWN_CLUSTERS: Final = frozenset({"nodes"})
"""Suites that lose and start nodes, and so cannot be measured on a cluster that is only joined."""

EXTRA: Final = {"hdrh": "hdrhistogram", "scipy": "scipy", "matplotlib": "matplotlib"}
"""Module -> package that the harness cannot do without. Peers may be missing: their cases are skipped."""


class BenchRefused(Exception):
    """The run cannot be as it was asked for. Nothing was started."""


def missing_extra() -> list[str]:
    """The packages of the extra that are not installed."""
    return [package for module, package in EXTRA.items() if find_spec(module) is None]


def cases_of(suites: Sequence[str], options: Options) -> list[Case]:
    """All cases of the suites. Raises `BenchRefused` if two have one key: their values would be mixed."""
    cases = [case for suite in suites for case in import_module(f"rayfold.benchmarks.suites.{suite}").cases(options)]
    keys: set[str] = set()
    for case in cases:
        if case.key in keys:
            raise BenchRefused(f"two cases are called {case.key}")
        keys.add(case.key)
    return cases
