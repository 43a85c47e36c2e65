"""`rayfold export` as a user meets it."""

from __future__ import annotations

import json
import os
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from rayfold import Application, RayfoldError
from rayfold.actors.cli.main import app
from rayfold.runtime.store.store import Store, create_or_open_store
from tests.bank import Account, Deposited, Opened
from tests.support.written import write

bank = Application("bank", aggregates=[Account])
ME = f"{__name__}:bank"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = create_or_open_store(tmp_path / "bank-data", 2)
    write(store, [("alice", Opened(owner="Ada")), ("bob", Opened(owner="Bob")), ("alice", Deposited(amount=5))])
    return store


def exported(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["export", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def rows_in(path: Path) -> list[dict[str, Any]]:
    return parquet.read_table(path).to_pylist()  # type: ignore[no-any-return]


def test_a_store_is_exported_with_its_classes_or_as_it_is_stored(store: Store, tmp_path: Path) -> None:
    told = exported(store.path, ME, "--to", tmp_path / "out", "--json", tmp_path / "figures.json")
    assert told.startswith("3 events, ")
    assert " bytes in 2 files " in told
    assert [row["owner"] for row in rows_in(tmp_path / "out" / "Opened.parquet")].count("Ada") == 1
    assert [row["amount"] for row in rows_in(tmp_path / "out" / "Deposited.parquet")] == [5]
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["events"], figures["unreadable"], sum(figures["until"].values())) == (3, 0, 3)
    exported(store.path, "--to", tmp_path / "all.parquet")
    assert sorted(row["_payload"] for row in rows_in(tmp_path / "all.parquet")) == [
        '{"amount":5,"currency":"EUR"}',
        '{"owner":"Ada"}',
        '{"owner":"Bob"}',
    ]
    exported(store.path, ME, "--to", tmp_path / "one.parquet", "--types", "Deposited")
    assert [row["currency"] for row in rows_in(tmp_path / "one.parquet")] == ["EUR"]


def test_streams_and_places_choose(store: Store, tmp_path: Path) -> None:
    def count(*options: str) -> int:
        exported(store.path, *options, "--to", tmp_path / "x.jsonl", "--overwrite")
        return len((tmp_path / "x.jsonl").read_text().splitlines())

    assert count("--streams", "Account/alice") == 2
    assert count(ME, "--streams", "Account/alice", "--streams", "Account/bob") == 3
    assert count(ME, "--streams", "Account", "--types", "Opened,Deposited") == 3
    heads = {}
    for partition in range(2):
        with closing(store.open_reader(partition)) as reader:
            heads[partition] = reader.head()
    at_heads = [word for partition, head in heads.items() for word in ("--since", f"{partition}={head}")]
    assert count(*at_heads) == 0
    assert count("--until", "2020-01-01") == 0
    assert count("--since", "2020-01-01T00:00+01:00", "--until", datetime.now(UTC).isoformat()) == 3


def test_a_mistake_is_named_and_leaves_nothing(store: Store, tmp_path: Path) -> None:
    (tmp_path / "taken.parquet").touch()
    for options, text in (
        ([store.path], "add --to FILE.parquet, --to FILE.jsonl or --to FOLDER"),
        ([store.path, "--to", tmp_path / "taken.parquet"], "taken.parquet exists; choose another place"),
        ([store.path, "--to", tmp_path / "x.parquet", "--types", "Deposed"], "no stored event is named 'Deposed'"),
        ([store.path, ME, "--to", tmp_path / "x.parquet", "--types", "Deposed"], "no event is named 'Deposed'"),
        ([store.path, "--to", ""], "add --to FILE.parquet"),
        ([store.path, "--to", tmp_path / "x.parquet", "--until", "7=1"], "until: 7: 1 is not a position in this store"),
        ([store.path, "--to", tmp_path / "x.parquet", "--since", "yesterday"], "'yesterday' is no place in a store"),
        ([store.path, "--to", tmp_path / "x.parquet", "--since", "0=99"], "partition 0 has no position 99"),
        ([tmp_path / "none", "--to", tmp_path / "x.parquet"], "there is no store here"),
    ):
        with pytest.raises(RayfoldError) as told:
            exported(*options)
        assert text in str(told.value)
    assert sorted(os.listdir(tmp_path)) == ["bank-data", "taken.parquet"]


@pytest.mark.parametrize(
    ("option", "given", "text"),
    [
        ("--types", "", "--types: has an empty name; name what is wanted, or leave the option out for everything"),
        ("--types", "Opened,,", "--types: has an empty name"),
        ("--streams", "", "--streams: has an empty name"),
        ("--since", "", "--since: '' is no place in a store"),
        ("--until", "", "--until: '' is no place in a store"),
    ],
)
def test_an_empty_option_is_refused_and_does_not_mean_everything(
    store: Store, tmp_path: Path, option: str, given: str, text: str
) -> None:
    for classes in ([], [ME]):
        with pytest.raises(RayfoldError) as told:
            exported(store.path, *classes, "--to", tmp_path / "x.parquet", option, given)
        assert text in str(told.value)
    assert os.listdir(tmp_path) == ["bank-data"]
