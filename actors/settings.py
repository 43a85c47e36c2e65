"""Settings: the bounds and deadlines of a runtime, each with the reason for its size."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..runtime.errors import InvalidMessage
from ..runtime.printable import shown
from ..runtime.write.residents import RESIDENTS_MAX

__all__ = ["Settings"]


@dataclass(frozen=True, slots=True)
class Settings:
    """All bounds and deadlines of a system, with their defaults. A plain value that travels with every actor.

    All numbers are positive; a wrong one raises `InvalidMessage`, which names it. Times end with `_s` and are
    seconds, sizes end with `_bytes`, bounds with `_max`.

    Example:
        bank = BlockingRuntime("bank-data", aggregates=[Account], settings=Settings(timeout_s=30, own_actors_max=4))
    """

    timeout_s: float = 10.0
    """How long a command or query may take, all attempts together, unless the call sets another limit."""

    attempt_timeout_s: float = 5.0
    """When an attempt without an answer is sent again. A killed actor answers again after 1-2 s; a request that
    the network lost would otherwise stall its line for 30 s. An aggregate in an actor of its own may take as long as
    its callers wait."""

    decide_max_s: float = 6.0
    """How long the code of one command may take. One that takes longer is `HandlerFailed`, its process is ended, and
    it is not tried again for a while. In a partition, where others wait for it, four fifths of `attempt_timeout_s` at
    most."""

    answer_max_s: float = 4.0
    """How long one query may take; the same happens then. One event that a projection takes in may take eight times as
    long, since its commit may wait for a disk; the second time that it takes longer it is set aside, or stops the
    projection."""

    own_actors_max: int = 16
    """Own actors alive per node: each costs about 45 MiB and half a CPU-second to start."""

    own_actor_idle_s: float = 300.0
    """An own actor that has appended nothing for this long gives its place back."""

    residents_max: int = RESIDENTS_MAX
    """Aggregates in memory per partition."""

    in_flight_max: int = 32_768
    """Commands of one client, and queries to one projection, that may wait for an answer: about a second of work and
    30 MB. Beyond that, `Overloaded` at once."""

    silent_s: float = 15.0
    """How long an actor of a system on several nodes may give no sign of life, while its node is up, before it is
    replaced. One that Ray is still starting is waited for, up to five minutes."""

    standing_check_share: float = 0.01
    """How much of one CPU each partition and each projector uses to compare its state with a fold of the log
    (`runtime/checks/standing.py`); 0 turns it off. At 0.01 an aggregate is checked about every two seconds."""

    local_sockets: bool = True
    """Have commands reach a partition, and queries and broadcasts a projector, on the same machine over a Unix socket
    that only this user can open (`sockets/listening.py`). Without, and on other nodes, they travel through Ray, which
    takes some 0.6 ms more for each batch; and no other program can `connect` by the path of the store."""

    tune_garbage_collector: bool = True
    """Have this process search for cyclic garbage less often while the runtime runs (see `gc_tuning.py`). Settings of
    the program's own are left alone, and everything is put back at the end."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "bool":
                if not isinstance(value, bool):
                    raise InvalidMessage("Settings", f"{field.name} is {shown(value)}", "give True or False")
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InvalidMessage("Settings", f"{field.name} is {shown(value)}", "give a number")
            if field.type == "int" and not isinstance(value, int):
                raise InvalidMessage("Settings", f"{field.name} is {shown(value)}", "give a whole number")
            if not value >= 0 or (value == 0 and field.name not in ("own_actors_max", "standing_check_share")):
                raise InvalidMessage("Settings", f"{field.name} is {shown(value)}", "give a positive number")
        if self.standing_check_share > 1:
            raise InvalidMessage("Settings", f"standing_check_share is {self.standing_check_share!r}", "give 0 to 1")
