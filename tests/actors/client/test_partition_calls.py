"""Calls of subscriptions to partitions: what is asked again, what is not, and for how long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from rayfold import InvalidMessage, Sealed, SubscriptionInUse, Unavailable
from rayfold.actors.client import partition_calls
from rayfold.actors.client.partition_calls import ActorCalls, KnownUnreachable
from rayfold.actors.cluster.rpc import replies
from rayfold.actors.memory.handle import LocalHandle


class Partition:
    """Answers as it is set to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.failures: list[Exception] = []

    @replies
    def subscription(self, method: str, arguments: Sequence[Any]) -> object:
        self.asked.append((method, tuple(arguments)))
        if self.failures:
            raise self.failures.pop(0)
        return "done"

    @replies
    def renew_member(self, name: str, member: int, grant: int) -> None:
        self.asked.append(("renewed", (name, member, grant)))


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition_calls, "_AGAIN_S", 0.0)


def test_what_a_restart_or_a_move_refuses_is_asked_again() -> None:
    partition = Partition()
    partition.failures = [Sealed("partition 0", "b"), Unavailable("partition 0", "starts"), OSError("gone")]
    calls = ActorCalls(lambda _partition: (LocalHandle(partition), ""), leased=True)
    assert calls.call(0, "save", "mailer", 0, 5, 17, patience_s=60.0) == "done"
    assert partition.asked == [("save", ("mailer", 0, 5, 17))] * 4
    calls.call(0, "renew", "mailer", 0, 5, patience_s=0.0)
    assert partition.asked[-1] == ("renewed", ("mailer", 0, 5))


@pytest.mark.parametrize("patience_s", [0.0, 0.01])
def test_without_an_answer_in_time_it_is_unavailable_by_name(patience_s: float) -> None:
    partition = Partition()
    partition.failures = [OSError("no route")] * 1_000_000
    calls = ActorCalls(lambda _partition: (LocalHandle(partition), ""), leased=True)
    with pytest.raises(Unavailable, match="partition 3: it does not keep places of subscriptions now: no route"):
        calls.call(3, "listed", patience_s=patience_s)


@pytest.mark.parametrize("error", [SubscriptionInUse("m", "0 of 1", "x"), InvalidMessage("subscription", "what")])
def test_what_the_partition_has_decided_is_not_asked_again(error: Exception) -> None:
    partition = Partition()
    partition.failures = [error]
    with pytest.raises(type(error)):
        ActorCalls(lambda _partition: (LocalHandle(partition), ""), leased=True).call(0, "join", patience_s=60.0)
    assert len(partition.asked) == 1


@pytest.mark.parametrize("raises", [True, False])
def test_a_partition_that_is_known_to_be_away_is_not_waited_for(raises: bool) -> None:
    asked: list[int] = []

    def away(partition: int) -> tuple[Any, str]:
        asked.append(partition)
        if raises:
            raise KnownUnreachable(f"partition {partition}", "its home is down")
        return None, "its home is down"

    reached: Callable[[int], tuple[Any, str]] = away
    with pytest.raises(Unavailable, match="partition 2: its home is down") as error:
        ActorCalls(reached, leased=True).call(2, "save", patience_s=60.0)
    assert type(error.value) is Unavailable, "it is known everywhere"
    assert asked == [2]
