"""The watcher: a small process that sees how busy the machine is meanwhile, and how much of that is ours.

A process of its own because a look through /proc takes milliseconds: in the load generator's own process each would be
a stall in the latencies that it measures. It reads one word a line, `begin` or `end`, answers an `end` with one line of
JSON, and ends with its input, so it never outlives the run. Run as a file, with nothing but the standard library.

Ours is the process that started it and all its descendants; on a cluster that another program started, Ray's processes
too. The time of a process that ended is kept in two ways, of which each misses some: by what it was last seen to have
used, twice a second (misses the short-lived), and by what its parent has collected (Ray's daemon collects nothing).
Neither counts anything twice, so the larger one is taken.
"""

from __future__ import annotations

import json
import os
import select
import sys
from typing import Final

PERIOD_S: Final = 0.5
RAY_NAMES: Final = ("raylet", "gcs_server", "ray::")

Counters = tuple[int, int, int]
"""Of the whole machine, in ticks since it began: all time, time that was worked, time stolen by other machines."""

Key = tuple[int, int]
"""A pid and when it started: pids are given again."""

Ticks = tuple[int, int]
"""What a process used: itself, and together with the children that it has collected."""


def shares(before: Counters, after: Counters, ours: int) -> dict[str, float]:
    """Shares of the machine's CPU time between two looks: ours, of other processes, stolen."""
    total = max(after[0] - before[0], 1)
    worked, stolen = after[1] - before[1], after[2] - before[2]
    return {
        "ours": round(min(ours / total, 1.0), 4),
        "others": round(max(worked - ours, 0) / total, 4),
        "steal": round(max(stolen, 0) / total, 4),
    }


class Watch:
    """Samples the machine, and the tree of one process."""

    def __init__(self, root: int, ray_is_ours: bool) -> None:
        self._root, self._ray_is_ours = root, ray_is_ours
        self._first: dict[Key, Ticks] = {}
        self._last: dict[Key, Ticks] = {}
        self._before: Counters = (0, 0, 0)
        self._load_before = 0.0

    def begin(self) -> None:
        """Count from here."""
        self._first = self._ours()
        self._last = dict(self._first)
        self._before, self._load_before = _machine(), os.getloadavg()[0]

    def look(self) -> None:
        """See what every process of ours has used by now."""
        self._last.update(self._ours())

    def end(self) -> dict[str, float]:
        """What was since `begin`."""
        now = self._ours()
        self._last.update(now)
        seen = sum(own - self._first.get(key, (0, 0))[0] for key, (own, _) in self._last.items())
        collected = sum(both for _, both in now.values()) - sum(both for _, both in self._first.values())
        used = max(seen, collected)
        loads = {"load_before": round(self._load_before, 2), "load_after": round(os.getloadavg()[0], 2)}
        return {**loads, **shares(self._before, _machine(), used)}

    def _ours(self) -> dict[Key, Ticks]:
        """What each process of ours has used."""
        parents: dict[int, int] = {}
        used: dict[int, tuple[Key, Ticks]] = {}
        roots = {self._root}
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            try:
                with open(f"/proc/{name}/stat") as file:
                    head, _, tail = file.read().rpartition(")")
            except OSError:
                continue
            pid, fields = int(name), tail.split()
            parents[pid] = int(fields[1])
            own, children = int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14])
            used[pid] = ((pid, int(fields[19])), (own, own + children))
            if self._ray_is_ours and head.partition("(")[2].startswith(RAY_NAMES):
                roots.add(pid)
        return dict(used[pid] for pid in used if _descends(pid, parents, roots))


def _descends(pid: int, parents: dict[int, int], roots: set[int]) -> bool:
    while pid not in roots:
        pid = parents.get(pid, 0)
        if not pid:
            return False
    return True


def _machine() -> Counters:
    """From the first line of /proc/stat: user nice system idle iowait irq softirq steal."""
    try:
        with open("/proc/stat") as file:
            user, nice, system, idle, iowait, irq, softirq, steal = map(int, file.readline().split()[1:9])
    except (OSError, ValueError):
        return (0, 0, 0)
    worked = user + nice + system + irq + softirq
    return (worked + idle + iowait + steal, worked, steal)


def main(root: int, ray_is_ours: bool) -> None:
    """Serve until the input ends."""
    watch = Watch(root, ray_is_ours)
    watching, waiting = False, b""
    while True:
        if not select.select([0], [], [], PERIOD_S if watching else None)[0]:
            watch.look()
            continue
        read = os.read(0, 4096)
        if not read:
            return
        *words, waiting = (waiting + read).split(b"\n")
        for word in words:
            watching = word == b"begin"
            if watching:
                watch.begin()
            else:
                print(json.dumps(watch.end()), flush=True)


if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which then closes our input
    main(int(sys.argv[1]), sys.argv[2:] == ["ray"])
