"""What Ray's own directory keeps of applications: numbers that are given once, code that is still needed."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import pytest

from rayfold.actors.cluster.ray_cluster import Cluster
from rayfold.actors.packaging.application import ApplicationPlan
from rayfold.actors.packaging.builds import ProjectionFacts
from rayfold.actors.packaging.code import Code
from rayfold.actors.packaging.registry import (
    Deployment,
    begin_deployment,
    code_of,
    deployment_of,
    deployments_of,
    forget_deployments,
    forget_plan,
    plan_of,
    put_code,
    put_deployment,
    put_first_plan,
    put_plan,
    put_store,
    remove_unused_code,
    store_of,
    unfinished_deployment,
)
from rayfold.actors.settings import Settings

pytestmark = pytest.mark.slow

ONE: Final = "one-application"
OTHER: Final = "other-application"


@pytest.fixture(autouse=True)
def directory(cluster: Cluster) -> Iterator[None]:
    """That of the Ray of these tests, without what the test before has left."""
    yield
    for name in (ONE, OTHER):
        forget_plan(name)
        forget_deployments(name, 10_000)
    remove_unused_code()


def plan(generation: int, digest: str = "", name: str = ONE) -> ApplicationPlan:
    facts = {"Slips": ProjectionFacts("Slips", 2, 1)}
    return ApplicationPlan(
        name,
        b"classes",
        2,
        {"Slips": 1},
        Settings(),
        generation,
        True,
        digest,
        facts,
        {"Slips": 3},
        create=True,
        without=("1-2-3",),
    )


def test_a_plan_comes_back_as_it_was_put() -> None:
    assert plan_of(ONE) is None
    put_plan(plan(1))
    assert plan_of(ONE) == plan(1)


def test_of_two_first_plans_one_is_put() -> None:
    assert put_first_plan(plan(1))
    assert not put_first_plan(plan(2))
    assert plan_of(ONE) == plan(1)


def test_a_number_is_given_once_also_to_deployers_at_the_same_time_and_after_a_deployment_was_taken_back() -> None:
    with ThreadPoolExecutor(8) as deployers:
        numbers = list(deployers.map(lambda _: begin_deployment(ONE, ""), range(24)))
    assert len(set(numbers)) == 24
    put_deployment(ONE, Deployment(max(numbers), "", failed=("Unavailable", "shop", "it was called off")))
    assert begin_deployment(ONE, "") == max(numbers) + 1


def test_the_highest_number_stays_when_an_application_is_taken_down() -> None:
    number = begin_deployment(ONE, "")
    put_plan(plan(number))
    forget_plan(ONE)
    forget_deployments(ONE, number)
    assert [one.number for one in deployments_of(ONE)] == [number]
    assert begin_deployment(ONE, "") == number + 1


def test_code_that_was_put_and_is_not_planned_yet_outlives_the_clean_up_of_another_application() -> None:
    begin_deployment(ONE, "digest-1")
    put_code(Code("digest-1", b"modules"))
    put_plan(plan(1, "digest-2", OTHER))
    put_code(Code("digest-2", b"others"))
    put_code(Code("digest-3", b"of nobody"))
    remove_unused_code()
    assert (code_of("digest-1"), code_of("digest-2"), code_of("digest-3")) == (b"modules", b"others", None)


def test_the_code_before_stays_until_the_deployment_has_ended() -> None:
    for digest in ("before", "after"):
        put_code(Code(digest, digest.encode()))
    number = begin_deployment(ONE, "after")
    put_deployment(ONE, Deployment(number, "after", plan(number, "after"), previous=plan(1, "before")))
    put_plan(plan(number, "after"))
    remove_unused_code()
    assert (code_of("before"), code_of("after")) == (b"before", b"after")
    forget_deployments(ONE, number)
    remove_unused_code()
    assert (code_of("before"), code_of("after")) == (None, b"after")


def test_a_deployment_is_under_way_from_the_plan_until_that_is_in_charge_or_it_has_ended() -> None:
    put_plan(plan(1))
    number = begin_deployment(ONE, "")
    assert unfinished_deployment(ONE) is None
    under_way = Deployment(number, "", plan(number), previous=plan(1))
    put_deployment(ONE, under_way)
    assert unfinished_deployment(ONE) == under_way
    put_plan(plan(number))
    assert unfinished_deployment(ONE) is None
    put_plan(plan(1))
    put_deployment(ONE, Deployment(number, "", failed=("Unavailable", "shop", "it was called off")))
    assert unfinished_deployment(ONE) is None
    assert deployment_of(ONE, number) == Deployment(number, "", failed=("Unavailable", "shop", "it was called off"))


def test_which_store_an_application_had_is_known_when_it_is_taken_down() -> None:
    put_plan(plan(1))
    put_store(ONE, "1-2-3")
    forget_plan(ONE)
    assert store_of(ONE) == "1-2-3"
    assert store_of(OTHER) == ""
