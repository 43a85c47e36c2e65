"""On one machine, an actor that gives no sign of life is ended, also if it has never given one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import Any

import pytest
import ray

from rayfold.actors.cluster.ray_cluster import Cluster
from rayfold.actors.cluster.rpc import call, process_of, replies
from rayfold.actors.system.liveness import LivenessWatch


class Living:
    """Answers as long as nothing stops it."""

    @replies
    def process_id(self) -> int:
        return os.getpid()


class One:
    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def watched(self) -> list[tuple[str, Any]]:
        return [("the one", self._actor)]


@pytest.mark.parametrize("heard_before", [False, True])
async def test_an_actor_that_is_frozen_is_ended_and_comes_back(cluster: Cluster, heard_before: bool) -> None:
    remote: Any = ray.remote
    actor = remote(Living).options(num_cpus=0, max_restarts=1, max_task_retries=-1).remote()
    pid = await call(actor.process_id, timeout_s=60)
    watching = asyncio.create_task(LivenessWatch(One(actor), 2.0).watch())
    try:
        if heard_before:
            await asyncio.sleep(1.5)
        os.kill(pid, signal.SIGSTOP)
        async with asyncio.timeout(60):
            while await asyncio.to_thread(process_of, actor) in (0, pid):
                await asyncio.sleep(0.1)
    finally:
        watching.cancel()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        ray.kill(actor)


async def test_a_process_that_has_only_come_up_is_given_time_to_answer(cluster: Cluster) -> None:
    remote: Any = ray.remote
    actor = remote(Living).options(num_cpus=0).remote()
    pid = await call(actor.process_id, timeout_s=60)
    watch = LivenessWatch(One(actor), 600.0)
    watch._heartbeats._heard_s["the one"] = float("-inf")  # silent since long before this process was started
    os.kill(pid, signal.SIGSTOP)
    try:
        await watch._look()
    finally:
        os.kill(pid, signal.SIGCONT)
    assert await call(actor.process_id, timeout_s=60) == pid
    ray.kill(actor)
