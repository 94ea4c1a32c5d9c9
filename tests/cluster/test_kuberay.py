"""cluster/kuberay: schemas, the controller's own rules, commands, configurations."""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest

from segcore.config import load_config
from segcore.config.reprocess import ReprocessConfig
from tests.cluster.manifests import (
    KUBERAY,
    controller_problems,
    documents,
    job_spec,
    kubernetes_files,
    pod_specs,
    ray_documents,
)
from tests.docs.test_commands import WrongCommand, check_segcore
from tests.support.paths import SHARED

RAY_DOCUMENTS = ray_documents()
NAMES = [name for name, _ in RAY_DOCUMENTS]
(RAYJOB,) = documents(KUBERAY / "rayjob.yaml")
(CONFIG,) = (one for one in documents(KUBERAY / "setup.yaml") if one["kind"] == "ConfigMap")


def _schema(kind: str) -> Any:
    path = SHARED / "schemas" / "kuberay" / f"{kind.lower()}s_v1.json"
    if not path.exists():
        pytest.skip("KubeRay's schemas (../shared/schemas/kuberay) are not on this machine")
    return jsonschema.Draft7Validator(json.loads(path.read_text()))


@pytest.mark.parametrize(("name", "document"), RAY_DOCUMENTS, ids=NAMES)
def test_manifests_are_strictly_valid(name: str, document: dict[str, Any]) -> None:
    errors = list(_schema(document["kind"]).iter_errors(document))
    assert [f"{error.json_path}: {error.message[:200]}" for error in errors] == []


def test_a_typo_is_refused() -> None:
    typo = copy.deepcopy(RAYJOB)
    typo["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["nodeSelektor"] = {}
    assert not _schema("RayJob").is_valid(typo)


@pytest.mark.parametrize(("name", "document"), RAY_DOCUMENTS, ids=NAMES)
def test_the_controller_would_accept_it(name: str, document: dict[str, Any]) -> None:
    assert controller_problems(document) == []


def _set(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    """A change of a RayJob at a path such as `spec.backoffLimit`; a number is an index."""

    def change(document: dict[str, Any]) -> None:
        *folders, last = path.split("/")
        target: Any = document
        for folder in folders:
            target = target[int(folder) if folder.isdigit() else folder]
        target[last] = value

    return change


_CLUSTER = "spec/rayClusterSpec"
_SPOT = f"{_CLUSTER}/workerGroupSpecs/0"


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("metadata/name", "a" * 48, "name"),
        ("metadata/name", "1st", "name"),
        ("spec/deletionStrategy", {"deletionRules": []}, None),
        ("spec/deletionStrategy", {"deletionRules": [1]},
         "shutdownAfterJobFinishes and deletionStrategy"),
        ("spec/shutdownAfterJobFinishes", False, "ttl without shutdown"),
        ("spec/suspend", True, "Kueue with autoscaling"),
        ("spec/submissionMode", "InteractiveMode", "submissionMode"),
        ("spec/submissionMode", "SidecarMode", "submitterPodTemplate of another mode"),
        ("spec/activeDeadlineSeconds", 0, "activeDeadlineSeconds"),
        ("spec/activeDeadlineSeconds", 1000, "deadlines in the wrong order"),
        ("spec/entrypoint", "segcore reprocess a.yaml", "a refusal is repeated"),
        (f"{_CLUSTER}/rayVersion", "2.51.0", "token"),
        (f"{_CLUSTER}/authOptions", {"mode": "disabled"}, "token"),
        (f"{_CLUSTER}/rayVersion", "2.55.0", "priority needs autoscaler v2"),
        (f"{_CLUSTER}/autoscalerOptions", {}, "priority needs autoscaler v2"),
        (f"{_CLUSTER}/enableInTreeAutoscaling", False, "idleTimeoutSeconds without autoscaler"),
        (f"{_CLUSTER}/headGroupSpec/rayStartParams/num-cpus", "2", "work on the head"),
        (f"{_CLUSTER}/headGroupSpec/template/spec/nodeSelector",
         {"karpenter.sh/capacity-type": "spot"}, "head on spot"),
        (f"{_SPOT}/rayStartParams/labels", "a=b", "labels as a start parameter"),
        (f"{_SPOT}/rayStartParams/num-cpus", 7, "start parameters are text"),
        (f"{_SPOT}/rayStartParams/num-cpus", "6", "priority between groups of other sizes"),
        (f"{_SPOT}/rayStartParams/object-store-memory", "6000000000",
         "object store beyond /dev/shm"),
        (f"{_SPOT}/rayStartParams/object-store-memory", "20000000000",
         "object store takes more than half of the memory"),
        (f"{_SPOT}/resources", {"cpu": "1"}, "resources twice"),
        (f"{_SPOT}/groupName", "on-demand", "groupName"),
        (f"{_SPOT}/replicas", 17, "replicas"),
        (f"{_SPOT}/template/spec/restartPolicy", "Always", "restartPolicy with autoscaler v2"),
        (f"{_SPOT}/template/spec/containers/0/env", [{"name": "RAY_AUTH_TOKEN", "value": "x"}],
         "variables of the operator's own"),
    ],
)  # fmt: skip
def test_what_breaks_a_rule_is_noticed(path: str, value: object, problem: str | None) -> None:
    changed = copy.deepcopy(json.loads(json.dumps(RAYJOB)))
    _set(path, value)(changed)
    if problem is None:
        assert controller_problems(changed) != []
    else:
        assert problem in controller_problems(changed)


@pytest.mark.parametrize(("name", "document"), RAY_DOCUMENTS, ids=NAMES)
def test_the_command_is_one_that_segcore_takes(name: str, document: dict[str, Any]) -> None:
    words = shlex.split(job_spec(document)["entrypoint"])
    assert words[0] == "segcore"
    check_segcore(words[1:])
    config = next(word for word in words if word.endswith(".yaml"))
    assert config == f"/etc/segcore/{next(iter(CONFIG['data']))}"
    head = job_spec(document)["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert {"name": "config", "configMap": {"name": CONFIG["metadata"]["name"]}} in head["volumes"]
    with pytest.raises(WrongCommand):
        check_segcore([*words[1:], "--exit-0-if-refuse"])


def test_the_configuration_is_one_that_segcore_takes(tmp_path: Any) -> None:
    for name, text in CONFIG["data"].items():
        (tmp_path / name).write_text(text)
        config = load_config(tmp_path / name, schema=ReprocessConfig)
        groups = RAYJOB["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        assert config.ray.max_actors == sum(group["maxReplicas"] for group in groups)
        assert config.run.max_seconds is not None
        assert config.run.max_seconds < RAYJOB["spec"]["activeDeadlineSeconds"]


def test_the_scheduled_job_is_that_of_rayjob_yaml() -> None:
    (scheduled,) = documents(KUBERAY / "raycronjob.yaml")
    assert job_spec(scheduled) == RAYJOB["spec"]


def test_the_queued_job_asks_for_a_queue_and_waits() -> None:
    (queued,) = documents(KUBERAY / "rayjob-kueue.yaml")
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    assert queued["spec"]["suspend"] is True
    (group,) = queued["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["minReplicas"] == group["maxReplicas"] == group["replicas"]
    assert f"ray.max_actors={group['replicas']}" in queued["spec"]["entrypoint"]


def test_the_schedule_waits_and_forbids_a_second_call() -> None:
    (cron,) = (one for one in documents(KUBERAY / "cronjob.yaml") if one["kind"] == "CronJob")
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"
    assert len(cron["metadata"]["name"]) + len("-29384723") <= 47  # the name of the RayJob
    spec, ray = cron["spec"]["jobTemplate"]["spec"], RAYJOB["spec"]
    longest_s = (ray["backoffLimit"] + 1) * ray["activeDeadlineSeconds"]
    assert spec["activeDeadlineSeconds"] >= longest_s


@pytest.mark.parametrize("path", kubernetes_files(), ids=lambda path: path.name)
def test_pods_are_unprivileged_and_bounded(path: Any) -> None:
    for spec in (one for document in documents(path) for one in pod_specs(document)):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
            assert container["resources"]["requests"]["cpu"]


@pytest.mark.parametrize("path", kubernetes_files(), ids=lambda path: path.name)
def test_no_manifest_has_a_secret(path: Any) -> None:
    text = path.read_text()
    assert not re.search(r"AKIA|aws_secret|AWS_SECRET|password|kind: Secret", text, re.IGNORECASE)
    for spec in (one for document in documents(path) for one in pod_specs(document)):
        for container in spec["containers"]:
            names = [one["name"] for one in container.get("env", ())]
            assert not [name for name in names if re.search("TOKEN|SECRET|PASSWORD|KEY", name)]
