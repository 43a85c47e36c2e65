"""Model: the cases that the demands of the model are computed from (`benchmarks/model/demands.py`), and some as checks.

Most are those of other suites, at one setting each. What those have not: writes beside a replica without a query, and
queries in batches so small that what a batch costs shows.

Rule kept here: CPU time is measured, not speed, so that a machine with other things to do as well is good enough.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from ..harness.contract import Case, Options, Sample, hold, of_each
from . import ceiling, latency, read, write
from .running import running_bank

KEYS: Final = {
    "ceiling/fdatasync",
    "ceiling/null call?actor=sync&size_bytes=100",
    "write/saturated writes?depth=64&keys=uniform&partitions=1&placement=shared",
    "write/saturated writes?depth=1024&keys=uniform&partitions=1&placement=shared",
    "write/saturated writes?depth=4096&keys=uniform&partitions=2&placement=shared",
    "read/saturated reads?depth=4096&replicas=1",
    "latency/one at a time",
}


def cases(options: Options) -> list[Case]:
    """One setting of each; two more partitions and one command at a time are for the checks alone."""
    small = replace(options, quick=True, partitions=(1, 2), replicas=(1,))
    others = [case for suite in (ceiling, write, read, latency) for case in suite.cases(small)]
    return [
        *(case for case in others if case.key in KEYS),
        *of_each(
            "model", "writes beside a replica", _writes, [{"depth": 1_024, "partitions": 1, "replicas": 1}],
            throughput=True,
        ),
        *of_each("model", "reads in small batches", read.saturated, [{"depth": 64, "replicas": 1}], throughput=True),
    ]  # fmt: skip


async def _writes(options: Options, depth: int, partitions: int, replicas: int) -> Sample:
    async with running_bank(options, partitions=partitions, replicas=replicas) as running:
        load = await write.saturate(running, depth, "uniform", options)
        hold(load.failures, await running.violations(load.receipts))
        return Sample(write.command_figures(load), notes=running.notes | {"receipts": len(load.receipts)})
