"""The command `rayfold demo`: its arguments and options. Nothing heavy is imported until it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["demo"]  # for the entry point


def demo(
    directory: Annotated[
        Path | None,
        typer.Option(help="Keep the store there; a second run on it adds nothing. Default: a temporary one."),
    ] = None,
    flights: Annotated[int | None, typer.Option(help="How many flights, from the first of January on.")] = None,
    all_flights: Annotated[bool, typer.Option("--all", help="The whole year: 336,776 flights.")] = False,
    partitions: Annotated[
        int | None, typer.Option(help="Of a new store. Default: 2, or as many as the cluster has nodes.")
    ] = None,
    kill: Annotated[bool, typer.Option(help="Kill the processes of an airport and of a partition on the way.")] = True,
    replicas: Annotated[int, typer.Option(help="Of each read model.")] = 1,
    cluster: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Run it over the nodes of a cluster: auto, or HOST:PORT of its head."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the figures there as well.")
    ] = None,
) -> None:
    """Replay real flights of 2013 from New York, kill two processes on the way, and verify every figure."""
    from .demo import DemoOptions, run_demo

    options = DemoOptions(directory, flights, all_flights, json_file, partitions, kill, replicas, cluster)
    raise typer.Exit(run_demo(options))
