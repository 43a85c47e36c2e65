"""The commands `rayfold bench …`: what the command line takes. Nothing heavy is imported until one runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...actors.cli.console import CommandList
from ..harness.registry import ALL, MODEL, SUITES

bench = typer.Typer(
    name="bench",
    cls=CommandList,
    help="Measure: how writes and reads scale, against the machine's limits and against others.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

EVENTS_MIN = 10_000
"""In a log: each of the thousand accounts that commands go to has ten of them."""

CORES_MAX = 64
NODES_MAX = 100
"""Of the model: beyond them a simulation takes minutes."""

JsonOption = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write the results there; into a directory: named by machine."),
]


def _numbers(said: str, what: str, least: int) -> tuple[int, ...]:
    """`1,2,4` as numbers. Raises `BadParameter`, which is shown in one line."""
    try:
        numbers = tuple(dict.fromkeys(int(part) for part in said.split(",")))
    except ValueError:
        raise typer.BadParameter(f"{said!r} is not a list of numbers, such as 1,2,4", param_hint=what) from None
    if any(number < least for number in numbers):
        raise typer.BadParameter(f"{said!r}: each has to be at least {least}", param_hint=what)
    return numbers


def _sizes(said: str) -> tuple[int, ...]:
    """`100000,1000000` as sizes of logs, the smallest first. Raises `BadParameter`."""
    sizes = tuple(sorted(_numbers(said, "--events", EVENTS_MIN)))
    if len(sizes) < 2:
        raise typer.BadParameter(f"{said!r} is one size; a log is compared with the smallest", param_hint="--events")
    return sizes


def _run(
    context: typer.Context,
    seconds: Annotated[float | None, typer.Option(help="Of each timed part. Default: 2.5; 1 with --quick.")] = None,
    repeat: Annotated[int | None, typer.Option(min=1, help="Rounds. Default: 5; 3 with --quick.")] = None,
    partitions: Annotated[
        str | None, typer.Option(metavar="1,2,4", help="Default: powers of two up to the cores; 1,2 with --quick.")
    ] = None,
    replicas: Annotated[
        str | None,
        typer.Option(metavar="0,1,2", help="Default: 0 and powers of two up to the cores; 0,1 with --quick."),
    ] = None,
    events: Annotated[
        str | None,
        typer.Option(metavar="100000,1000000", help="In the logs of the replay suite, at least two. Default: its own."),
    ] = None,
    pin: Annotated[bool, typer.Option(help="Writers, projectors, load generator and Ray on disjoint cores.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Smaller sizes; all of it within 10 minutes.")] = False,
    only: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Only the cases with this in their name, such as 'commands after'."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of keys, mixes and the order of the cases.")] = 1,
    directory: Annotated[Path | None, typer.Option(help="Where stores are made. Default: a temporary one.")] = None,
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster to measure on. Default: one of its own.")
    ] = None,
    json_file: JsonOption = None,
    report: Annotated[Path | None, typer.Option(metavar="DIR", help="Write a page with plots there.")] = None,
) -> None:
    from .run import Request, run_bench

    request = Request(
        suite=context.info_name or ALL,
        seconds=seconds,
        repeat=repeat,
        partitions=None if partitions is None else _numbers(partitions, "--partitions", 1),
        replicas=None if replicas is None else _numbers(replicas, "--replicas", 0),
        events=None if events is None else _sizes(events),
        pin=pin,
        quick=quick,
        only=only,
        seed=seed,
        directory=directory,
        address=address,
        json_file=json_file,
        report=report,
    )
    raise typer.Exit(run_bench(request))


for _suite, _measures in {**SUITES, ALL: "every suite"}.items():
    if _suite == MODEL:
        continue
    bench.command(_suite, help=f"Measure {_measures}." if _suite == ALL else f"{_measures[0].upper()}{_measures[1:]}.")(
        _run
    )


@bench.command(MODEL)
def _model(
    sources: Annotated[
        list[Path] | None,
        typer.Option(
            "--from", metavar="RUN.json", help="Take the demands from this run; what it lacks from the next --from."
        ),
    ] = None,
    cores: Annotated[str, typer.Option(metavar="1,2,4", help="Of each node.")] = "1,2,4,8,16,32,64",
    nodes: Annotated[str, typer.Option(metavar="1,10", help="How many.")] = "1,10,100",
    seconds: Annotated[float, typer.Option(help="Of each timed part.")] = 1.0,
    repeat: Annotated[int, typer.Option(min=1, help="Rounds.")] = 3,
    seed: Annotated[int, typer.Option(help="Of keys, the order of the cases, and the model.")] = 1,
    directory: Annotated[Path | None, typer.Option(help="Where stores are made. Default: a temporary one.")] = None,
    json_file: JsonOption = None,
    report: Annotated[Path | None, typer.Option(metavar="DIR", help="Write a page with plots there.")] = None,
) -> None:
    """Predict other sizes from the CPU time of each step, and show how far that is from what was measured."""
    from .run import Request, run_model

    sizes = _numbers(cores, "--cores", 1), _numbers(nodes, "--nodes", 1)
    if max(sizes[0]) > CORES_MAX or max(sizes[1]) > NODES_MAX:
        raise typer.BadParameter(f"at most {CORES_MAX} cores and {NODES_MAX} nodes", param_hint="--cores, --nodes")
    request = Request(
        suite=MODEL, seconds=seconds, repeat=repeat, seed=seed, directory=directory, json_file=json_file, report=report
    )
    raise typer.Exit(run_model(request, sources or [], *sizes))


@bench.command("compare")
def _compare(
    first: Annotated[Path, typer.Argument(metavar="A.json", help="Results of a run.")],
    second: Annotated[Path, typer.Argument(metavar="B.json", help="Results of another, set against it.")],
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write it there as well.")] = None,
) -> None:
    """Which figures have moved beyond their intervals, and which way."""
    from .run import run_compare

    raise typer.Exit(run_compare(first, second, json_file))


@bench.command("report")
def _report(
    results: Annotated[Path, typer.Argument(metavar="RUN.json", help="Results of a run.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where the page goes, its JSON beside it.")],
) -> None:
    """Make the page with plots of results that are there already."""
    from .run import run_report

    raise typer.Exit(run_report(results, directory))
