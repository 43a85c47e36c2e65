"""`make pytest`: what fails beside other tests is run once more, and what does not work alone either makes it fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
FOLDERS = ("actors", "runtime", "benchmarks", "rayfold", "tests", "examples")

SOUND = """
from pathlib import Path

def test_sound():
    with Path("ran").open("a") as ran:
        ran.write("sound ")
"""

AT_THE_SECOND_TRY = """
from pathlib import Path

def test_failing():
    with Path("ran").open("a") as ran:
        ran.write("failing ")
    assert Path("ran").read_text().count("failing") > 1
"""

NEVER = """
def test_failing():
    raise AssertionError("as always")
"""

READ_AT_THE_SECOND_TRY = """
from pathlib import Path

first = not Path("read").exists()
Path("read").touch()
assert not first

def test_of_a_file():
    pass
"""


def made(folder: Path, arguments: str = "", **files: str) -> int:
    """The exit status of `make pytest` for a project that has these files of tests."""
    for name in FOLDERS:
        (folder / name).mkdir()
    (folder / "pytest.ini").write_text("[pytest]\n")
    for name, content in files.items():
        (folder / "tests" / f"test_{name}.py").write_text(content)
    given = ["READY=", f"BIN={Path(sys.executable).parent}", f"ARGS={arguments}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "PYTEST"))}
    environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "xdist.plugin"}  # each takes its time
    done = subprocess.run(
        ["make", "-f", str(ROOT / "Makefile"), "pytest", *given],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    return done.returncode


def test_only_what_has_failed_is_run_once_more(tmp_path: Path) -> None:
    assert made(tmp_path, sound=SOUND, failing=AT_THE_SECOND_TRY) == 0
    ran = (tmp_path / "ran").read_text().split()
    assert (ran.count("sound"), ran.count("failing")) == (1, 2)


@pytest.mark.parametrize(
    ("arguments", "failing"),
    [
        ("", NEVER),
        ("", READ_AT_THE_SECOND_TRY),
        ("--exitfirst", AT_THE_SECOND_TRY),
    ],
    ids=["what fails always", "what could not be read and kept all others from running", "a run that was broken off"],
)
def test_it_fails_with(arguments: str, failing: str, tmp_path: Path) -> None:
    assert made(tmp_path, arguments, sound=SOUND, failing=failing) != 0
