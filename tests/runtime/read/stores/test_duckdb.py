"""Tables in DuckDB: appended rows before any SQL, Arrow and pandas, and a transaction that is ours."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rayfold.runtime.domain.messages import Query
from rayfold.runtime.domain.projection import answer
from rayfold.runtime.errors import DefinitionError, InvalidMessage, StorageFailed
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.read.stores.duckdb import APPENDED_MAX, DuckDbStore
from tests.runtime.read.stores.tallies import DuckDbTally, ask, deposit, tally_of

ROOT = Path(__file__).resolve().parents[4]
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS t (a VARCHAR, b BIGINT); CREATE VIEW IF NOT EXISTS v AS SELECT sum(b) AS total FROM t"
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DuckDbStore]:
    store = DuckDbStore(SCHEMA)
    store.open(SimpleNamespace(), tmp_path)
    yield store
    store.close()


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Any]:
    """What a handler sees, in a transaction."""
    store, model = DuckDbStore(SCHEMA), SimpleNamespace()
    store.open(model, tmp_path)
    store.begin()
    yield model
    store.close()


def test_an_appended_row_is_there_before_any_sql_and_is_undone_with_the_page(tmp_path: Path) -> None:
    store, model = DuckDbStore(SCHEMA), SimpleNamespace()
    assert store.open(model, tmp_path) is None
    store.begin()
    for number in range(APPENDED_MAX + 3):
        model.append("t", ("x", number))
    assert model.sql("SELECT count(*) FROM t").fetchone() == (APPENDED_MAX + 3,)
    model.append("t", ("y", 1))
    assert store.roll_back() is None
    store.begin()
    assert model.sql("SELECT count(*) FROM t").fetchone() == (0,)
    model.append("t", ("z", 5))
    store.commit(b"at 5")
    store.close()
    again = DuckDbStore(SCHEMA)
    assert again.open(model, tmp_path) == b"at 5"
    again.begin(reading=True)
    assert model.sql("FROM t").fetchall() == [("z", 5)]
    again.close()


def test_a_result_that_was_not_read_to_its_end_is_in_nobodys_way(tmp_path: Path) -> None:
    store, model = DuckDbStore(SCHEMA), SimpleNamespace()
    store.open(model, tmp_path)
    store.begin()
    for number in range(3_000):
        model.append("t", ("x", number))
    assert model.sql("SELECT b FROM t ORDER BY b").fetchone() == (0,)
    model.append("t", ("y", 1))
    assert model.sql("INSERT INTO t SELECT * FROM t RETURNING b").fetchone() is not None
    store.commit(b"all")
    store.begin(reading=True)
    assert model.sql("SELECT b FROM t").fetchone() is not None
    assert model.sql("SELECT count(*) FROM t").fetchall() == [(6_002,)]
    assert store.roll_back() == b"all"
    store.close()


@pytest.mark.parametrize("statement", ["COMMIT", " rollback;", "Begin Transaction", "checkpoint", "END"])
def test_a_handler_never_ends_the_transaction(model: Any, statement: str) -> None:
    with pytest.raises(InvalidMessage, match="belongs to Rayfold: the page of events is one transaction; leave it out"):
        model.sql(statement)


def test_sql_is_there_only_while_a_handler_or_an_answer_runs(tmp_path: Path) -> None:
    store, model = DuckDbStore(SCHEMA), SimpleNamespace()
    store.open(model, tmp_path)
    with pytest.raises(StorageFailed, match="sql is there only while a handler or an answer runs"):
        model.sql("FROM t")
    with pytest.raises(StorageFailed, match="rows are appended only while a handler runs"):
        model.append("t", ("x", 1))
    store.close()


class Everything(Query[Any]):
    """All deposits, in the form that is asked for."""

    form: str


class Figures(DuckDbTally):
    """Answers with whole tables."""

    @answer
    def everything(self, query: Everything) -> Any:
        sql = "SELECT account, sum(amount)::BIGINT AS total FROM deposits GROUP BY ALL ORDER BY 1"
        return {"arrow": self.sql.arrow, "df": self.sql.df}[query.form](sql)


def test_an_answer_may_be_a_table_of_arrow_or_of_pandas() -> None:
    log = MemoryLog()
    deposit(log, ["alice", "bob", "alice"])
    read_model = tally_of(Figures, log)
    assert ask(read_model, Everything(form="arrow")).to_pydict() == {"account": ["alice", "bob"], "total": [20, 10]}
    assert ask(read_model, Everything(form="df")).to_dict("list") == {"account": ["alice", "bob"], "total": [20, 10]}
    assert isinstance(ask(read_model, Everything(form="xml")), Exception)
    assert ask(read_model, Everything(form="arrow")).num_rows == 2, "a query that failed leaves the next one alone"
    read_model.close()


def test_sql_that_duckdb_refuses_is_said_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError) as told:
        DuckDbStore("CREATE TABEL t (a INT)").open(SimpleNamespace(), tmp_path)
    assert str(told.value).startswith(
        "SimpleNamespace, store=DuckDb(...): DuckDB refuses its SQL: Parser Error: syntax"
    )


@pytest.mark.slow
def test_a_second_process_is_told_that_the_tables_are_in_use(store: DuckDbStore, tmp_path: Path) -> None:
    program = (
        "import sys, types, pathlib\n"
        "from rayfold.runtime.read.stores.duckdb import DuckDbStore\n"
        "DuckDbStore('').open(types.SimpleNamespace(), pathlib.Path(sys.argv[1]))"
    )
    second = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "model.duckdb is in use by another projector" in second.stderr


def test_without_duckdb_one_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(DefinitionError) as told:
        DuckDbStore("").open(SimpleNamespace(), tmp_path)
    assert str(told.value) == "store=DuckDb(...): duckdb is not installed; pip install rayfold[duckdb]"


@pytest.mark.slow
def test_a_full_disk_in_a_handler_is_no_fault_of_the_event_which_is_taken_in_once_there_is_room(tmp_path: Path) -> None:
    program = Path(__file__).with_name("full_disk.py")
    root = Path(__file__).parents[4]
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.stdout.splitlines() == [*["StorageFailed"] * 4, "{0: 1} 0", "{0: 2} 0 None"], done.stderr


def test_a_time_with_its_zone_can_be_read(tmp_path: Path) -> None:
    """What DuckDB makes of one needs pytz, which `rayfold[duckdb]` brings along and DuckDB does not."""
    store, model = DuckDbStore("CREATE TABLE IF NOT EXISTS times (happened TIMESTAMPTZ)"), SimpleNamespace()
    store.open(model, tmp_path)
    store.begin()
    noon = datetime(2013, 1, 1, 12, tzinfo=UTC)
    model.append("times", (noon,))
    assert model.sql("SELECT happened FROM times").fetchall() == [(noon,)]
    store.close()


def test_the_extras_with_duckdb_bring_what_it_reads_times_with() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name, packages in extras.items():
        has = {package.split(">")[0].split("=")[0] for package in packages}
        assert ("pytz" in has) == ("duckdb" in has), name
