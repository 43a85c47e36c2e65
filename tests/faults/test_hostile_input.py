"""Input that is meant to harm: refused by name before it costs, stored nowhere, executed never."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayfold.benchmarks.torture.storage.hostile import INPUTS
from tests.faults.short_form import figure, short_form

pytestmark = pytest.mark.slow


def test_every_hostile_input_is_refused_by_name_and_before_it_costs_memory(tmp_path: Path) -> None:
    findings = short_form("hostile-input", tmp_path)
    assert figure(findings, "refused") == len(INPUTS)
    assert figure(findings, "flood_ids") == 20_000
    assert figure(findings, "files_outside") == 0


def test_no_pickle_is_ever_executed(tmp_path: Path) -> None:
    findings = short_form("pickles", tmp_path)
    assert figure(findings, "places") >= 12
    assert figure(findings, "pickles") > 50
    assert figure(findings, "executed") == 0
