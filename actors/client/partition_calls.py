"""ActorCalls: what leads a named subscription to the partitions that keep how far it is: the handles of their actors.

Beside all steps. Other ways, for programs without handles: `../system/relayed_calls.py`. What is asked:
`runtime/feed/group_coordinator.py`.

Rules kept here: every call has a limit, and what does not answer is `Unavailable`, by name; a call may be made again,
so what is lost on the way is sent again, for as long as its caller has patience.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from ...runtime.errors import Fenced, RayfoldError, Sealed, Unavailable
from ..cluster.retry import Patience, retried_now
from ..cluster.rpc import call_now, one_line

__all__ = ["ATTEMPT_S", "ActorCalls", "KnownUnreachable", "NotRunning", "patiently"]

ATTEMPT_S: Final = 2.0
"""For one attempt, which takes a millisecond or two."""

_AGAIN_S: Final = 0.1

Reached = Callable[[int], tuple[Any, str]]
"""The actor of a partition, and why nothing reaches it, if that is known."""


class ActorCalls:
    """To the partitions of a system whose actors this program calls."""

    def __init__(self, reached: Reached, *, leased: bool) -> None:
        self._reached = reached
        self.leased = leased

    def call(self, partition: int, method: str, *arguments: Any, patience_s: float) -> Any:
        """See `PartitionCalls`."""

        def once() -> Any:
            actor, why = self._reached(partition)
            if why:
                raise KnownUnreachable(f"partition {partition}", why)
            given: Sequence[Any] = arguments
            asked = actor.renew_member if method == "renew" else actor.subscription
            return call_now(asked, *(arguments if method == "renew" else (method, given)), timeout_s=ATTEMPT_S)

        return patiently(f"partition {partition}", once, patience_s)

    def close(self) -> None:
        """See `PartitionCalls`: they are the system's."""


class KnownUnreachable(Unavailable):
    """It is known that nothing reaches a partition: it need not be asked again."""


class NotRunning(Exception):  # noqa: N818 - a signal between these files, not an error
    """No program with a relay runs the store now: another attempt is of no use."""


class _Unreachable(Exception):
    """The partition moves, or its process is started again."""


def patiently(who: str, once: Callable[[], Any], patience_s: float) -> Any:
    """What an attempt comes to, made again where it may be: the partition moves, or its process is started again."""

    def attempt(_: float) -> Any:
        try:
            return once()
        except KnownUnreachable:
            raise
        except (Sealed, Fenced) as error:
            raise _Unreachable(str(error)) from error
        except Unavailable as error:
            raise _Unreachable(error.what) from error

    try:
        return retried_now(attempt, Patience(patience_s, pause_s=_AGAIN_S, never=(RayfoldError, NotRunning)))
    except KnownUnreachable as error:
        raise Unavailable(error.subject, error.what) from None
    except (RayfoldError, NotRunning):
        raise
    except Exception as failure:  # Ray raises many: it is not there, or does not answer in time
        what = one_line(failure) or "no answer in time"
        raise Unavailable(who, f"it does not keep places of subscriptions now: {what}") from failure
