"""What docs/evolution.md shows is what a user gets: each block runs, and its release fits a log of the first one."""

from __future__ import annotations

import re
from typing import Any

import pytest

from rayfold import Application
from rayfold.runtime.checks.dry_run import dry_run
from rayfold.runtime.checks.fit import held_in
from rayfold.runtime.encoding.envelope import Envelope, pack
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.write.write_loop import WriteLoop
from tests.support.driver import ROOT

PAGE = (ROOT / "docs" / "evolution.md").read_text()
SECTIONS = [section for section in PAGE.split("\n## ") if "```python" in section]
FIRST, *LATER = SECTIONS


def blocks_of(section: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)


def first_release() -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "bank_app"}
    for block in blocks_of(FIRST):
        exec(block, names)
    return names


@pytest.fixture
def log() -> MemoryLog:
    """What the first release has stored."""
    names, log = first_release(), MemoryLog()
    catalogue = names["bank"].catalogue
    log.declare(catalogue.shapes())
    loop = WriteLoop(0, log, catalogue)
    loop.activate()
    commands = [names["Deposit"](amount=amount) for amount in (5, 0, 7)]
    loop.execute([pack(Envelope(names["Account"], "ada", command))[0] for command in commands])
    assert set(held_in([log]).events) == {("Deposited", 1)}
    return log


def test_the_first_release_fits_what_it_has_stored(log: MemoryLog) -> None:
    assert dry_run(first_release()["bank"].catalogue, {0: log}).ok


@pytest.mark.parametrize("section", LATER, ids=lambda section: section.splitlines()[0])
def test_a_release_of_the_page_fits_what_the_first_one_has_stored(section: str, log: MemoryLog) -> None:
    [block] = blocks_of(section)
    names = first_release()
    exec(block, names)
    bank: Application = names["bank"]
    found = dry_run(bank.catalogue, {0: log}, everything=True)
    assert found.ok, found.as_dict()
    assert found.streams == 1


@pytest.mark.parametrize(
    ("section", "wrong", "told"),
    [
        ("Add a field", (", version=2", ""), "its fields have changed: currency is a field of the class"),
        ("Rename a class", (', name="Deposited"', ""), "no class here has that name"),
        ("Rename a class", (', name="Account"', ""), "no class here has that name"),
        ("Retire", (', retired=["Deposited"]', ""), "no class here has that name"),
    ],
)
def test_what_the_page_says_is_refused_is_refused(
    section: str, wrong: tuple[str, str], told: str, log: MemoryLog
) -> None:
    [block] = blocks_of(next(one for one in LATER if one.startswith(section)))
    assert wrong[0] in block
    block = re.sub(r"    @staticmethod\n    @upcast.*?\n\n", "\n", block.replace(*wrong), flags=re.DOTALL)
    without_specification = "\n".join(line for line in block.splitlines() if not line.startswith("given("))
    names = first_release()
    exec(without_specification, names)
    found = dry_run(names["bank"].catalogue, {0: log})
    assert told in " ".join(misfit.what for misfit in found.misfits)
