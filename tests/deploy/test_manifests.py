"""The files for Ray's cluster launcher and for KubeRay: against the schemas, and against what Rayfold needs of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import ray
import yaml  # type: ignore[import-untyped]

from rayfold.actors.cli.main import app

DEPLOY = Path(__file__).parents[2] / "deploy"

TEXT, FLAG, NUMBER = {"type": "string"}, {"type": "boolean"}, {"type": "integer", "minimum": 0}


def closed(required: str = "", /, **properties: Any) -> dict[str, Any]:
    """An object with these fields and no others."""
    return {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "required": required.split(),
    }


def several(of: Any) -> dict[str, Any]:
    return {"type": "array", "items": of, "minItems": 1}


# The part of the fields that the manifest uses, as in the CRD of KubeRay v1.6 (ray.io/v1) and of core/v1: a field that
# is misspelt, misplaced or of another type is refused.
RESOURCES = closed("limits requests", limits={"type": "object"}, requests={"type": "object"})
CONTAINER = closed(
    "name image",
    name=TEXT,
    image=TEXT,
    command=several(TEXT),
    args=several(TEXT),
    env=several(closed("name value", name=TEXT, value=TEXT)),
    ports=several(closed("containerPort", containerPort=NUMBER, name=TEXT)),
    resources=RESOURCES,
    volumeMounts=several(closed("name mountPath", name=TEXT, mountPath=TEXT)),
)
VOLUME = closed("name", name=TEXT, persistentVolumeClaim=closed("claimName", claimName=TEXT))
POD = closed(
    "containers",
    containers=several(CONTAINER),
    volumes=several(VOLUME),
    securityContext=closed(fsGroup=NUMBER),
    terminationGracePeriodSeconds=NUMBER,
)
TEMPLATE = closed("spec", spec=POD)
PARAMS = {"type": "object", "additionalProperties": TEXT}
WORKERS = closed(
    "groupName rayStartParams template",
    groupName=TEXT,
    replicas=NUMBER,
    minReplicas=NUMBER,
    maxReplicas=NUMBER,
    rayStartParams=PARAMS,
    template=TEMPLATE,
)
RAY_CLUSTER = closed(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayCluster"},
    metadata=closed("name", name=TEXT, annotations=PARAMS),
    spec=closed(
        "headGroupSpec",
        rayVersion=TEXT,
        enableInTreeAutoscaling=FLAG,
        authOptions=closed("mode", mode={"enum": ["disabled", "token"]}, secretName=TEXT),
        headGroupSpec=closed("rayStartParams template", rayStartParams=PARAMS, template=TEMPLATE),
        workerGroupSpecs=several(WORKERS),
    ),
)


@pytest.fixture(scope="module")
def launcher() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "ray-cluster.yaml").read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module")
def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def cluster(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    return next(one for one in manifests if one["kind"] == "RayCluster")


def pods(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def test_the_launchers_file_keeps_to_the_schema_that_ray_ships(launcher: dict[str, Any]) -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(launcher, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(launcher | {"max_worker": 2}, schema)
    assert launcher["max_workers"] == len(launcher["provider"]["worker_ips"])


def test_the_launcher_starts_nodes_that_have_data_folders_and_carries_the_token(launcher: dict[str, Any]) -> None:
    head, worker = launcher["head_start_ray_commands"][-1], launcher["worker_start_ray_commands"][-1]
    assert "rayfold node --head --data ~/rayfold-data" in head
    assert "rayfold node --address $RAY_HEAD_IP:6379 --data ~/rayfold-data" in worker
    assert launcher["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert "ray stop" not in " ".join([*launcher["head_start_ray_commands"], *launcher["worker_start_ray_commands"]])


def test_the_ray_cluster_keeps_to_the_fields_of_its_resource(cluster: dict[str, Any]) -> None:
    jsonschema.validate(cluster, RAY_CLUSTER)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(cluster | {"spec": cluster["spec"] | {"authOption": {}}}, RAY_CLUSTER)


def test_every_node_has_a_claim_of_its_own_and_all_claims_are_made(
    manifests: list[dict[str, Any]], cluster: dict[str, Any]
) -> None:
    used = [volume["persistentVolumeClaim"]["claimName"] for pod in pods(cluster) for volume in pod["volumes"]]
    made = [one["metadata"]["name"] for one in manifests if one["kind"] == "PersistentVolumeClaim"]
    assert len(used) == 3
    assert sorted(used) == sorted(made) == sorted(set(used))
    groups = cluster["spec"]["workerGroupSpecs"]
    assert {(one["replicas"], one["minReplicas"], one["maxReplicas"]) for one in groups} == {(1, 1, 1)}


def test_every_pod_becomes_a_node_on_its_claim_and_the_token_is_a_secret_that_is_made(
    manifests: list[dict[str, Any]], cluster: dict[str, Any]
) -> None:
    assert cluster["metadata"]["annotations"]["ray.io/overwrite-container-cmd"] == "true"
    starts = [pod["containers"][0]["args"][0] for pod in pods(cluster)]
    assert all("exec rayfold node " in start and "--data /data " in start for start in starts)
    assert ["--head" in start for start in starts] == [True, False, False]
    assert {mount["mountPath"] for pod in pods(cluster) for mount in pod["containers"][0]["volumeMounts"]} == {"/data"}
    secret = next(one for one in manifests if one["kind"] == "Secret")
    assert cluster["spec"]["authOptions"] == {"mode": "token", "secretName": secret["metadata"]["name"]}
    assert list(secret["stringData"]) == ["auth_token"]


@pytest.mark.parametrize("page", ["deploy/README.md", "docs/operations.md"])
def test_the_pages_name_no_command_that_there_is_not(page: str) -> None:
    known = {one.name or one.callback.__name__ for one in app.registered_commands if one.callback is not None}
    lines = (DEPLOY.parent / page).read_text(encoding="utf-8").splitlines()
    named = {line.split()[1] for line in lines if line.strip().startswith("rayfold ")}
    assert named
    assert named <= known
