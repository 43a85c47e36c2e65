"""More load than there is room for: queues are bounded, refusals have a name, and it is over when it is over."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.short_form import held

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_ray")]


def test_twice_the_capacity_is_refused_by_name_and_what_was_acknowledged_stays(tmp_path: Path) -> None:
    figures = held("overload", tmp_path).figures
    assert figures["lost"] == 0
    assert int(figures["refused_above"]) > 0 == figures["refused_below"]


def test_a_hot_aggregate_and_a_slow_projector_are_alone_in_it(tmp_path: Path) -> None:
    figures = held("hot-and-slow", tmp_path).figures
    assert int(figures["slow_projector_lag_events"]) >= int(figures["other_projector_lag_events"])
