"""Everything in cluster/ before validators of others, and mistakes that they find."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.manifests import CLUSTER, documents, kubernetes_files, pod_specs
from tests.cluster.tools import run_tool

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

_OTHERS = ("ray.io/", "argoproj.io/")  # resources that Kubernetes itself does not know
# Each prints what is left of a document (the first word) that went through the types of others.
_ARGO = """
import json, sys
from hera.workflows.models import CronWorkflow
workflow = CronWorkflow.model_validate(json.load(open(sys.argv[1])))
print(workflow.model_dump_json(by_alias=True, exclude_none=True))
"""
_GRAFANA = """
import json, sys
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
register_default_plugins()
print(JSONEncoder().encode(Dashboard.from_json(json.load(open(sys.argv[1])))))
"""


def _plain_documents() -> list[Any]:
    return [
        pytest.param(document, id=f"{path.name}-{document['kind']}")
        for path in kubernetes_files()
        for document in documents(path)
        if not document["apiVersion"].startswith(_OTHERS)
    ]


def _pods() -> list[Any]:
    """Every pod within a resource that Kubernetes does not know, as a Pod."""
    pods = []
    for path in kubernetes_files():
        for document in documents(path):
            if not document["apiVersion"].startswith(_OTHERS):
                continue
            specs = list(pod_specs(document))
            if document["kind"] == "CronWorkflow":
                spec = document["spec"]["workflowSpec"]
                (template,) = spec["templates"]
                taken = {key: spec[key] for key in ("volumes", "securityContext")}
                taken |= {key: template[key] for key in ("nodeSelector", "tolerations")}
                specs = [{**taken, "containers": [{**template["container"], "name": "main"}]}]
            for number, spec in enumerate(specs):
                pods.append(pytest.param(spec, id=f"{path.name}-{number}"))
    return pods


def _validate(document: dict[str, Any], folder: Path) -> str:
    """What kubernetes-validate has against a document; "" if nothing."""
    path = folder / "document.yaml"
    path.write_text(yaml.safe_dump(document))
    done = run_tool("kubernetes-validate", "--strict", path)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.parametrize("document", _plain_documents())
def test_kubernetes_takes_it(document: dict[str, Any], tmp_path: Path) -> None:
    assert _validate(document, tmp_path) == ""


@pytest.mark.parametrize("spec", _pods())
def test_kubernetes_takes_its_pods(spec: dict[str, Any], tmp_path: Path) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec}
    assert _validate(pod, tmp_path) == ""
    wrong = copy.deepcopy(pod)
    wrong["spec"]["containers"][0]["imagePullPolice"] = "Always"
    assert "imagePullPolice" in _validate(wrong, tmp_path)


def test_argo_knows_every_field(tmp_path: Path) -> None:
    workflow = documents(CLUSTER / "argo" / "cronworkflow.yaml")[1]
    assert _lost(workflow, _read_by(_ARGO, workflow, tmp_path)) == []
    wrong = copy.deepcopy(workflow)
    wrong["spec"]["concurencyPolicy"] = wrong["spec"].pop("concurrencyPolicy")
    assert _lost(wrong, _read_by(_ARGO, wrong, tmp_path)) == ["/spec/concurencyPolicy"]


def test_grafana_knows_every_field(tmp_path: Path) -> None:
    dashboard = json.loads((CLUSTER / "metrics" / "dashboard.json").read_text())
    assert _lost(dashboard, _read_by(_GRAFANA, dashboard, tmp_path)) == []
    panel = dashboard["panels"][0]
    panel["fieldConfig"]["defaults"]["units"] = panel["fieldConfig"]["defaults"].pop("unit", "s")
    panel["targets"][0]["expression"] = panel["targets"][0].pop("expr")
    assert set(_lost(dashboard, _read_by(_GRAFANA, dashboard, tmp_path))) == {
        "/panels/0/fieldConfig/defaults/units", "/panels/0/targets/0/expression",
    }  # fmt: skip


def _read_by(program: str, document: dict[str, Any], folder: Path) -> Any:
    """A document after it went through the types of others, which drop what they do not know."""
    script, source = folder / "read.py", folder / "document.json"
    script.write_text(program)
    source.write_text(json.dumps(document))
    done = run_tool("python", script, source)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _lost(before: object, after: object, path: str = "") -> list[str]:
    """Where the second lacks what the first has, or has something else."""
    if isinstance(before, dict):
        kept = after if isinstance(after, dict) else {}
        return [
            one
            for key, value in before.items()
            for one in (
                _lost(value, kept[key], f"{path}/{key}") if key in kept else [f"{path}/{key}"]
            )
        ]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [one for n, (a, b) in pairs for one in _lost(a, b, f"{path}/{n}")]
    return [] if str(before) == str(after) else [path]


def test_the_dockerfile_has_no_remarks(tmp_path: Path) -> None:
    path = CLUSTER / "docker" / "Dockerfile"
    done = run_tool("hadolint", path)
    assert (done.returncode, done.stdout) == (0, "")
    (tmp_path / "Dockerfile").write_text(path.read_text().replace("WORKDIR /src", "RUN cd /src"))
    assert "DL3003" in run_tool("hadolint", tmp_path / "Dockerfile").stdout


def test_the_batch_script_has_no_remarks() -> None:
    script = CLUSTER / "slurm" / "segcore.sbatch"
    done = run_tool("shellcheck", "--severity=warning", script)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_launcher_configuration_fits_the_schema_of_ray(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    schema = Path(spec.origin).parent / "autoscaler" / "ray-schema.json"
    config = CLUSTER / "aws" / "cluster.yaml"
    assert run_tool("check-jsonschema", "--schemafile", schema, config).returncode == 0
    wrong = tmp_path / "cluster.yaml"
    wrong.write_text(config.read_text().replace("max_workers: 20", "max_worker: 20"))
    assert run_tool("check-jsonschema", "--schemafile", schema, wrong).returncode == 1
