"""A run: what `rayfold bench SUITE` does. The straight line is `_run`: plan, measure, sum up, write, show.

Rules kept here: what was asked for is checked before anything starts; whatever ends the run, Ray is stopped, the stores
are removed, and what was measured is written.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any, Final, ParamSpec

from rich.markup import escape

from rayfold import RayfoldError
from rayfold.actors.cli.console import PrintableConsole

from ..harness.compare import compare
from ..harness.conditions import Watcher
from ..harness.contract import Options
from ..harness.machine import describe_machine, filesystem_of, machine_name
from ..harness.marks import IN_MEMORY
from ..harness.pinning import release_pins
from ..harness.registry import ALL, LONG, MODEL, OWN_CLUSTERS, SUITES, BenchRefused, cases_of, missing_extra
from ..harness.results import ResultsInvalid, Run, load_run, save_run
from ..harness.rounds import Plan, Record, measure_all
from ..harness.screen import Screen
from ..harness.summary import GENERATOR, summarize

P = ParamSpec("P")

MEASURED, BROKEN, REFUSED, INTERRUPTED = 0, 1, 2, 130

SECONDS: Final = 2.5
QUICK_SECONDS: Final = 1.0
ROUNDS: Final = 5
QUICK_ROUNDS: Final = 3
QUICK_BUDGET_S: Final = 570.0
"""Of the measuring, so that all of it, the page included, ends within 10 minutes."""
QUICK_CASE_TIMEOUT_S: Final = 120.0
CASE_TIMEOUT_S: Final = 900.0
"""Logs of 10 million events are filled within a case."""

ANSWER_S: Final = 5.0
"""For a cluster to take a connection."""

PLACES: Final = ("/var/tmp", ".")
"""Where stores are made if the directory for temporary files is in memory."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line has set; None where it has set nothing."""

    suite: str
    seconds: float | None = None
    repeat: int | None = None
    partitions: tuple[int, ...] | None = None
    replicas: tuple[int, ...] | None = None
    events: tuple[int, ...] | None = None
    pin: bool = False
    quick: bool = False
    only: str | None = None
    seed: int = 1
    directory: Path | None = None
    address: str | None = None
    json_file: Path | None = None
    report: Path | None = None


def _in_words(act: Callable[P, int]) -> Callable[P, int]:
    """Have what is to be done return the exit code also of what goes wrong: what is the user's to know becomes one
    line."""

    @wraps(act)
    def acted(*arguments: P.args, **options: P.kwargs) -> int:
        try:
            return act(*arguments, **options)
        except KeyboardInterrupt:
            _complain("stopped")
            return INTERRUPTED
        except (BenchRefused, ResultsInvalid, RayfoldError, OSError) as error:
            _complain(f"[bold red]error:[/] {escape(str(error))}")
            return REFUSED

    return acted


@_in_words
def run_bench(request: Request) -> int:
    """Run it. Returns the exit code: 0 measured, 1 an invariant broken or a case failed, 2 refused, 130 interrupted."""
    _check(request)
    return _run(request)


@_in_words
def run_compare(first: Path, second: Path, json_file: Path | None) -> int:
    """Show what moved between two runs. Returns 0, or 2 if either file holds no results."""
    comparison = compare(load_run(first), load_run(second))
    Screen(PrintableConsole(highlight=False)).comparison(comparison, (first.name, second.name))
    if json_file is not None:
        json_file.write_text(json.dumps(comparison.as_dict(), indent=1) + "\n", encoding="utf-8")
    return MEASURED


@_in_words
def run_report(results: Path, directory: Path) -> int:
    """Make the page of results. Returns 0, or 2 if the file holds none."""
    _check_extra()
    return _reported(load_run(results), directory)


@_in_words
def run_model(request: Request, sources: Sequence[Path], cores: Sequence[int], nodes: Sequence[int]) -> int:
    """Measure the demands, or take them from earlier runs, and predict. Returns the exit code, as `run_bench`."""
    from ..model.demands import DemandsMissing
    from ..model.prediction import predicted, summary_of

    _check(request)
    runs, interrupted = [load_run(source) for source in sources], False
    if not runs:
        with _workplace(request.directory) as place:
            measured, interrupted = _measured(request, _options(request, place))
            runs = [measured]
    try:
        cases = [] if interrupted else predicted(runs, cores, nodes, request.seed)
    except DemandsMissing as error:
        if sources:
            raise BenchRefused(str(error)) from None
        _complain(str(error))  # a case has failed: what was measured is written all the same
        cases = []
    kept = [] if sources else runs[0].cases
    sizes = {"cores": list(cores), "nodes": list(nodes)}
    options = {**runs[0].options, "sizes": sizes, "seed": request.seed}
    update = {"suites": [MODEL], "options": options, "cases": [*kept, *cases], "goals": []}
    whole = runs[0].model_copy(update=update)
    if request.json_file is not None:
        save_run(whole, _json_file(request.json_file, whole.machine, request))
    screen = Screen(PrintableConsole(highlight=False))
    screen.prediction(whole) if cases else screen.results(whole)
    PrintableConsole(highlight=False).print(summary_of(cases), soft_wrap=True)
    if request.report is not None:
        _reported(whole, request.report)
    return INTERRUPTED if interrupted else BROKEN if whole.broken or not cases else MEASURED


def _run(request: Request) -> int:
    with _workplace(request.directory) as place:
        run, interrupted = _measured(request, _options(request, place))
    if request.json_file is not None:
        save_run(run, _json_file(request.json_file, run.machine, request))
    Screen(PrintableConsole(highlight=False)).results(run)
    if request.report is not None:
        _reported(run, request.report)
    if interrupted:
        _complain("stopped; what was measured until then is above" + (" and written" if request.json_file else ""))
        return INTERRUPTED
    return BROKEN if run.broken else MEASURED


def _options(request: Request, place: Path) -> Options:
    """What was set, and what that leaves to the number of cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Options(
        directory=place,
        seconds=request.seconds or (QUICK_SECONDS if request.quick else SECONDS),
        quick=request.quick,
        seed=request.seed,
        partitions=request.partitions or ((1, 2) if request.quick else _doubling(cores)),
        replicas=request.replicas or ((0, 1) if request.quick else (0, *_doubling(cores))),
        events=request.events,
        pin=request.pin,
        address=request.address,
    )


def _measured(request: Request, options: Options) -> tuple[Run, bool]:
    """The results, and whether Ctrl-C ended the run."""
    suites = [suite for suite in SUITES if request.suite in {suite, ALL}]
    if request.suite == ALL:
        left_out = (
            {MODEL} | (LONG if request.quick else frozenset()) | (OWN_CLUSTERS if request.address else frozenset())
        )
        suites = [suite for suite in suites if suite not in left_out]
    plan = _plan(request, options, suites)
    record, started_at = Record(), _now()
    machine = describe_machine(options.directory)
    screen = Screen(PrintableConsole(highlight=False), plan)
    was_connected = _is_connected()
    try:
        options = _joined(options)
        with screen, Watcher(ray_is_ours=request.address is not None) as watcher:
            asyncio.run(measure_all(plan, options, record, watcher, screen, _between))
    except KeyboardInterrupt:  # the second Ctrl-C, which does not wait for the case to put its things away
        record.interrupted = True
    finally:
        if not was_connected:  # else it is the program's that called us
            _stop_ray()
    results = summarize(
        plan,
        record,
        suites=suites,
        options=_as_said(request, options),
        machine=machine,
        started_at=started_at,
        finished_at=_now(),
    )
    return results, record.interrupted


def _plan(request: Request, options: Options, suites: list[str]) -> Plan:
    """What to measure; with the load generator's ceiling first if anything depends on it."""
    cases = [case for case in cases_of(suites, options) if not request.only or request.only in case.key]
    if not cases:
        raise BenchRefused(f"--only {request.only!r}: no case of {', '.join(suites)} has that in its name")
    limited = any(case.throughput for case in cases)
    first = [case for case in cases_of(["ceiling"], options) if limited and case.name == GENERATOR]
    keys = {case.key for case in first}
    rest = [case for case in cases if case.key not in keys]
    quick = request.quick
    return Plan(
        first=first,
        cases=rest,
        rounds=request.repeat or (QUICK_ROUNDS if quick else ROUNDS),
        budget_s=QUICK_BUDGET_S if quick else None,
        case_timeout_s=(QUICK_CASE_TIMEOUT_S if quick else CASE_TIMEOUT_S) + 40 * options.seconds,
    )


def _between() -> None:
    """Before each case: all cores again, and no garbage of the case before it."""
    release_pins()
    gc.collect()


def _check(request: Request) -> None:
    """Raise `BenchRefused` for what cannot be."""
    _check_extra()
    if request.suite not in {*SUITES, ALL}:
        raise BenchRefused(f"there is no suite {request.suite!r}; there are {', '.join(SUITES)} and {ALL}")
    if request.seconds is not None and not 0.05 <= request.seconds <= 3600:
        raise BenchRefused(f"--seconds {request.seconds:g}: choose 0.05 to 3600")
    if request.repeat is not None and request.repeat < 1:
        raise BenchRefused(f"--repeat {request.repeat}: at least one round is needed")
    if request.directory is not None and not request.directory.is_dir():
        raise BenchRefused(f"--directory {request.directory}: there is no such directory")
    if request.json_file is not None and not request.json_file.absolute().parent.is_dir():
        raise BenchRefused(f"--json {request.json_file}: cannot write a file there")
    if request.report is not None and request.report.exists() and not request.report.is_dir():
        raise BenchRefused(f"--report {request.report}: that is a file, and the report is a directory")
    if request.address is not None:
        if request.suite in OWN_CLUSTERS:
            raise BenchRefused(f"--address: the suite {request.suite} starts clusters of its own; leave it out")
        _check_address(request.address)


def _check_address(address: str) -> None:
    """Whether something answers there: Ray itself would try for minutes. Forms without a port are left to Ray."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "/" not in address:
        try:
            socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
        except (OSError, OverflowError) as error:
            raise BenchRefused(f"--address {address}: no cluster answers there: {error}") from None


def _check_extra() -> None:
    if missing := missing_extra():
        raise BenchRefused(f"not installed: {', '.join(missing)}; the benchmarks need pip install rayfold[bench]")


def _reported(run: Run, directory: Path) -> int:
    """Make the page; matplotlib is imported only now."""
    from ..report.page import write_report

    page = write_report(run, directory)
    PrintableConsole(highlight=False).print(f"report: {escape(str(page))}", soft_wrap=True)
    return MEASURED


@contextlib.contextmanager
def _workplace(directory: Path | None) -> Iterator[Path]:
    """A new directory for the stores, removed at the end; not in memory if that can be."""
    above = directory
    if above is None:
        places = [Path(tempfile.gettempdir()), *map(Path, PLACES)]
        usable = [place for place in places if os.access(place, os.W_OK) and filesystem_of(place) not in IN_MEMORY]
        above = usable[0] if usable else places[0]
    with tempfile.TemporaryDirectory(prefix="rayfold-bench-", dir=above, ignore_cleanup_errors=True) as place:
        yield Path(place)


def _joined(options: Options) -> Options:
    """Connect to the cluster that was named, if any. Raises `Unavailable` if there is none, `CallerError` if that is no
    address.

    Returns the options: with the address at which the cluster knows itself, which all runtimes are compared with;
    without the address if no node has a data folder, because then every store is on this machine.
    """
    address = options.address
    if address is None:
        return options
    from rayfold.actors.cluster.ray_cluster import Cluster

    cluster = Cluster.start_or_join(num_cpus=None, own_actors_max=0, cluster=address)
    if cluster.nodes():
        return replace(options, address=cluster.address)
    _complain(f"no node of {address} was started with rayfold node, so none has a place for logs: all of them are here")
    return replace(options, address=None)


def _is_connected() -> bool:
    """Whether this process has a Ray."""
    if "ray" not in sys.modules:
        return False
    import ray

    connected: bool = ray.is_initialized()
    return connected


def _stop_ray() -> None:
    """End the Ray of this run, or leave the cluster that was joined, which goes on."""
    from ..suites.running import stop_shared_ray

    stop_shared_ray()
    if _is_connected():
        import ray

        ray.shutdown()


def _json_file(said: Path, machine: dict[str, Any], request: Request) -> Path:
    if not said.is_dir():
        return said
    return said / f"{machine_name(machine)}-{request.suite}{'-quick' if request.quick else ''}.json"


def _as_said(request: Request, options: Options) -> dict[str, Any]:
    """The options of a run as they go into the results: no place on this machine among them."""
    kept = {name: value for name, value in asdict(options).items() if name not in {"directory", "address"}}
    given = {"partitions": options.partitions, "replicas": options.replicas, "events": options.events}
    lists = {name: None if numbers is None else list(numbers) for name, numbers in given.items()}
    return {**kept, **lists, "joined": request.address is not None}


def _doubling(cores: int) -> tuple[int, ...]:
    """1, 2, 4 … up to the number of cores, which is the last; at least 1, 2, 4."""
    powers = [2**power for power in range(cores.bit_length()) if 2**power <= cores]
    return tuple(sorted({*powers, cores, 1, 2, 4}))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _complain(line: str) -> None:
    PrintableConsole(stderr=True, highlight=False, soft_wrap=True).print(line)
