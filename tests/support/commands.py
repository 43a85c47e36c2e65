"""Commands of the command line, one after the other in one program: what each does, without Python and Ray being
started for it. At least one test of a command starts it as a user does.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from rayfold.actors.cli.main import main

ROOT = Path(__file__).parents[2]


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    said: str
    """Standard output, and then standard error, with one space between two words."""


def run_each(*commands: list[str], folder: Path, timeout_s: float = 280) -> list[Ended]:
    """How each of these commands ends in that folder. The next one runs in any case."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.commands", json.dumps(commands), str(folder)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done
    return [Ended(code, said) for code, said in json.loads(done.stdout.splitlines()[-1])]


def _run(arguments: list[str]) -> Ended:
    sys.argv[1:] = arguments
    out, errors = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Ended(code, " ".join((out.getvalue() + errors.getvalue()).split()))


if __name__ == "__main__":
    os.chdir(sys.argv[2])
    sys.path[0] = ""  # as for `python -m` in that folder
    print(json.dumps([_run(arguments) for arguments in json.loads(sys.argv[1])]))
