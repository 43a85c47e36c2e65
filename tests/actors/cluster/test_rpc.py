"""What an actor replies: a value or an error, distinguished whatever their types are."""

from __future__ import annotations

import asyncio
import inspect
import pickle
from concurrent.futures import Future
from typing import Any

import pytest

from rayfold.actors.cluster.rpc import Method, Reply, call, call_now, one_line, replies
from rayfold.actors.control.supervisor_actor import SupervisorActor
from rayfold.actors.nodes.agent import NodeAgent
from rayfold.actors.partition.actor import PartitionActor
from rayfold.actors.partition.own_actor import AggregateActor
from rayfold.actors.projection.actor import ProjectorActor
from rayfold.runtime.errors import RayfoldError, Rejected, Unavailable


class Till:
    """An actor that is in this process."""

    @replies
    def pay(self, amount: int) -> list[Any]:
        if amount < 0:
            raise Unavailable("the till", "it is closed")
        return [["Unavailable", "the till", "looks like an error"], amount]

    @replies
    async def close(self) -> None:
        raise Rejected("open", coins=3)

    @replies
    def breaks(self) -> None:
        raise LookupError("a fault, not an answer")


class Sent:
    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def remote(self, *arguments: Any) -> Sent:
        return Sent(self._answer)

    def future(self) -> Future[Any]:
        future: Future[Any] = Future()
        if self._answer is not None:
            future.set_result(pickle.loads(pickle.dumps(self._answer)))
        return future


async def test_an_answer_that_looks_like_an_error_is_an_answer() -> None:
    pay: Method[Reply[list[Any]], int] = Sent(Till().pay(5))
    assert await call(pay, 5) == [["Unavailable", "the till", "looks like an error"], 5]
    assert call_now(pay, 5)[1] == 5


async def test_an_error_arrives_with_its_type_and_its_facts() -> None:
    pay: Method[Reply[list[Any]], int] = Sent(Till().pay(-1))
    with pytest.raises(Unavailable, match="the till"):
        await call(pay, -1)
    close: Method[Reply[None]] = Sent(await Till().close())
    with pytest.raises(Rejected) as caught:
        await call(close)
    assert caught.value.facts["coins"] == 3


def test_none_is_a_value_and_a_reply_without_an_error_has_none() -> None:
    assert Reply(None).unwrap() is None
    assert Reply.failed(None).error is None
    error: RayfoldError | None = Reply.failed(Unavailable("x", "y")).error
    assert isinstance(error, Unavailable)


@pytest.mark.parametrize("actor", [PartitionActor, ProjectorActor, AggregateActor, NodeAgent, SupervisorActor])
def test_ray_finds_the_concurrency_group_of_a_method_that_replies(actor: type) -> None:
    for name, method in inspect.getmembers(actor, inspect.isfunction):
        noted = {key: value for key, value in vars(method).items() if key.startswith("__ray_")}
        found = {key: value for key, value in vars(inspect.unwrap(method)).items() if key.startswith("__ray_")}
        assert found == noted, name


def test_only_errors_of_ours_are_replies() -> None:
    with pytest.raises(LookupError):
        Till().breaks()


async def test_no_call_waits_without_end() -> None:
    silent: Method[Reply[None]] = Sent(None)
    with pytest.raises(asyncio.TimeoutError):
        await call(silent, timeout_s=0.01)


def test_a_text_of_rays_has_no_colours() -> None:
    assert one_line("it ended: \x1b[36mray::Bank.__init__()\x1b[39m (pid=5)\nand that\n") == (
        "it ended: ray::Bank.__init__() (pid=5) and that"
    )
