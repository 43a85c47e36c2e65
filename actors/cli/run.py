"""`rayfold run`: a system on one machine, kept up in the foreground for programs that connect to it.

Rules kept here: those of `cli/main.py`. Ctrl-C and SIGTERM end it in order.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.markup import escape

from .application import application_at
from .console import complaints, console

__all__ = ["run"]

INTERRUPTED: Final = 130

_LOOK_S: Final = 0.5
"""How soon a signal is noticed that another thread than this one has received."""


def run(
    directory: Annotated[Path, typer.Argument(help="The directory of the store; made if it is missing or empty.")],
    application: Annotated[str, typer.Argument(metavar="MODULE:NAME", help="The Application.")],
    partitions: Annotated[int | None, typer.Option(help="Of a new store.")] = None,
    cpus: Annotated[int | None, typer.Option(help="CPUs to use; all of the machine without.")] = None,
) -> None:
    """Run a system for other programs of this machine, until Ctrl-C. They use it with connect(DIRECTORY)."""
    from ..api.blocking import BlockingRuntime

    made = BlockingRuntime(directory, application_at(application), partitions=partitions, num_cpus=cpus)
    with ExitStack() as running:
        with complaints.status(f"starting {escape(str(directory))}"):
            store = running.enter_context(made).store
        console.print(
            f"{escape(str(store.path))} is ready: {store.partitions} partitions; Ctrl-C ends it", soft_wrap=True
        )
        with suppress(KeyboardInterrupt):
            while True:
                time.sleep(_LOOK_S)
    complaints.print("stopped")
    raise typer.Exit(INTERRUPTED)
