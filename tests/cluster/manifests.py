"""The manifests of cluster/, and rules of KubeRay's controller that its schema does not state."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.support.paths import ROOT

CLUSTER = ROOT / "cluster"
KUBERAY = CLUSTER / "kuberay"
_GIBI = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
_NAME_LIMITS = {"RayJob": 47, "RayCronJob": 36, "RayCluster": 63}
_MARKET = "karpenter.sh/capacity-type"


@cache
def documents(path: Path) -> list[dict[str, Any]]:
    """The documents of a YAML file."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C it is ten times as fast
    return [one for one in yaml.load_all(path.read_text(), loader) if one]


def kubernetes_files() -> list[Path]:
    """Every file of cluster/ that a Kubernetes API server is given."""
    files = sorted(CLUSTER.rglob("*.yaml"))
    return [path for path in files if "kind" in documents(path)[0]]


def ray_documents() -> list[tuple[str, dict[str, Any]]]:
    """(file name, document) of everything that KubeRay's controller reads."""
    return [
        (path.name, document)
        for path in sorted(KUBERAY.glob("*.yaml"))
        for document in documents(path)
        if document["apiVersion"].startswith("ray.io/")
    ]


def job_spec(document: dict[str, Any]) -> dict[str, Any]:
    """The specification of a RayJob, or of the RayJobs of a RayCronJob."""
    spec: dict[str, Any] = document["spec"]
    return spec["jobTemplate"] if document["kind"] == "RayCronJob" else spec


def pod_specs(value: object) -> Iterator[dict[str, Any]]:
    """Every specification of a pod anywhere in a document."""
    if isinstance(value, dict):
        if isinstance(value.get("containers"), list):
            yield value
        for one in value.values():
            yield from pod_specs(one)
    elif isinstance(value, list):
        for one in value:
            yield from pod_specs(one)


def n_bytes(quantity: str) -> int:
    """A quantity of Kubernetes, such as 24Gi."""
    number, unit = re.fullmatch(r"(\d+)(\w*)", quantity).groups()  # type: ignore[union-attr]
    return int(number) * _GIBI.get(unit, 1)


def controller_problems(document: dict[str, Any]) -> list[str]:
    """What KubeRay 1.7 would refuse, or would accept and do otherwise than it reads."""
    kind, name = document["kind"], document["metadata"]["name"]
    spec = job_spec(document)
    return [
        *_name_problems(kind, name),
        *_job_problems(spec),
        *_cluster_problems(spec["rayClusterSpec"]),
    ]


def _name_problems(kind: str, name: str) -> Iterator[str]:
    if len(name) > _NAME_LIMITS[kind] or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield "name"


def _job_problems(spec: dict[str, Any]) -> Iterator[str]:
    shutdown, rules = spec.get("shutdownAfterJobFinishes"), spec.get("deletionStrategy")
    if rules and shutdown:
        yield "shutdownAfterJobFinishes and deletionStrategy"
    if not rules and not shutdown:
        yield "the cluster is never deleted"
    if spec.get("ttlSecondsAfterFinished", 0) and not shutdown:
        yield "ttl without shutdown"
    if spec.get("suspend") and not shutdown:
        yield "suspend without shutdown"
    if spec.get("suspend") and spec["rayClusterSpec"].get("enableInTreeAutoscaling"):
        yield "Kueue with autoscaling"
    if spec.get("submissionMode") not in ("K8sJobMode", "HTTPMode", "SidecarMode"):
        yield "submissionMode"
    if spec.get("submissionMode") != "K8sJobMode" and "submitterPodTemplate" in spec:
        yield "submitterPodTemplate of another mode"
    for field in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(field, 0) <= 0:
            yield field
    if spec.get("activeDeadlineSeconds", 0) <= spec.get("preRunningDeadlineSeconds", 0):
        yield "deadlines in the wrong order"
    if spec.get("backoffLimit", 0) and "--exit-0-if-refused" not in spec["entrypoint"]:
        yield "a refusal is repeated"
    yaml.safe_load(spec.get("runtimeEnvYAML", ""))


def _cluster_problems(spec: dict[str, Any]) -> Iterator[str]:
    autoscaling = spec.get("enableInTreeAutoscaling", False)
    version = tuple(int(number) for number in spec.get("rayVersion", "0").split(".")[:2])
    groups = spec["workerGroupSpecs"]
    if spec.get("authOptions", {}).get("mode") != "token" or version < (2, 52):
        yield "token"
    if any("priority" in group for group in groups):
        if version < (2, 56) or spec.get("autoscalerOptions", {}).get("version") != "v2":
            yield "priority needs autoscaler v2"
        shapes = [_shape(group) for group in groups]
        if any(shape != shapes[0] for shape in shapes):
            yield "priority between groups of other sizes"
    if any("idleTimeoutSeconds" in group for group in groups) and not autoscaling:
        yield "idleTimeoutSeconds without autoscaler"
    if len({group["groupName"] for group in groups}) < len(groups):
        yield "groupName"
    if spec["headGroupSpec"]["rayStartParams"].get("num-cpus") != "0":
        yield "work on the head"
    for group in (spec["headGroupSpec"], *groups):
        yield from _group_problems(group, autoscaling)


def _shape(group: dict[str, Any]) -> object:
    (container,) = group["template"]["spec"]["containers"]
    return group["rayStartParams"], container["resources"]


def _group_problems(group: dict[str, Any], autoscaling: bool) -> Iterator[str]:
    start = group["rayStartParams"]
    if "labels" in start:
        yield "labels as a start parameter"
    if group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & set(start):
        yield "resources twice"
    if any(not isinstance(value, str) for value in start.values()):
        yield "start parameters are text"
    if not group.get("minReplicas", 0) <= group.get("replicas", 0) <= group.get("maxReplicas", 0):
        yield "replicas"
    spec = group["template"]["spec"]
    if autoscaling and spec.get("restartPolicy", "Never") != "Never":
        yield "restartPolicy with autoscaler v2"
    container = spec["containers"][0]  # the first one is Ray's
    if any(one["name"].startswith("RAY_") for one in container.get("env", ())):
        yield "variables of the operator's own"
    (shm,) = (volume for volume in spec["volumes"] if volume["name"] == "shm")
    store = int(start["object-store-memory"])
    if store > n_bytes(shm["emptyDir"]["sizeLimit"]):
        yield "object store beyond /dev/shm"
    if 2 * store > n_bytes(container["resources"]["limits"]["memory"]):
        yield "object store takes more than half of the memory"
    if spec.get("nodeSelector", {}).get(_MARKET) == "spot" and "num-gpus" not in start:
        yield "head on spot"
