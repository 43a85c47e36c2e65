"""Ray's calls lost, late, and with lost answers: its own fault injection, in a program and a Ray of their own.

The socket is switched off, so that every command goes through Ray. A lost answer means that a command was executed
and its sender does not know; a lost request, that Ray holds everything behind it for up to 30 s. Each call has its
deadline, and what is unknown is sent again under the same id.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from rayfold.actors.settings import Settings

from ...harness.processes import Child
from ..contract import Context, Findings, scenario
from .harness import INVARIANTS_OF_BANKS, local_bank, stop_ray

_DEADLINE_S: Final = 8.0
_GRACE_S: Final = 3.0
"""By which a busy machine may be late for a deadline."""

_SHORT_S: Final = 4.0

_AROUND_S: Final = 20.0
"""For a Ray to start, and for what is on its way to come to its end."""

_END_S: Final = 240.0
"""At the most: a Ray that loses requests holds what is behind them for 30 s each."""

_PUSH: Final = "CoreWorkerService.grpc_client.PushTask"


def _environment(kind: str, percent: int, times: int) -> dict[str, str]:
    """What makes a Ray lose `percent` of the calls of a kind, `times` in each process, and be late with all."""
    odds = {"req_failure_prob": 0, "resp_failure_prob": 0, "in_flight_failure_prob": 0, f"{kind}_failure_prob": percent}
    return {
        "RAY_testing_rpc_failure": json.dumps({_PUSH: {"num_failures": times, **odds}}),
        "RAY_testing_asio_delay_us": "CoreWorkerService.grpc_server.PushTask=0:20000",
    }


@scenario(
    "lost-calls",
    "Ray loses answers, requests and calls on the way, and is late with all",
    f"{INVARIANTS_OF_BANKS} I12",
    times=(20, 120, 1),
)
def lost_calls(context: Context, findings: Findings) -> None:
    """Lost answers in the short form; lost requests, and calls lost on the way, in the long one too, as far as there is
    time."""
    kinds = ["resp"] if context.short else context.rng.sample(["resp", "in_flight", "req"], 3)
    for number, kind in enumerate(kinds):
        if number and context.left_s < _AROUND_S:
            break
        seconds = _SHORT_S if context.short else max(_SHORT_S, context.left_s / (3 - number) - _AROUND_S)
        environment, seed = _environment(kind, 20, 6 if context.short else 200), context.rng.randrange(1 << 31)
        given: dict[str, Any] = {"folder": str(context.folder / kind), "seconds": seconds, "scale": context.scale}
        with Child(load, environment, seed=seed, **given) as child:
            told = list(child.lines(seconds + _END_S))
            if child.wait() or not told:
                raise RuntimeError(f"{child.name} failed:\n{child.errors()}")
        part = Findings.of(json.loads(told[-1]))
        for name in [name for name in part.figures if name.startswith("latency")]:
            part.figures[f"{name} {kind}"] = part.figures.pop(name)
        findings.include(part)


def load(seed: int, folder: str, seconds: float, scale: Any) -> None:
    """What the child runs, in a Ray that loses calls. It prints its findings in the end."""
    findings = Findings()
    Path(folder).mkdir()
    context = Context(seed, random.Random(seed), Path(folder), scale, time.monotonic() + seconds)
    try:
        asyncio.run(_load(context, findings, seconds))
    finally:
        stop_ray()
    print(json.dumps(asdict(findings)), flush=True)


async def _load(context: Context, findings: Findings, seconds: float) -> None:
    settings = Settings(timeout_s=60.0, attempt_timeout_s=2.0, own_actors_max=2, local_sockets=False)
    async with local_bank(context, findings, settings=settings) as bank:
        bank.begin_load(own=("own",), timeout_s=_DEADLINE_S)
        await asyncio.sleep(seconds)
        await bank.end_load()
    late_s = bank.history.latest_s
    findings.figures["later_than_deadline_ms_max"] = round(late_s * 1e3, 1)
    findings.check("I12", late_s < _GRACE_S, f"a call got its outcome {late_s:.1f} s after its deadline")
