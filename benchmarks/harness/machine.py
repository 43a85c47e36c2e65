"""The machine: what the figures were measured on, so that two are not compared that do not compare.

Rule kept here: what cannot be found out is "unknown", never left away. Nothing here names a person, a host or a place.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

FSYNC: Final = "every batch before it is acknowledged (LMDB sync=True metasync=True writemap=False)"
PACKAGES: Final = ("ray", "lmdb", "pydantic", "msgpack", "eventsourcing", "umadb")
IDENTITY: Final = ("cpu", "cores", "cores_of_machine", "memory_gib", "filesystem", "kernel")
"""What has to be equal for two runs to count as of the same machine."""

UNKNOWN: Final = "unknown"
_ROOT: Final = Path(__file__).resolve().parents[2]


def describe_machine(directory: Path) -> dict[str, Any]:
    """The card: hardware, file system of the data, system, versions, commit."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cores_of_machine": os.cpu_count() or 0,
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or UNKNOWN,
        "memory_gib": _memory_gib(),
        "filesystem": filesystem_of(directory),
        "fsync": FSYNC,
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "rayfold": _rayfold_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        **_commit(),
    }


def same_machine(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """In what two cards differ, one line each; empty if they are of the same machine."""
    return [
        f"{name}: {one.get(name, UNKNOWN)} against {other.get(name, UNKNOWN)}"
        for name in IDENTITY
        if one.get(name) != other.get(name)
    ]


def machine_name(card: Mapping[str, Any]) -> str:
    """For file names: `amd-epyc-9654-2-cores`."""
    model = re.sub(r"\((?:r|tm)\)|\bcpu\b|processor|@.*", " ", str(card.get("cpu", UNKNOWN)), flags=re.IGNORECASE)
    return f"{re.sub(r'[^a-z0-9]+', '-', model.lower()).strip('-') or UNKNOWN}-{card.get('cores', 0)}-cores"


def filesystem_of(path: Path) -> str:
    """The kind of file system a path is, or would be, on; on a `tmpfs` an fsync costs nothing and saves nothing."""
    text = _read("/proc/self/mounts")
    kinds = {fields[1]: fields[2] for fields in map(str.split, text.splitlines()) if len(fields) > 2}
    absolute = path.resolve()
    return next((kinds[str(one)] for one in (absolute, *absolute.parents) if str(one) in kinds), UNKNOWN)


def _cpu_model() -> str:
    named = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return named[1].strip() if named else platform.machine() or UNKNOWN


def _memory_gib() -> float:
    total = re.search(r"^MemTotal:\s+(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    return round(int(total[1]) / 2**20, 1) if total else 0.0


def _rayfold_version() -> str:
    from rayfold import __version__

    return __version__


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _commit() -> dict[str, Any]:
    """The commit and whether the files differ from it; only of our own checkout, never of one that we lie in."""
    if not (_ROOT / ".git").exists():
        return {"commit": UNKNOWN, "dirty": False}
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit or UNKNOWN, "dirty": bool(changes)}


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
