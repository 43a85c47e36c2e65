"""Options: arguments of commands of the command line that several of them have, written once.

Rule kept here: an option that has the same name in two commands means the same in both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...runtime.errors import CallerError

__all__ = ["AddressOption", "ByOption", "JsonOption", "ReasonOption", "SystemArgument", "check_signed"]

SystemArgument = Annotated[Path, typer.Argument(help="The directory of a store, or the name of an application.")]

AddressOption = Annotated[str, typer.Option(metavar="HOST:PORT", help="Address of the cluster, for an application.")]

JsonOption = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures to this file, as JSON.")
]

ByOption = Annotated[str | None, typer.Option("--by", metavar="NAME", help="Who does it; stored with it.")]

ReasonOption = Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why; stored with it.")]


def check_signed(action: str, by: str | None, reason: str | None) -> tuple[str, str]:
    """Who does it and why. Raises `CallerError` where one of them is missing."""
    if not by or not reason:
        raise CallerError(f"{action} needs --by NAME and --reason TEXT, which are stored with it")
    return by, reason
