"""Networks that lose, repeat, reorder, cut and delay: at most once, in order, and every call has an end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.short_form import held

pytestmark = pytest.mark.slow


@pytest.mark.usefixtures("shared_ray")
def test_a_socket_that_is_cut_and_full_of_strangers_loses_nothing(tmp_path: Path) -> None:
    figures = held("hostile-road", tmp_path).figures
    assert (figures["lost"], figures["twice"], figures["unknown"]) == (0, 0, 0)


def test_calls_that_ray_loses_take_effect_at_most_once_and_end_by_their_deadline(tmp_path: Path) -> None:
    figures = held("lost-calls", tmp_path).figures
    assert (figures["lost"], figures["twice"]) == (0, 0)
    assert int(figures["repeated"]) > 0, "no answer was lost: no command had to be sent again"


@pytest.mark.usefixtures("shared_ray")
def test_a_projector_is_right_whatever_the_broadcast_does(tmp_path: Path) -> None:
    figures = held("hostile-broadcast", tmp_path).figures
    assert all(int(figures[fault]) > 10 for fault in ("dropped", "repeated", "reordered", "shortened"))
