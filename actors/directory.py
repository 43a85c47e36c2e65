"""Directory: what a deployed application keeps in Ray's own directory (GCS): its plan, and the code of its classes.

Beside all steps. The directory survives a restart of the head where Ray keeps it on the disk (`cluster.py`), and so do
the detached actors that are listed in it. A supervisor takes its plan from here whenever it starts, so that whoever
starts it again, wherever, starts the latest.

Rule kept here: nothing of the user's is loaded from here but code that is run as code: the plan is msgpack, the classes
in it are bytes until an actor loads them. Whoever can write here can run code in the cluster anyway.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Final

import msgpack

from .application import ApplicationPlan
from .code import Code
from .settings import Settings

__all__ = ["applications", "code_of", "forget_plan", "plan_of", "put_code", "put_plan", "remove_unused_code"]

_NAMESPACE: Final = b"rayfold"
_PLANS: Final = b"application/"
_CODE: Final = b"code/"


def put_plan(plan: ApplicationPlan) -> None:
    """Have this plan count from the next start of its supervisor on."""
    from ray.experimental import internal_kv

    fields = {**asdict(plan), "settings": asdict(plan.settings)}
    internal_kv._internal_kv_put(_PLANS + plan.name.encode(), msgpack.packb(fields), True, namespace=_NAMESPACE)


def plan_of(name: str) -> ApplicationPlan | None:
    """The plan of the application of this name; None if none was deployed."""
    from ray.experimental import internal_kv

    stored: bytes | None = internal_kv._internal_kv_get(_PLANS + name.encode(), namespace=_NAMESPACE)
    if stored is None:
        return None
    fields = msgpack.unpackb(stored)
    return ApplicationPlan(**{**fields, "settings": Settings(**fields["settings"])})


def forget_plan(name: str) -> None:
    """The application is taken down; the code of others may be the same and stays."""
    from ray.experimental import internal_kv

    internal_kv._internal_kv_del(_PLANS + name.encode(), namespace=_NAMESPACE)


def applications() -> list[str]:
    """The names of all that were deployed."""
    from ray.experimental import internal_kv

    keys: list[bytes] = internal_kv._internal_kv_list(_PLANS, namespace=_NAMESPACE)
    return sorted(key.removeprefix(_PLANS).decode() for key in keys)


def put_code(code: Code) -> None:
    """Have this code found by its digest."""
    from ray.experimental import internal_kv

    key = _CODE + code.digest.encode()
    if code.digest and not internal_kv._internal_kv_exists(key, namespace=_NAMESPACE):
        internal_kv._internal_kv_put(key, code.packed, True, namespace=_NAMESPACE)


def code_of(digest: str) -> bytes | None:
    """The code of this digest, as `put_code` was given it."""
    from ray.experimental import internal_kv

    packed: bytes | None = internal_kv._internal_kv_get(_CODE + digest.encode(), namespace=_NAMESPACE)
    return packed


def remove_unused_code() -> None:
    """Remove the code that no application's plan is about any more."""
    from ray.experimental import internal_kv

    used = {plan.digest for name in applications() if (plan := plan_of(name)) is not None}
    for key in internal_kv._internal_kv_list(_CODE, namespace=_NAMESPACE):
        if key.removeprefix(_CODE).decode() not in used:
            internal_kv._internal_kv_del(key, namespace=_NAMESPACE)
