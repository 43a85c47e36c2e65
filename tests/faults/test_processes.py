"""Processes that die, stand still, or run code that misbehaves: nothing is lost, nothing happens twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.short_form import held

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_ray")]


def test_partitions_own_actors_and_projectors_killed_under_load_lose_nothing(tmp_path: Path) -> None:
    figures = held("kill-parts", tmp_path).figures
    assert (figures["lost"], figures["twice"], figures["processes_left"]) == (0, 0, 0)
    assert figures["killed_partitions"] == figures["killed_own_actors"] == figures["killed_projectors"] == 2


def test_couriers_killed_while_processes_run_repeat_and_forget_nothing(tmp_path: Path) -> None:
    figures = held("kill-couriers", tmp_path).figures
    assert figures["killed"] == 3
    assert 0 < int(figures["sold"]) < int(figures["orders"])


def test_partitions_and_runners_killed_while_effects_call_the_outside_make_no_call_twice(tmp_path: Path) -> None:
    figures = held("kill-effects", tmp_path).figures
    assert figures["killed"] == 4
    assert int(figures["bills"]) > 20


def test_a_program_killed_in_the_middle_of_a_batch_leaves_a_directory_that_opens_at_once(tmp_path: Path) -> None:
    figures = held("kill-program", tmp_path).figures
    assert figures["runtimes_refused"] == 1, "while the program ran, a second one was not refused with its holder"
    assert int(figures["acknowledged"]) > 1000
    assert figures["processes_left"] == 0


def test_a_partition_that_wakes_up_after_its_successor_appends_nothing(tmp_path: Path) -> None:
    figures = held("stop-and-resume", tmp_path).figures
    assert (figures["taken_over"], figures["appended_by_the_old"]) == (1, 0)


def test_an_aggregate_that_raises_or_loops_is_told_of_to_its_caller_and_to_nobody_else(tmp_path: Path) -> None:
    figures = held("rogue-aggregates", tmp_path).figures
    assert (figures["told_by_name"], figures["told_at_the_deadline"]) == (4, 1)


def test_an_event_that_a_projection_cannot_take_in_is_set_aside_and_the_rest_is_right(tmp_path: Path) -> None:
    assert held("poisoned-projection", tmp_path).figures["quarantined"] == 1


@pytest.mark.timeout(900)
def test_clients_of_a_store_lose_nothing_when_the_program_that_runs_it_is_killed(tmp_path: Path) -> None:
    figures = held("kill-owner", tmp_path).figures
    assert (figures["lost"], figures["twice"], figures["killed_owners"]) == (0, 0, 1)
    assert int(figures["session_reads"]) > 0
