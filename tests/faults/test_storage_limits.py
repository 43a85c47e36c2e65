"""A full disk or map, no permission, readers that stay, a clock that goes back: refused by name, bounded, resumed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.short_form import figure, short_form

pytestmark = pytest.mark.slow


def test_a_full_disk_is_refused_by_name_serves_reads_and_takes_writes_again_when_it_is_freed(tmp_path: Path) -> None:
    findings = short_form("disk-full", tmp_path)
    assert figure(findings, "refused") >= 2
    assert figure(findings, "losses") == figure(findings, "twice") == 0


def test_a_full_map_grows_and_one_that_cannot_grow_serves_reads_and_goes_on_later(tmp_path: Path) -> None:
    findings = short_form("map-full", tmp_path)
    assert figure(findings, "maps_grown") >= 2
    assert figure(findings, "refused") == 2


def test_a_store_that_may_not_be_written_or_looked_into_is_refused_by_name(tmp_path: Path) -> None:
    assert figure(short_form("no-permission", tmp_path), "refused") >= 2


def test_readers_that_never_stop_stand_still_or_die_do_not_make_the_file_grow_for_ever(tmp_path: Path) -> None:
    findings = short_form("long-readers", tmp_path)
    assert figure(findings, "reads_beside") > 0
    assert figure(findings, "grown_kib_stopped") > figure(findings, "grown_kib_alone")


def test_a_clock_that_is_set_back_an_hour_changes_no_order_and_loses_nothing(tmp_path: Path) -> None:
    findings = short_form("clock-set-back", tmp_path)
    assert figure(findings, "seconds_back") > 3_000
    assert figure(findings, "losses") == 0


def test_another_format_or_engine_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    findings = short_form("another-format", tmp_path)
    assert figure(findings, "refused") >= 40
    assert figure(findings, "changed") == 0
