"""The profile: how py-spy's stacks become places, and that every role of a real run has them."""

from __future__ import annotations

import pytest

from rayfold.benchmarks.suites.profile import places_of, shown_place


@pytest.mark.parametrize(
    ("frame", "place"),
    [
        ("LmdbLog.append (rayfold/runtime/log/writer.py:61)", "LmdbLog.append (runtime/log/writer.py)"),
        ("plan (/srv/app/rayfold/runtime/log/plan.py:99)", "plan (runtime/log/plan.py)"),
        ("Router.submit (actors/client/command_router.py:12)", "Router.submit (actors/client/command_router.py)"),
        ("packb (msgpack/__init__.py:38)", None),
        ("<module>", None),
        ("", None),
    ],
)
def test_a_frame_of_ours_is_named_by_function_and_file_and_no_other_is(frame: str, place: str | None) -> None:
    assert shown_place(frame) == place


def test_looks_count_for_the_innermost_function_of_ours() -> None:
    stacks = (
        "main (x.py:1);plan (rayfold/runtime/log/plan.py:9);packb (msgpack/__init__.py:38) 3\n"
        "main (x.py:1);plan (rayfold/runtime/log/plan.py:12) 2\n"
        "loop (ray/_private/worker.py:9) 4\n"
        "run (threading.py:7) 1\n"
        " 5\n"
    )
    assert places_of(stacks) == {
        "plan (runtime/log/plan.py)": 5,
        "Ray": 4,
        "Python": 1,
        "native threads, Ray's mostly": 5,
    }
