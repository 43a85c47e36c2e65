"""No command of the command line lets a text from outside control the terminal."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from rayfold.actors.cli.console import PrintableConsole, write_report
from rayfold.runtime.backup.taking import backup_store
from rayfold.runtime.errors import NotPrivate, StorageFailed
from rayfold.runtime.store.store import create_or_open_store

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
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
        if path.name != "printable.py" and re.search(r"logging\.getLogger\([^)]", path.read_text())
    ]
    assert not guilty


NO_TEXT_FROM_OUTSIDE = {
    "__version__",
    "_nodes(len(cluster.nodes))",
    "cluster.address",
    "cluster.wanted.cpus",
    "compared",
    "heads",
    "how",
    "kind.schema_version",
    "name",
    "number",
    "one.partition",
    "one.session.number",
    "role",
    "running",
    "signing.public_key",
    "told",
    "verdict",
    "where",
}
"""Numbers, our own words, and what is escaped where it is made."""


def test_whatever_a_command_prints_of_others_is_escaped() -> None:
    """A path with `[/x]` in it would end the command with a traceback; one with `[red]` would be shown as another."""
    bare = {
        f"{path.name}: {ast.unparse(value.value)}"
        for path in sorted((ROOT / "actors").glob("*.py"))
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and ast.unparse(call.func) in ("console.print", "complaints.print") and call.args
        for value in formatted(call.args[0])
        if value.format_spec is None and ast.unparse(value.value) not in NO_TEXT_FROM_OUTSIDE
    }
    assert bare == set()


def formatted(node: ast.AST) -> Iterator[ast.FormattedValue]:
    """What is put into the texts of an expression without `escape`."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "escape":
        return
    if isinstance(node, ast.FormattedValue) and not ast.unparse(node.value).startswith("escape("):
        yield node
    for child in ast.iter_child_nodes(node):
        yield from formatted(child)


def test_a_restored_store_is_told_whatever_it_is_called(tmp_path: Path) -> None:
    store = create_or_open_store(tmp_path / "bank", 1)
    backup_store(store.path, tmp_path / "backup")
    place = tmp_path / "[/x] [red]y"
    done = subprocess.run(
        [sys.executable, "-m", "rayfold.actors.cli", "restore", tmp_path / "backup", place],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, str(place) in done.stdout) == (0, True), done.stderr


def test_a_report_is_there_whole_or_not_at_all_and_goes_through_no_link(tmp_path: Path) -> None:
    report, mine = tmp_path / "report.json", tmp_path / "mine"
    mine.write_text("mine")
    for name in ("report.json.new", f".report.json.{os.getpid()}.new"):
        (tmp_path / name).symlink_to(mine)
    with pytest.raises(NotPrivate, match="it is a link"):
        write_report(report, {"a": 1})
    (tmp_path / f".report.json.{os.getpid()}.new").unlink()
    write_report(report, {"a": 1})
    assert (json.loads(report.read_text()), mine.read_text()) == ({"a": 1}, "mine")
    with pytest.raises(StorageFailed, match="cannot write the report: No such file or directory"):
        write_report(tmp_path / "nowhere" / "report.json", {"a": 1})
    assert sorted(one.name for one in tmp_path.iterdir()) == ["mine", "report.json", "report.json.new"]


def of_command_line(*arguments: str, **environment: str) -> str:
    """What the command line prints into a pipe."""
    told = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | environment
    command = [sys.executable, "-m", "rayfold.actors.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=told).stdout


def test_a_table_in_a_pipe_is_as_wide_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    table = Table(*(f"column number {number}" for number in range(12)))
    table.add_row(*(f"a value of column {number}" for number in range(12)))
    text = io.StringIO()
    PrintableConsole(file=text).print(table)
    for number in range(12):
        assert f" column number {number} " in text.getvalue()
        assert f" a value of column {number} " in text.getvalue()
    monkeypatch.setenv("COLUMNS", "60")
    narrow = io.StringIO()
    PrintableConsole(file=narrow).print(table)
    assert max(map(len, narrow.getvalue().splitlines())) == 60


def test_the_verdict_of_verify_is_whole_in_a_pipe(tmp_path: Path) -> None:
    store = create_or_open_store(tmp_path / "bank", 1)
    (line,) = (line for line in of_command_line("verify", str(store.path)).splitlines() if " good" in line)
    assert "\N{HORIZONTAL ELLIPSIS}" not in line


@pytest.mark.parametrize("columns", ["80", "200"])
@pytest.mark.parametrize("group", [(), ("bench",)])
def test_the_list_of_commands_shows_the_whole_first_sentence_of_each(columns: str, group: tuple[str, ...]) -> None:
    told = of_command_line(*group, "--help", COLUMNS=columns)
    rows = re.split(r"\n  (?=[a-z])", told[told.index("Commands:") :])[1:]
    sentences = [" ".join(row.split()[1:]) for row in rows]
    assert len(sentences) > 10
    for sentence in sentences:
        assert sentence.endswith(".")
        assert not sentence.endswith("...")


@pytest.mark.parametrize("while_importing", ["typer", "rayfold.runtime.store.verify"])
@pytest.mark.parametrize("pressed", ["SIGINT", "SIGTERM"])
def test_ctrl_c_is_one_line_while_the_command_line_is_imported_and_in_a_command(
    tmp_path: Path, while_importing: str, pressed: str
) -> None:
    program = f"""
import os, signal, sys
from rayfold.actors.cli.__main__ import main

def press(event, facts):
    if event == "import" and facts[0] == {while_importing!r}:
        os.kill(os.getpid(), signal.{pressed})

sys.argv[1:] = ["verify", "."]
sys.addaudithook(press)
main()
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "stopped\n")
