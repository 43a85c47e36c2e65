"""No command of the command line lets a text from outside control the terminal."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from rayfold.actors.console import PrintableConsole

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "Account/\x1b]0;owned\x07\x9b2J\u202e"


def shown(*, colours: bool = True) -> tuple[PrintableConsole, io.StringIO]:
    out = io.StringIO()
    return PrintableConsole(file=out, highlight=False, force_terminal=colours, width=200), out


def without_colours(text: str) -> str:
    """Rich's own escapes: colours, and the movements of the cursor of a live screen."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).replace("\r", "")


@pytest.mark.parametrize("how", ["a line", "an error", "a table", "a panel", "a live screen"])
def test_an_id_does_not_control_the_terminal(how: str) -> None:
    console, out = shown()
    if how == "a line":
        console.print(escape(HOSTILE), soft_wrap=True)
    elif how == "an error":
        console.print(f"[bold red]error:[/] {escape(HOSTILE)}")
    elif how == "a panel":
        console.print(Panel(HOSTILE, title=HOSTILE))
    else:
        table = Table(title=HOSTILE)
        table.add_column(HOSTILE)
        table.add_row(HOSTILE)
        if how == "a table":
            console.print(table)
        else:
            with Live(table, console=console, auto_refresh=False) as live:
                live.update(table, refresh=True)
    text = without_colours(out.getvalue())
    assert "Account/" in text
    assert text.replace("\n", "").isprintable()


def test_colours_and_lines_of_ours_are_kept() -> None:
    console, out = shown()
    console.print("[bold red]error:[/] one\ntwo")
    assert out.getvalue() == "\x1b[1;31merror:\x1b[0m one\ntwo\n"


def test_every_screen_of_ours_is_a_printable_one() -> None:
    guilty = [
        str(path)
        for folder in ("actors", "benchmarks")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path.name != "console.py" and re.search(r"(?<!Printable)\bConsole\(", path.read_text())
    ]
    assert not guilty


def test_every_logger_of_ours_is_a_printable_one() -> None:
    guilty = [
        str(path)
        for folder in ("actors", "runtime")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path.name != "printable.py" and "logging.getLogger" in path.read_text()
    ]
    assert not guilty
