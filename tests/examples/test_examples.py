"""What the README and the examples show is what a user gets: run as programs of their own, and type-checked."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from examples import parcels
from tests.support.driver import ROOT, start_driver

pytestmark = pytest.mark.slow

BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)


def output_of(program: Path, folder: Path) -> list[str]:
    with start_driver(str(program), folder=folder) as driver:
        output, errors = driver.communicate(timeout=100)
    assert driver.returncode == 0, errors
    assert "Traceback" not in errors
    return output.splitlines()


def test_the_first_example_of_the_readme_runs_in_an_empty_folder_and_type_checks(tmp_path: Path) -> None:
    program = tmp_path / "bank.py"
    program.write_text(BLOCKS[0] + '\nreveal_type(bank.ask(Balances, BalanceOf(account="alice")))\n')
    # With the settings and the cache of `make check`, which has read all that it imports: a minute of CPU otherwise.
    known = [f"--config-file={ROOT / 'pyproject.toml'}", f"--cache-dir={ROOT / '.mypy_cache'}"]
    told = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", *known, "bank.py"],
        cwd=tmp_path,
        env={"MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert 'Revealed type is "int"' in told.stdout
    assert "Success: no issues found in 1 source file" in told.stdout, told.stdout
    program.write_text(BLOCKS[0])
    assert output_of(program, tmp_path) == ["100"]
    assert (tmp_path / "bank-data" / "store.json").is_file()
    assert output_of(program, tmp_path) == ["200"]


def test_the_first_example_of_the_readme_is_the_first_of_the_examples() -> None:
    """Its imports take two lines on the page, where a program has one for each name."""
    shown = ast.parse(BLOCKS[0])
    kept = ast.parse((ROOT / "examples" / "bank.py").read_text())
    assert imported(shown) == imported(kept)
    *classes, main = kept.body
    assert isinstance(main, ast.If)
    shown_code = [one for one in shown.body if not isinstance(one, ast.ImportFrom)]
    kept_code = [one for one in (*classes[1:], *main.body) if not isinstance(one, ast.ImportFrom)]
    assert [ast.dump(one) for one in shown_code] == [ast.dump(one) for one in kept_code]


def imported(program: ast.Module) -> list[str]:
    statements = [one for one in program.body if isinstance(one, ast.ImportFrom)]
    assert {one.module for one in statements} == {"rayfold"}
    return [alias.name for one in statements for alias in one.names]


def test_the_readme_has_at_most_120_lines() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_the_rules_of_the_readme_hold_as_they_are_shown() -> None:
    import rayfold

    names = {name: getattr(rayfold, name) for name in rayfold.__all__}
    application = BLOCKS[0].split("with BlockingRuntime")[0]
    exec(application + BLOCKS[1], names)
    wrong = BLOCKS[1].replace("balance=8", "balance=9")
    with pytest.raises(AssertionError, match="balance"):
        exec(application + wrong, names)


def test_the_parcels_find_their_way(tmp_path: Path) -> None:
    assert output_of(ROOT / "examples" / "parcels.py", tmp_path) == [
        "1000 registered",
        "Parcel/p7 refused Scan: already_delivered (depot='Basel')",
        "expected version 2 of Parcel/p8, but the stream is at 3",
        "repeated: True same position: True",
        "['p9']",
    ]


@pytest.mark.parametrize("name", ["shop", "opt_in"])
def test_the_examples_of_processes_hold_their_own_tests(name: str, tmp_path: Path) -> None:
    assert output_of(ROOT / "examples" / f"{name}.py", tmp_path) == []


async def test_the_tests_of_the_parcels_hold() -> None:
    parcels.test_a_parcel_is_delivered_once()
    await parcels.test_a_parcel_waits_where_it_was_scanned_last()
