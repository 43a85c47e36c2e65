"""Directory: what a deployed application keeps in Ray's own directory (GCS): its plan, and the code of its classes.

Beside all steps. The directory survives a restart of the head where Ray keeps it on the disk
(`cluster/ray_cluster.py`), and so do the detached actors that are listed in it. A supervisor takes its plan from here
whenever it starts, so that any restart of it uses the latest.

    application/NAME          the plan that is in charge: what the system runs
    deployment/NAME/NUMBER    one deployment: the code it needs, its plan while it is under way, why it was taken back
    store/NAME                the id of the store that the application has or had
    code/DIGEST               the modules of an application

Rules kept here: nothing of the user's is loaded from here but code that is run as code: a plan is msgpack, the classes
in it are bytes until an actor loads them. A process that can write here can run code in the cluster anyway. A
deployment's number is given once: the entry of the highest one stays, also when the application is taken down. Code is
removed only if no plan and no entry of a deployment names it, and the entry is there before the code is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any, Final, NamedTuple

import msgpack

from ..settings import Settings
from .application import ApplicationPlan
from .builds import ProjectionFacts
from .code import Code

__all__ = [
    "Deployment",
    "applications",
    "begin_deployment",
    "code_of",
    "deployment_of",
    "unfinished_deployment",
    "deployments_of",
    "forget_deployments",
    "forget_plan",
    "plan_of",
    "put_code",
    "put_deployment",
    "put_first_plan",
    "put_plan",
    "put_store",
    "remove_unused_code",
    "store_of",
]

_NAMESPACE: Final = b"rayfold"
_PLANS: Final = b"application/"
_DEPLOYMENTS: Final = b"deployment/"
_CODE: Final = b"code/"
_STORES: Final = b"store/"


class Deployment(NamedTuple):
    """One deployment of an application."""

    number: int
    """The generation of its code."""
    digest: str
    """The digest of that code; empty if all of it is installed."""
    plan: ApplicationPlan | None = None
    """The plan that the system is about to get; none before that, and none when it has ended."""
    failed: Sequence[Any] = ()
    """What has ended it early, as `to_wire` packs it."""
    previous: ApplicationPlan | None = None
    """The plan that was in charge before this one, until no partition runs its code any more."""


def put_plan(plan: ApplicationPlan) -> None:
    """Have this plan count from the next start of its supervisor on."""
    _put(_PLANS + plan.name.encode(), msgpack.packb(_plan_fields(plan)))


def put_first_plan(plan: ApplicationPlan) -> bool:
    """The same for an application that has none. False if it has one by now."""
    return _put(_PLANS + plan.name.encode(), msgpack.packb(_plan_fields(plan)), replace=False)


def plan_of(name: str) -> ApplicationPlan | None:
    """The plan of the application of this name; None if none was deployed."""
    stored = _get(_PLANS + name.encode())
    return None if stored is None else _plan_from(msgpack.unpackb(stored))


def forget_plan(name: str) -> None:
    """The application is taken down; the code of others may be the same and stays."""
    _delete(_PLANS + name.encode())


def applications() -> list[str]:
    """The names of all that were deployed."""
    return sorted(key.removeprefix(_PLANS).decode() for key in _keys(_PLANS))


def begin_deployment(name: str, digest: str) -> int:
    """Take a number that no deployment of this application had, and have the code of this digest kept for it."""
    number = max((one.number for one in deployments_of(name)), default=0)
    plan = plan_of(name)
    number = max(number, 0 if plan is None else plan.generation) + 1
    while not _put(_key(name, number), _packed(Deployment(number, digest)), replace=False):
        number += 1  # another deployer was faster
    return number


def put_deployment(name: str, deployment: Deployment) -> None:
    """Store this in the entry of a deployment."""
    _put(_key(name, deployment.number), _packed(deployment))


def deployments_of(name: str) -> list[Deployment]:
    """The deployments of an application that there are entries of, by number."""
    stored = (_get(key) for key in sorted(_keys(_DEPLOYMENTS + name.encode() + b"/")))
    return [_deployment_from(one) for one in stored if one is not None]


def unfinished_deployment(name: str) -> Deployment | None:
    """The deployment whose plan the system is about to get, if there is one."""
    present = plan_of(name)
    unfinished = [one for one in deployments_of(name) if one.plan is not None]
    latest = unfinished[-1] if unfinished else None
    return latest if latest and present and latest.number > present.generation else None


def deployment_of(name: str, number: int) -> Deployment | None:
    """The entry of one deployment; None if it was forgotten."""
    stored = _get(_key(name, number))
    return None if stored is None else _deployment_from(stored)


def forget_deployments(name: str, number: int) -> None:
    """Forget the deployments before this one. Of this one, which has ended, the number stays."""
    for one in deployments_of(name):
        if one.number < number:
            _delete(_key(name, one.number))
        elif one.number == number:
            put_deployment(name, Deployment(number, ""))


def put_store(name: str, store_id: str) -> None:
    """Remember which store the application of this name has, also when it is taken down: no other one is ever made in
    its place while the nodes that have it are down."""
    _put(_STORES + name.encode(), store_id.encode())


def store_of(name: str) -> str:
    """The id of the store that the application of this name has or had; empty if it never had one."""
    return (_get(_STORES + name.encode()) or b"").decode()


def put_code(code: Code) -> None:
    """Have this code found by its digest. The entry of the deployment that it is for has to be there."""
    if code.digest:
        _put(_CODE + code.digest.encode(), code.packed, replace=False)


def code_of(digest: str) -> bytes | None:
    """The code of this digest, as `put_code` was given it."""
    return _get(_CODE + digest.encode())


def remove_unused_code() -> None:
    """Remove the code that no plan and no deployment of any application names. What is named meanwhile is put back."""
    for key in _keys(_CODE):
        digest = key.removeprefix(_CODE).decode()
        if digest in _digests_in_use():
            continue
        packed = _get(key)
        _delete(key)
        if packed is not None and digest in _digests_in_use():
            _put(key, packed, replace=False)


def _digests_in_use() -> set[str]:
    used = {plan.digest for name in applications() if (plan := plan_of(name)) is not None}
    for key in _keys(_DEPLOYMENTS):
        if (stored := _get(key)) is not None:
            deployment = _deployment_from(stored)
            used.add(deployment.digest)
            if deployment.previous is not None:
                used.add(deployment.previous.digest)
    return used


def _key(name: str, number: int) -> bytes:
    return _DEPLOYMENTS + f"{name}/{number:09d}".encode()


def _packed(deployment: Deployment) -> bytes:
    plans = [None if plan is None else _plan_fields(plan) for plan in (deployment.plan, deployment.previous)]
    packed: bytes = msgpack.packb([deployment.number, deployment.digest, list(deployment.failed), *plans])
    return packed


def _deployment_from(stored: bytes) -> Deployment:
    number, digest, failed, *stored_plans = msgpack.unpackb(stored)
    plan, previous = (None if one is None else _plan_from(one) for one in stored_plans)
    return Deployment(number, digest, plan, tuple(failed), previous)


def _plan_fields(plan: ApplicationPlan) -> dict[str, Any]:
    return {**asdict(plan), "settings": asdict(plan.settings)}


def _plan_from(stored: dict[str, Any]) -> ApplicationPlan:
    """A plan that another version of Rayfold has put there may have fields that this one does not know."""
    fields = _known(ApplicationPlan, stored)
    projections = {name: ProjectionFacts(*facts) for name, facts in fields.get("projections", {}).items()}
    settings = Settings(**_known(Settings, fields["settings"]))
    without = tuple(fields.get("without", ()))
    return ApplicationPlan(**{**fields, "settings": settings, "projections": projections, "without": without})


def _known(cls: type[ApplicationPlan | Settings], stored: dict[str, Any]) -> dict[str, Any]:
    names = {one.name for one in fields(cls)}
    return {name: value for name, value in stored.items() if name in names}


def _put(key: bytes, value: bytes, *, replace: bool = True) -> bool:
    """False if there is a value already, and it is not to be replaced."""
    from ray.experimental import internal_kv

    existed: bool = internal_kv._internal_kv_put(key, value, replace, namespace=_NAMESPACE)
    return replace or not existed


def _get(key: bytes) -> bytes | None:
    from ray.experimental import internal_kv

    value: bytes | None = internal_kv._internal_kv_get(key, namespace=_NAMESPACE)
    return value


def _delete(key: bytes) -> None:
    from ray.experimental import internal_kv

    internal_kv._internal_kv_del(key, namespace=_NAMESPACE)


def _keys(prefix: bytes) -> list[bytes]:
    from ray.experimental import internal_kv

    keys: list[bytes] = internal_kv._internal_kv_list(prefix, namespace=_NAMESPACE)
    return keys
