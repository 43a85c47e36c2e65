"""Console: where every command of the command line writes to.

Beside all steps. Rich's console, on which nothing that comes from outside can control the terminal: each piece of text
that is about to be written is made printable (`runtime/printable.py`). What moves the cursor and sets colours is Rich's
own and passes; it is no text.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from ..runtime.printable import printable_lines

__all__ = ["PrintableConsole", "complaints", "console"]


class PrintableConsole(Console):
    """A console of Rich's whose text is printable, whatever it consists of."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """See Rich. All that is printed, in tables and live screens as well, comes through here."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(printable_lines(segment.text), segment.style)


console = PrintableConsole(highlight=False)
complaints = PrintableConsole(stderr=True, highlight=False)
