"""Every code block of the pages is run or checked, or the reason why not is given.

Python blocks are run as they stand there, page by page, in one program with a running bank (`blocks_driver.py`), unless
another test runs the page. Command lines are compared with the commands that there are. YAML is parsed.
"""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml  # type: ignore[import-untyped]

from rayfold.actors.cli.main import app
from tests.docs.pages import PAGES, all_blocks, blocks_of, name_of
from tests.support.driver import ROOT, start_driver

RUN_BY = {
    "README.md": "tests/examples/test_examples.py",
    "docs/evolution.md": "tests/examples/test_evolution_page.py",
    "docs/log-format.md": "tests/runtime/log/test_format.py",
    **{
        f"docs/tutorial/{chapter}.md": "tests/docs/test_tutorial.py"
        for chapter in ("1-rules", "2-run", "3-react", "4-change", "5-deploy")
    },
}
"""Pages whose Python blocks another test runs, all of them."""

RUN_HERE = (
    "docs/testing.md",
    "docs/processes.md",
    "docs/effects.md",
    "docs/guarantees.md",
    "docs/anchors.md",
    "docs/consistency.md",
    "docs/subscriptions.md",
    "docs/bulk-reads.md",
    "docs/observing.md",
    "docs/read-models.md",
)
"""By `blocks_driver.py`, in this order."""

SHOWN_ONLY = {"", "text", "console", "sh", "ini"}
"""Drawings, output, and command lines, which are checked one by one."""

COMMAND = re.compile(r"^ *(?:\$ )?(rayfold (?!\.\.\.).+)$", re.MULTILINE)


def command_lines() -> list[tuple[str, str]]:
    return [(name_of(page), line) for page in PAGES for line in COMMAND.findall(page.read_text(encoding="utf-8"))]


@cache
def rayfold_command() -> Any:
    """The command line with all its commands, which takes a tenth of a second to make."""
    return typer.main.get_command(app)


def unknown_in(line: str) -> list[str]:
    """What a command line names that the commands do not have."""
    words = [word.partition("=")[0] for word in shlex.split(line.partition("   ")[0], comments=True)[1:]]
    command = rayfold_command()
    taken = 0
    while hasattr(command, "commands") and taken < len(words) and not words[taken].startswith("-"):
        if words[taken] not in command.commands:
            return [words[taken]]
        command = command.commands[words[taken]]
        taken += 1
    options = {"--help", *(name for param in command.params for name in (*param.opts, *param.secondary_opts))}
    return [word for word in words[taken:] if word.startswith("--") and word not in options]


def test_every_python_block_is_run_or_says_why_not() -> None:
    blocks = [block for block in all_blocks() if block.language == "python"]
    assert len(blocks) > 60
    left = [
        str(block)
        for block in blocks
        if not block.not_run and name_of(block.page) not in RUN_BY and name_of(block.page) not in RUN_HERE
    ]
    assert left == []


def test_a_block_is_of_a_language_that_is_checked_or_shown_only() -> None:
    assert {block.language for block in all_blocks()} <= {"python", "yaml", *SHOWN_ONLY}
    for block in all_blocks():
        if block.language == "yaml":
            assert yaml.safe_load(block.code), str(block)


def test_the_tests_that_run_the_other_pages_read_them() -> None:
    for page, test in RUN_BY.items():
        assert blocks_of(ROOT / page)
        assert Path(page).name in (source := (ROOT / test).read_text()) or '"tutorial"' in source


def test_the_pages_name_no_command_and_no_option_that_there_is_not() -> None:
    lines = command_lines()
    assert len(lines) > 80
    assert [(page, line, wrong) for page, line in lines if (wrong := unknown_in(line))] == []


def test_a_command_or_option_that_there_is_not_is_noticed() -> None:
    assert unknown_in("rayfold verify bank-data --anchor anchor.json   # every byte") == []
    assert unknown_in("rayfold verify bank-data --ancor anchor.json") == ["--ancor"]
    assert unknown_in("rayfold verfy bank-data") == ["verfy"]


@pytest.mark.slow
def test_the_python_blocks_do_what_the_pages_say(tmp_path: Path) -> None:
    with start_driver("-m", "tests.docs.blocks_driver", *RUN_HERE, folder=tmp_path) as driver:
        output, errors = driver.communicate(timeout=280)
    assert driver.returncode == 0, output + errors
    run = [line.removeprefix("ran ") for line in output.splitlines() if line.startswith("ran ")]
    expected = [
        str(block)
        for page in RUN_HERE
        for block in blocks_of(ROOT / page)
        if block.language == "python" and not block.not_run
    ]
    assert run == expected
