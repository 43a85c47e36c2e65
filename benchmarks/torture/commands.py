"""The command `rayfold torture`: its arguments and options. Nothing heavy is imported until it runs."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated, Final

import typer

from rayfold.actors.cli.console import PrintableConsole

__all__ = ["torture"]

_OK, _BROKEN, _INTERRUPTED = 0, 1, 130

_SEEDS: Final = 1_000_000
"""One is drawn from so many where none is given: short enough to be read out."""


def torture(
    minutes: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="Shared by the scenarios in their long form, kept to within one step of one scenario: seconds, or a "
            "minute for those with several nodes. What there is no time for is left out, and named. 0: the short forms "
            "of all.",
        ),
    ] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Of faults and load. Default: a new one, which is printed.")] = None,
    scenario: Annotated[
        list[str] | None, typer.Option("--scenario", metavar="NAME", help="Only this one; may be given repeatedly.")
    ] = None,
    list_all: Annotated[bool, typer.Option("--list", help="Show the scenarios and end.")] = False,
    directory: Annotated[Path | None, typer.Option(help="Where stores are made. Default: a temporary one.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the figures there as well.")
    ] = None,
) -> None:
    """Break disks, processes and networks under load, and check that nothing is lost and nothing happens twice.

    Exit code 1 if an invariant was broken.
    """
    from .contract import Scenario, scenario_named, scenarios
    from .local.harness import stop_ray
    from .runner import perform_all, write_report
    from .screen import Screen, list_scenarios

    console = PrintableConsole(highlight=False)
    if list_all:
        list_scenarios(console, scenarios())
        return
    chosen: list[Scenario] = []
    for name in scenario or [one.name for one in scenarios()]:
        found = scenario_named(name)
        if found is None:
            known = ", ".join(one.name for one in scenarios())
            raise typer.BadParameter(f"no scenario is named {name!r}; known: {known}", param_hint="--scenario")
        chosen.append(found)
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
    seed = random.SystemRandom().randrange(_SEEDS) if seed is None else seed
    console.print(f"seed {seed}, {len(chosen)} scenarios, {f'{minutes:g} minutes' if minutes else 'short forms'}")
    try:
        with Screen(console, chosen) as screen:
            run = perform_all(chosen, seed, minutes, screen, directory)
    finally:
        stop_ray()
    screen.summary(run)
    if json_file is not None:
        write_report(run, json_file)
    raise typer.Exit(_BROKEN if run.failed else _INTERRUPTED if run.interrupted else _OK)
