"""A child process that follows a store's log with one projection, and is killed at a given step.

`python -m tests.runtime.read.stores.follower_process STORE DIRECTORY TALLY STEP...`: a child for each STEP is killed
with -9 when it comes to that step for the first, second or third time.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rayfold.runtime.read.read_model import ReadModel
from rayfold.runtime.store.store import open_store
from tests.runtime.read.stores import tallies

STEPS = ("begin", "in a handler", "before the commit", "after the commit", "encode", "write", "rename")
"""Where it can be killed. The last three are those of a checkpoint, which only a state in memory has."""

PAGE = 7
"""Events that are taken in at once, so that there are many commits in a short log."""


def die_at(times: int) -> Callable[[], None]:
    """A function that kills this process when it is called for the n-th time."""
    left = [times]

    def come_by() -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    return come_by


def wrap(
    owner: Any, name: str, before: Callable[[], None] | None = None, after: Callable[[], None] | None = None
) -> None:
    """Call something before or after a method."""
    inner = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if before is not None:
            before()
        result = inner(*args, **kwargs)
        if after is not None:
            after()
        return result

    setattr(owner, name, wrapped)


def arm(read_model: ReadModel, step: str, times: int) -> None:
    """Be killed at this step."""
    store, die = read_model._kept.store, die_at(times)
    if step == "begin":
        wrap(store, "begin", after=die)
    elif step == "in a handler":
        tallies.Broken.check = lambda recorded: die()  # type: ignore[method-assign]
    elif step == "before the commit":
        wrap(store, "commit", before=die)
    elif step == "after the commit":
        wrap(store, "commit", after=die)
    elif step == "encode":
        wrap(store, "encode", after=die)
    elif step == "write":
        wrap(os, "fsync", before=die)
    elif step == "rename":
        wrap(Path, "rename", before=die)


def follow(store: str, directory: str, tally: str, step: str, times: int) -> str:
    """Follow the log to its end, with a checkpoint after every page. Returns where it began and what it has seen."""
    log = open_store(store).open_reader(0)
    read_model = tallies.read_model_of(getattr(tallies, tally), log, Path(directory))
    read_model.open()
    arm(read_model, step, times)
    started_at = read_model.positions[0]
    for up_to in range(started_at + PAGE, log.head() + PAGE, PAGE):
        read_model.catch_up(0, min(up_to, log.head()))
        read_model.checkpoint()
    told = json.dumps([started_at, tallies.ask(read_model, tallies.Seen())])
    read_model.close()
    log.close()
    return told


def in_a_child(*arguments: Any) -> str:
    """What `follow` returns in its own process; empty if that was killed. Forked: a new interpreter takes 0.4 s."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.write(writing, follow(*arguments).encode())
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    if status not in (0, signal.SIGKILL):
        raise SystemExit(f"the child ended with status {status}")
    return told


def main(store: str, directory: str, tally: str, *steps: str) -> None:
    """One child after the other, each killed at its step; the last is not. Prints what each has returned."""
    for number, step in enumerate([*steps, "never"]):
        print(in_a_child(store, directory, tally, step, 1 + number % 3) or "killed")


if __name__ == "__main__":
    main(*sys.argv[1:])
