"""The tutorial, from its empty folder to its cluster: every file is written, every command run, every output compared.

One test, since each chapter goes on with what the last one has left. A file is a block with a title. The block after
commands is what they print; `…` stands for anything.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayfold.actors.cluster.cluster_file import CLUSTER_FILE
from tests.docs.pages import ROOT, Block, blocks_of

pytestmark = pytest.mark.slow

CHAPTERS = sorted((ROOT / "docs" / "tutorial").glob("[0-9]-*.md"))

PROGRAMS = {
    "python": [sys.executable],
    "rayfold": [sys.executable, "-m", "rayfold.actors.cli"],
    "mkdir": ["mkdir"],
}
"""The programs that a chapter may call. `rayfold` is that of the checkout."""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    if (tmp_path / "rayfold-cluster" / CLUSTER_FILE).exists():
        run("rayfold down", tmp_path)


def run(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    program, *arguments = shlex.split(line)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTEST_"))}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # a reader has none of this project's
    return subprocess.run(
        [*PROGRAMS[program], *arguments],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT), "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def does_match(shown: str, printed: str) -> bool:
    pattern = ".*".join(re.escape(part) for part in shown.rstrip("\n").split("…"))
    return re.fullmatch(pattern, printed.rstrip("\n"), re.DOTALL) is not None


def printed_by(block: Block, folder: Path) -> str:
    """What the commands of a block print, together. Raises if one ends as it should not."""
    printed = ""
    for line in block.code.splitlines():
        done = run(line, folder)
        printed += done.stdout + (done.stderr if "fails" in block.words else "")
        assert (done.returncode != 0) == ("fails" in block.words), f"{block}: {line}\n{done.stdout}\n{done.stderr}"
    return printed


@pytest.mark.timeout(900)
def test_the_tutorial_does_what_it_says_in_an_empty_folder(folder: Path) -> None:
    printed: str | None = None
    for block in [block for chapter in CHAPTERS for block in blocks_of(chapter)]:
        if block.title:
            (folder / block.title).write_text(block.code)
        elif block.language == "sh":
            printed = printed_by(block, folder)
        else:
            assert block.language == "text", f"{block}: a block is a file with a title, commands, or their output"
            assert printed is not None, f"{block}: there is no command before this output"
            assert does_match(block.code, printed), f"{block}: shown\n{block.code}\nprinted\n{printed}"
            printed = None
    assert len(CHAPTERS) == 5


def test_output_is_compared_from_its_first_to_its_last_character() -> None:
    assert does_match("4 passed in …s\n", "4 passed in 0.02s\n")
    assert not does_match("4 passed in …s\n", "4 passed in 0.02s\nand more\n")
    assert not does_match("1 confirmed\n", "0 confirmed\n")
