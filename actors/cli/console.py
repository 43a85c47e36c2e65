"""Console: where every command of the command line writes to.

Beside all steps. Rich's console, on which nothing that comes from outside can control the terminal: each piece of text
that is about to be written is made printable (`runtime/printable.py`). What moves the cursor and sets colours is Rich's
own and passes; it is not a text.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import typer
from rich.console import Console, ConsoleDimensions, ConsoleOptions, RenderableType
from rich.segment import Segment
from typer.core import TyperGroup

from ...runtime.errors import StorageFailed
from ...runtime.printable import printable_lines
from ...runtime.private import open_private

__all__ = ["CommandList", "PrintableConsole", "complaints", "console", "write_report"]


PIPE_COLUMNS: Final = 4_096
"""Width of a line in a pipe or a file, unless COLUMNS sets it: more than any table takes."""


class PrintableConsole(Console):
    """A console of Rich's whose text is printable, whatever it consists of. Without a terminal, as in a pipe, its lines
    are as long as they are, where Rich cuts tables at 80 columns."""

    @property
    def size(self) -> ConsoleDimensions:
        """See Rich."""
        found = super().size
        wide = self.is_terminal or self._width is not None or "COLUMNS" in self._environ
        return found if wide else found._replace(width=PIPE_COLUMNS)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """See Rich. All that is printed, in tables and live screens as well, comes through here."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(printable_lines(segment.text), segment.style)


console = PrintableConsole(highlight=False)
complaints = PrintableConsole(stderr=True, highlight=False)


class CommandList(TyperGroup):
    """A command line whose list of commands shows the first sentence of each one's help whole, over as many lines as it
    takes; Typer ends it with dots where the line ends. Ctrl-C in a command is `typer.Abort`, which `main.py` reports;
    Typer makes an exit code of it, without a line."""

    def invoke(self, ctx: Any) -> Any:
        """See Typer."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as pressed:
            raise typer.Abort from pressed

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """See Typer."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, _first_sentence(one.help or "")) for name, one in commands if one is not None and not one.hidden]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


def _first_sentence(text: str) -> str:
    paragraph = " ".join(text.strip().split("\n\n", 1)[0].split())
    return re.split(r"(?<=[.!?])\s", paragraph, maxsplit=1)[0]


def write_report(path: Path | None, values: Mapping[str, Any]) -> None:
    """The figures of a command in the file that its caller has named, if any. Written beside its place and then moved:
    a reader finds it whole. Readable to others as far as the umask allows. Raises `StorageFailed`, `NotPrivate`."""
    if path is None:
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:  # made here: an existing file of that name, such as another user's link, is not written through
        descriptor = open_private(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            umask = os.umask(0o077)
            os.umask(umask)
            os.fchmod(descriptor, 0o666 & ~umask)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(json.dumps(values, indent=2) + "\n")
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StorageFailed(str(path), f"cannot write the report: {error.strerror or error}") from error
