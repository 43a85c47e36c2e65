"""A process killed, and a disk that fails, at any system call: nothing acknowledged is lost, and nothing is half."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.short_form import figure, short_form

pytestmark = pytest.mark.slow


def test_a_writer_killed_before_any_system_call_of_a_commit_loses_nothing(tmp_path: Path) -> None:
    findings = short_form("kill-in-commit", tmp_path)
    assert figure(findings, "crash_points") > 40
    assert figure(findings, "losses") == figure(findings, "twice") == 0


def test_a_disk_that_fails_at_any_call_is_an_error_with_a_name_and_the_next_attempt_succeeds(tmp_path: Path) -> None:
    findings = short_form("disk-errors", tmp_path)
    assert figure(findings, "calls_failed") > 30
    assert figure(findings, "reported") > 10
    assert figure(findings, "losses") == figure(findings, "twice") == 0


def test_a_store_whose_making_is_interrupted_is_whole_or_not_there(tmp_path: Path) -> None:
    findings = short_form("interrupted-creation", tmp_path)
    assert figure(findings, "crash_points") > 10
    assert figure(findings, "missing") > 0
    assert figure(findings, "opened") > 0
    assert figure(findings, "half") == 0
