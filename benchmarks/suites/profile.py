"""Profile: where the CPU time of a command, a query and a replayed event goes, function by function.

What to read when a goal is missed: the CPU of each role is measured from outside (`/proc`), and py-spy's samples of
the role's process show in which function of ours it was spent. What a C extension does (LMDB, pydantic, msgpack) counts
for the function of ours that called it; the rest for Ray, for Python, or for threads that run no Python.

Rule kept here: figures of this suite are shares of CPU time and never speeds: py-spy stops a process for each look.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Final

from ..harness.contract import Case, Figure, Options, Sample, hold, of_each
from ..workloads.bank import Balances, questions
from ..workloads.keys import draw
from .load import ask_all
from .measuring import CpuMeter
from .read import fill
from .replay import rebuild_again
from .running import Running, fresh_folder, running_bank
from .write import saturate

LOOKS_PER_S: Final = 100
PLACES_MAX: Final = 14
"""Functions listed of each role; the rest is summed up as `others`."""

CATCH_UP_S: Final = 1.0
START_S: Final = 0.3
"""In which py-spy finds out about a process before its first look."""

OURS: Final = tuple(f"rayfold/{folder}/" for folder in ("actors", "runtime", "benchmarks"))
FOLDERS: Final = ("actors/", "runtime/", "benchmarks/")


def cases(options: Options) -> list[Case]:
    """Commands at two depths, queries, and catching up; a quick run has commands and catching up alone."""
    skip = "" if _spy() else "not installed: py-spy"
    depths = (1_024,) if options.quick else (64, 1_024)
    return [
        *of_each("profile", "commands", _commands, [{"depth": depth} for depth in depths], skip=skip),
        *([] if options.quick else [Case("profile", "queries", {"depth": 4_096}, _queries, skip)]),
        Case("profile", "catch-up", {}, _catch_up, skip),
    ]


async def _commands(options: Options, depth: int) -> Sample:
    """One partition and one projector, so that every role has something to do."""
    async with running_bank(options, replicas=1) as running:
        async with _looking_at(running, options.seconds) as places:
            load = await saturate(running, depth, "uniform", options)
        hold(load.failures, await running.violations(load.receipts))
    return Sample(_figures(load.cpu_s, places, load.counted, "command"))


async def _queries(options: Options, depth: int) -> Sample:
    async with running_bank(options, replicas=1) as running:
        filled = await fill(running, options)
        questions_of_all = questions(draw("uniform", options.seed))
        async with _looking_at(running, options.seconds) as places:
            load = await ask_all(
                running.bank, Balances, questions_of_all, depth, options.seconds * 0.4, options.seconds, running.cpu()
            )
        hold(load.failures, filled.failures)
    return Sample(_figures(load.cpu_s, places, load.counted, "query"))


async def _catch_up(options: Options) -> Sample:
    """Over and over in this process, on a thread of its own."""
    meter, events = CpuMeter({"projector": [os.getpid()]}), 0
    await asyncio.to_thread(rebuild_again, options)  # makes the log
    with fresh_folder(options) as folder:
        counted = asyncio.create_task(_spied({"projector": os.getpid()}, folder, max(options.seconds, CATCH_UP_S)))
        await asyncio.sleep(START_S)
        meter.reset()
        while not counted.done():
            events += await asyncio.to_thread(rebuild_again, options)
        used_s = meter.used_s()
        places = await counted
    return Sample(_figures(used_s, places, events, "event"))


def _figures(
    used_s: Mapping[str, float], places: Mapping[str, Counter[str]], count: int, each: str
) -> dict[str, Figure]:
    """Microseconds of CPU by role and function: `partitions: append (runtime/log/writer.py)`."""
    figures: dict[str, Figure] = {}
    for role, looks in places.items():
        whole, each_us = looks.total(), used_s.get(role, 0.0) * 1e6 / max(count, 1)
        told = looks.most_common(PLACES_MAX)
        rest = whole - sum(number for _, number in told)
        for place, number in [*told, ("others", rest)] if whole else []:
            figures[f"{role}: {place}"] = Figure(each_us * number / whole, f"us of CPU a {each}", "neither")
    return figures


@contextlib.asynccontextmanager
async def _looking_at(running: Running, seconds: float) -> AsyncIterator[dict[str, Counter[str]]]:
    """Sample the first process of each role meanwhile. The samples are complete when the block has ended."""
    seen: dict[str, Counter[str]] = {}
    pids = {role: of_role[0] for role, of_role in running.pids.items() if of_role}
    looking = asyncio.create_task(_spied(pids, running.folder, seconds))
    try:
        await asyncio.sleep(START_S)
        yield seen
    finally:
        seen |= await looking


async def _spied(pids: Mapping[str, int], folder: Path, seconds: float) -> dict[str, Counter[str]]:
    """Looks by role and place. Raises `RuntimeError` with what py-spy has printed if it may not sample."""
    return dict(
        zip(pids, await asyncio.gather(*(_spied_one(pid, folder, seconds) for pid in pids.values())), strict=True)
    )


async def _spied_one(pid: int, folder: Path, seconds: float) -> Counter[str]:
    output = folder / f"looks-{pid}.txt"
    command = [str(_spy()), "record", "--pid", str(pid), "--rate", str(LOOKS_PER_S), "--format", "raw"]
    process = await asyncio.create_subprocess_exec(
        *command, "--duration", str(max(1, round(seconds))), "--output", str(output),
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, said = await process.communicate()
    if process.returncode or not output.exists():
        raise RuntimeError(f"py-spy may not sample process {pid}: {said.decode(errors='replace').strip()[-200:]}")
    return places_of(output.read_text(errors="replace"))


def places_of(stacks: str) -> Counter[str]:
    """Looks by place, from py-spy's raw form: `outer (file:line);inner (file:line) 12` on each line."""
    places: Counter[str] = Counter()
    for line in stacks.splitlines():
        stack, _, number = line.rpartition(" ")
        places[_place(stack.split(";"))] += int(number)
    return places


def _place(stack: list[str]) -> str:
    """The innermost function of ours, and what to call it if there is none."""
    for frame in reversed(stack):
        if (place := shown_place(frame)) is not None:
            return place
    if stack == [""]:
        return "native threads, Ray's mostly"
    return "Ray" if any("/ray/" in frame or " (ray/" in frame for frame in stack) else "Python"


def shown_place(frame: str) -> str | None:
    """`append (runtime/log/writer.py)` for a frame of ours, whose path py-spy may have cut; None for any other."""
    function, _, where = frame.partition(" (")
    path = where.rpartition(":")[0]
    for ours, folder in zip(OURS, FOLDERS, strict=True):
        _, found, rest = path.rpartition(ours)
        if found:
            return f"{function} ({folder}{rest})"
        if path.startswith(folder):
            return f"{function} ({path})"
    return None


def _spy() -> str | None:
    """py-spy's program: beside this interpreter, where `pip install` puts it, or on the path."""
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.exists() else shutil.which("py-spy")
