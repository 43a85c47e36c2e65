"""`rayfold run`: a system on one machine, kept up in the foreground for programs that connect to it.

Rules kept here: those of `cli/main.py`. Ctrl-C and SIGTERM end it in order. Once it is ready, SIGTERM is how a service
manager ends it, and no failure; the end of its Ray is one.
"""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Annotated, Final, NoReturn

import typer
from rich.markup import escape

from .application import application_at
from .console import complaints, console

__all__ = ["run"]

FAILED: Final = 1
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
        signal.signal(signal.SIGTERM, _terminate)
        code, why = _kept_up()
    complaints.print(why)
    raise typer.Exit(code)


class _Ended(BaseException):
    """SIGTERM."""


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a second one ends the end, as Ctrl-C does
    raise _Ended


def _kept_up() -> tuple[int, str]:
    """Return when it is over: the exit code, and the last line."""
    from ..cluster.ray_node import ended_servers

    try:
        while not (ended := ended_servers()):
            time.sleep(_LOOK_S)
    except KeyboardInterrupt:
        return INTERRUPTED, "stopped"
    except _Ended:
        return 0, "stopped"
    return FAILED, f"[bold red]error:[/] its Ray has ended ({', '.join(ended)}); start this command again"
