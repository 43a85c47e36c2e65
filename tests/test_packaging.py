"""What is in the wheel and in the sdist, and that the wheel works where a user has folders named like ours.

The folders `actors/`, `runtime/` and `benchmarks/` are reached twice, by themselves and through the links in
`rayfold/`. A builder that sees this may pack a file twice, or, silently, not at all: hence exact lists here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

import rayfold

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
VERSION = rayfold.__version__
LINKED_FOLDERS = ("actors", "runtime", "benchmarks")
COMMAND_TIMEOUT_S = 60


def run(*command: str | Path, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command as a stranger would: without our checkout on the path, and without colours in what it prints."""
    hidden = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"NO_COLOR": "1", "COLUMNS": "120"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )
    if check:
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def build(target: str, source: Path, into: Path) -> Path:
    run(sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", into, cwd=source)
    (archive,) = into.iterdir()
    return archive


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


def sources(*folders: str) -> set[str]:
    """The Python files in top folders of the checkout, and what the pages of results look like."""
    found = [path for folder in folders for kind in ("*.py", "*.css", "*.csv") for path in (ROOT / folder).rglob(kind)]
    return {path.relative_to(ROOT).as_posix() for path in found}


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


# The archives


def test_the_wheel_holds_the_package_under_its_import_name_and_nothing_else(wheel: Path) -> None:
    ours = {f"rayfold/{name}" for name in sources(*LINKED_FOLDERS)}
    metadata = {f"rayfold-{VERSION}.dist-info/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")}
    licence = {f"rayfold-{VERSION}.dist-info/licenses/LICENSE"}
    assert {"rayfold/runtime/log/contract.py", "rayfold/actors/__init__.py", "rayfold/benchmarks/__init__.py"} <= ours
    single = {"rayfold/__init__.py", "rayfold/testing.py", "rayfold/py.typed"}
    assert set(contents(wheel)) == single | ours | metadata | licence


def test_the_wheel_is_for_every_platform_that_its_dependencies_are_for(wheel: Path) -> None:
    assert wheel.name == f"rayfold-{VERSION}-py3-none-any.whl"


def test_no_file_is_in_the_wheel_twice(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert len(names) == len(set(names))


def test_the_files_in_the_wheel_are_the_files_of_the_checkout(wheel: Path) -> None:
    for name, data in contents(wheel).items():
        if name.startswith("rayfold/"):
            assert data == (ROOT / name).read_bytes(), name


def test_the_sdist_holds_the_folders_once_and_no_links(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    top = f"rayfold-{VERSION}/"
    names = [member.name.removeprefix(top) for member in members]
    single = {
        "rayfold/__init__.py",
        "rayfold/testing.py",
        "rayfold/py.typed",
        "README.md",
        "CHANGELOG.md",
        "SECURITY.md",
        "LICENSE",
        "pyproject.toml",
    }
    written_by_the_builder = {"PKG-INFO", ".gitignore"}
    assert all(member.isfile() for member in members)
    assert len(names) == len(set(names))
    assert {name for name in names if name not in written_by_the_builder and not name.startswith("tests/")} == (
        single | sources(*LINKED_FOLDERS)
    )
    assert {name for name in names if name.startswith("tests/") and name.endswith(".py")} == sources("tests")


def test_the_wheel_from_the_sdist_is_the_wheel_from_the_checkout(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    run("tar", "-xzf", sdist, cwd=tmp_path)
    again = build("wheel", tmp_path / f"rayfold-{VERSION}", tmp_path / "again")
    assert again.name == wheel.name
    assert contents(again) == contents(wheel)


def test_the_metadata_says_what_is_needed_to_run_and_leaves_the_rest_to_extras(wheel: Path) -> None:
    metadata = message_from_string(contents(wheel)[f"rayfold-{VERSION}.dist-info/METADATA"].decode())
    requirements = metadata.get_all("Requires-Dist") or []
    needed = {line.split(";")[0].rstrip() for line in requirements if "extra ==" not in line}
    assert {line.partition("<")[0].partition(">")[0] for line in needed} == {
        "cronsim",
        "lmdb",
        "msgpack",
        "pydantic",
        "ray",
        "rich",
        "typer",
    }
    assert metadata.get_all("Provides-Extra") == [
        *(
            "anchor",
            "arrow",
            "backup",
            "bench",
            "demo",
            "dev",
            "docs",
            "duckdb",
            "nats",
            "pandas",
            "polars",
            "testing",
            "webhooks",
        )
    ]
    assert metadata["Requires-Python"] == "<3.14,>=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"


def test_every_package_that_is_named_in_pyproject_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    names = {line.partition("=")[0].partition(">")[0].partition("[")[0] for line in named}
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert names <= {pin.partition("==")[0] for pin in pins}


def test_the_command_line_works_where_the_benchmarks_are_left_out() -> None:
    """They are its commands by entry points alone."""
    left_out = "import sys; sys.modules['rayfold.benchmarks'] = None; sys.argv = ['rayfold', '--help']"
    program = f"{left_out}; from rayfold.actors.cli.main import main; main()"
    without = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "verify" in without.stdout
    assert "torture" not in without.stdout
    script = Path(sys.executable).parent / "rayfold"
    with_all = subprocess.run([script, "--help"], capture_output=True, text=True, check=True)
    assert "torture" in with_all.stdout


# The installed wheel

USERS_PROGRAM = '''
"""A user's program, beside the user's own folders."""
import actors
import runtime
from actors.greeter import greet
from runtime.clock import ticks

import rayfold
import rayfold.actors
import rayfold.benchmarks
import rayfold.runtime.log.contract
from rayfold import Aggregate, Command, Event, decide, evolve, given


class Open(Command):
    owner: str


class Opened(Event):
    owner: str


class Account(Aggregate):
    owner: str = ""

    @decide
    def open(self, command: Open) -> Opened:
        return Opened(owner=command.owner)

    @evolve
    def opened(self, event: Opened) -> None:
        self.owner = event.owner


if __name__ == "__main__":
    given(Account).when(Open(owner="Ada")).then(Opened(owner="Ada"))
    assert rayfold.runtime is not runtime
    assert rayfold.actors is not actors
    print(greet(), ticks(), rayfold.__file__, sep="\\n")
'''


USERS_STORE = '''
"""A user's classes, of `__main__` and so shipped to Ray's workers by value, from beside folders named like ours."""
from main import Account, Open

from rayfold import BlockingRuntime, Command, Event, decide, evolve


class Rename(Command):
    owner: str


class Renamed(Event):
    owner: str


class Person(Account):
    @decide
    def rename(self, command: Rename) -> Renamed:
        return Renamed(owner=command.owner)

    @evolve
    def renamed(self, event: Renamed) -> None:
        self.owner = event.owner


if __name__ == "__main__":
    with BlockingRuntime("store", aggregates=[Person]) as runtime:
        runtime.execute(Person, "ada", Open(owner="Ada"))
        print(runtime.execute(Person, "ada", Rename(owner="Ada Lovelace")).version)
'''


USERS_MISTAKES = """\
import rayfold
from main import Open

rayfold.Agregate
Open(owner=3)
"""


class Installed:
    """A fresh environment with the wheel, and a user's folder with `actors/` and `runtime/` of its own."""

    def __init__(self, place: Path, wheel: Path) -> None:
        self.home = place / "users-project"
        self.environment = place / "environment"
        self.bin = self.environment / "bin"
        run(sys.executable, "-m", "venv", "--without-pip", self.environment, cwd=place)
        pip = (sys.executable, "-m", "pip", "--python", self.bin / "python", "--disable-pip-version-check")
        run(*pip, "install", "--quiet", "--no-index", "--no-deps", wheel, cwd=place)
        self.borrow_the_dependencies()
        for file, text in {
            "actors/__init__.py": "",
            "actors/greeter.py": "def greet() -> str:\n    return 'my own actors'\n",
            "runtime/__init__.py": "",
            "runtime/clock.py": "def ticks() -> str:\n    return 'my own runtime'\n",
            "benchmarks/__init__.py": "",
            "main.py": USERS_PROGRAM,
            "store.py": USERS_STORE,
        }.items():
            (self.home / file).parent.mkdir(parents=True, exist_ok=True)
            (self.home / file).write_text(text, encoding="utf-8")

    def borrow_the_dependencies(self) -> None:
        """Let the environment see the packages of this one, so that nothing is fetched, but no checkout of ours:
        a folder that a `.pth` names is searched, while the `.pth` files in it, an editable install's, are not read."""
        (site_packages,) = self.environment.glob("lib/python*/site-packages")
        ours = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        (site_packages / "dependencies.pth").write_text("\n".join(sorted(ours)), encoding="utf-8")

    def run(self, command: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run(self.bin / command, *arguments, cwd=self.home, check=check)


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed"), wheel)


@pytest.mark.parametrize("how", [("main.py",), ("-m", "main")])
def test_the_installed_package_and_a_users_folders_of_the_same_names_leave_each_other_alone(
    installed: Installed, how: tuple[str, ...]
) -> None:
    mine, clock, where = installed.run("python", *how).stdout.splitlines()
    assert (mine, clock) == ("my own actors", "my own runtime")
    assert Path(where).is_relative_to(installed.environment)


def type_check(installed: Installed, program: str) -> str:
    """What a strict type checker reports for a user's program that imports the installed package. It begins with a copy
    of what `make check` knows of the same files, and so with its settings: to read them anew takes 20 s of CPU."""
    known, cache = ROOT / ".mypy_cache", installed.environment / "mypy_cache"
    if known.exists() and not cache.exists():
        shutil.copytree(known, cache)
    checker = (sys.executable, "-m", "mypy", "--strict", "--python-executable", installed.bin / "python")
    settings = ("--config-file", ROOT / "pyproject.toml", "--no-pretty", "--cache-dir", cache)
    return run(*checker, *settings, program, cwd=installed.home, check=False).stdout


def test_a_users_program_type_checks_against_the_installed_package(installed: Installed) -> None:
    assert type_check(installed, "store.py") == "Success: no issues found in 1 source file\n"


def test_a_users_mistakes_are_found_by_a_type_checker(installed: Installed) -> None:
    (installed.home / "mistakes.py").write_text(USERS_MISTAKES, encoding="utf-8")
    told = [line.split(": ", 1) for line in type_check(installed, "mistakes.py").splitlines()]
    assert told[:2] == [
        ["mistakes.py:4", 'error: Module has no attribute "Agregate"; maybe "Aggregate"?  [attr-defined]'],
        ["mistakes.py:5", 'error: Argument "owner" to "Open" has incompatible type "int"; expected "str"  [arg-type]'],
    ]


def test_the_installed_command_says_its_version(installed: Installed) -> None:
    assert VERSION in installed.run("rayfold", "--version").stdout.split()


def test_the_installed_command_explains_the_demo(installed: Installed) -> None:
    shown = installed.run("rayfold", "demo", "--help").stdout
    assert "--flights" in shown
    assert "--json" in shown


def test_the_installed_command_says_in_one_sentence_that_there_is_no_store_to_verify(installed: Installed) -> None:
    refused = installed.run("rayfold", "verify", "nowhere/no-such-store", check=False)
    assert refused.returncode != 0
    assert "nowhere/no-such-store" in refused.stdout + refused.stderr
    assert "Traceback" not in refused.stdout + refused.stderr


def test_the_installed_command_verifies_a_store_that_was_written_beside_a_users_folders(installed: Installed) -> None:
    assert installed.run("python", "store.py").stdout == "2\n"
    installed.run("rayfold", "verify", "store", "--json", "report.json")
    report = json.loads((installed.home / "report.json").read_text(encoding="utf-8"))
    assert report["ok"]
    assert sum(partition["events"] for partition in report["partitions"]) == 2
