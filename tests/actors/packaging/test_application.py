"""What an application is declared with, and its modules on their way to other machines."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rayfold import Application, BlockingRuntime, InvalidId, InvalidMessage, Runtime, UnknownName
from rayfold.actors.packaging.code import collect
from rayfold.runtime.encoding.catalogue import Catalogue
from tests.bank import Account, Balances, Turnover

ROOT = Path(__file__).parents[3]


BANK = Application("bank", aggregates=[Account], projections=[Balances], partitions=3)

# Declared


@pytest.mark.parametrize("name", ["", "a/b", "-bank", "bank.", "x" * 64, "Bänk", "a b", None])
def test_a_name_that_cannot_be_a_folder_everywhere_is_refused(name: Any) -> None:
    with pytest.raises(InvalidId, match=r"must be 1 to 63 letters, digits, '-', '_' or '\.', none of these at an end"):
        Application(name, aggregates=[Account])


@pytest.mark.parametrize("partitions", [0, -1, 1025, True, "3", 2.0])
def test_a_number_of_partitions_that_cannot_be_is_refused(partitions: Any) -> None:
    with pytest.raises(InvalidMessage, match="give 1 to 1,024"):
        Application("bank", aggregates=[Account], partitions=partitions)


def test_replicas_of_what_the_application_has_not_got_are_refused() -> None:
    with pytest.raises(UnknownName, match="no projection is named 'Turnover'; known: Balances"):
        Application("bank", aggregates=[Account], projections=[Balances], replicas={Turnover: 2})
    app = Application("bank", aggregates=[Account], projections=[Balances, Turnover], replicas={Turnover: 2})
    assert app.replicas == {Balances: 1, Turnover: 2}
    assert repr(app) == "Application('bank')"


# On one machine


@pytest.mark.parametrize("runtime", [Runtime, BlockingRuntime])
@pytest.mark.parametrize(
    ("arguments", "options", "what"),
    [
        ([], {}, "there is nothing to run; give aggregates=..., or give an Application"),
        ([[Account]], {}, "is not an Application; give aggregates=... for classes"),
        (
            [BANK],
            {"aggregates": [Account]},
            "give the Application alone, or leave it out",
        ),
        ([BANK], {"replicas": 2}, "give the Application alone, or leave it out"),
        ([BANK], {"retired": ["Lost"]}, "give the Application alone, or leave it out"),
    ],
)
def test_a_runtime_takes_an_application_or_its_parts(
    tmp_path: Path, runtime: Any, arguments: list[Any], options: dict[str, Any], what: str
) -> None:
    with pytest.raises(InvalidMessage) as caught:
        runtime(tmp_path / "data", *arguments, **options)
    assert what.replace("=...", "=[...]") in str(caught.value)


def test_both_runtimes_take_the_same_arguments_which_a_type_checker_sees() -> None:
    assert inspect.signature(Runtime.__init__) == inspect.signature(BlockingRuntime.__init__)


# Shipped

DEPLOYS = """
import sys
sys.path.insert(0, sys.argv[1])
import shop.domain, beside
from rayfold.actors.packaging.code import collect
from rayfold.runtime.encoding.catalogue import Catalogue
code = collect(Catalogue([shop.domain.Till]))
print(code.digest)
with open(sys.argv[2], "wb") as file:
    file.write(code.packed)
"""

USES = """
import sys
from rayfold.actors.packaging.code import make_importable
packed = open(sys.argv[2], "rb").read()
fetched = []
def fetch(digest):
    fetched.append(digest)
    return packed
for _ in range(2):
    make_importable(sys.argv[1], fetch, first=True)
import shop.domain, beside
print(shop.domain.Till.__name__, beside.WHAT, len(fetched), (shop.domain.HERE / "rates.txt").read_text())
"""


def project(folder: Path, rate: str) -> None:
    (folder / "shop").mkdir(parents=True, exist_ok=True)
    (folder / "shop" / "__init__.py").write_text("")
    (folder / "shop" / "rates.txt").write_text(rate)
    (folder / "shop" / "domain.py").write_text(
        "from pathlib import Path\nfrom rayfold import Aggregate\nHERE = Path(__file__).parent\n"
        "class Till(Aggregate):\n    total: int = 0\n"
    )
    (folder / "beside.py").write_text("WHAT = 'a module beside the package'\n")
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "large.bin").write_bytes(b"x" * 1000)


def run(code: str, *arguments: object, data: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"RAYFOLD_DATA": str(data), "PYTHONPATH": str(ROOT), "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_modules_come_out_as_they_were_packed_with_what_is_loaded_beside_them_and_no_data(tmp_path: Path) -> None:
    project(tmp_path / "project", "7")
    digest = run(DEPLOYS, tmp_path / "project", tmp_path / "code.zip", data=tmp_path / "data")
    project(tmp_path / "project", "8")
    said = run(USES, digest, tmp_path / "code.zip", data=tmp_path / "data")
    assert said == "Till a module beside the package 1 7"
    unpacked = tmp_path / "data" / "code" / digest
    assert sorted(
        str(one.relative_to(unpacked)) for one in unpacked.rglob("*.*") if "__pycache__" not in one.parts
    ) == [
        "beside.py",
        "shop/__init__.py",
        "shop/domain.py",
        "shop/rates.txt",
    ]


@pytest.mark.slow
def test_the_same_modules_have_the_same_digest_and_changed_ones_another(tmp_path: Path) -> None:
    digests = []
    for name, rate in (("one", "7"), ("two", "7"), ("three", "8")):
        project(tmp_path / name, rate)
        digests.append(run(DEPLOYS, tmp_path / name, tmp_path / "code.zip", data=tmp_path))
    assert digests[0] == digests[1] != digests[2]


def test_an_installed_application_ships_nothing() -> None:
    from rayfold.benchmarks.torture.bank import Jar, Totals

    assert collect(Catalogue([Jar], [Totals])).digest == ""


@pytest.mark.slow
def test_classes_of_a_program_itself_are_refused_with_the_way_out() -> None:
    code = (
        "from rayfold import Aggregate\nfrom rayfold.actors.packaging.code import collect\n"
        "from rayfold.runtime.encoding.catalogue import Catalogue\n"
        "class Till(Aggregate):\n    total: int = 0\n"
        "try:\n    collect(Catalogue([Till]))\nexcept Exception as error:\n    print(type(error).__name__, error)\n"
    )
    said = run(code, data=ROOT)
    assert said == (
        "DefinitionError the application: it is defined in the program itself, which no other process can import;"
        " move its classes into a module: rayfold deploy MODULE:NAME"
    )
