"""A real Prometheus scrapes a real run, and knows every query of the dashboard and the alerts."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from segcore.output.metrics import METRICS
from tests.cluster.prometheus import Prometheus, find_program
from tests.cluster.ray_head import RayHead
from tests.support.bright_images import bright_pngs
from tests.support.jobs import BRIGHT_MODEL, write_files
from tests.support.paths import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.timeout(1800)]

FOLDER = ROOT / "cluster" / "metrics"
# Series that a run without GPU, deaths, outages and lost batches does not have.
BY_DESIGN_EMPTY = {
    "ray_segcore_gpu_memory_peak_bytes",
    "ray_segcore_retries_total",
    "ray_segcore_unit_errors_total",
    "ray_node_gpus_utilization",
}


def _panels() -> list[dict[str, Any]]:
    panels = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    assert panels
    return list(panels)


def _queries() -> list[str]:
    """All queries, as Grafana and Prometheus ask them."""
    expressions = [target["expr"] for panel in _panels() for target in panel["targets"]]
    groups = yaml.safe_load((FOLDER / "rules.yaml").read_text())["groups"]
    expressions += [rule["expr"] for group in groups for rule in group["rules"]]
    return [
        expression.replace("$edition", ".*").replace("$__rate_interval", "1m")
        for expression in expressions
    ]


def _names(text: str) -> set[str]:
    return set(re.findall(r"\b(?:ray_)?segcore_\w+|\bray_node_\w+", text))


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    head = RayHead({"FAKE_MODEL_DELAY": "0.2"})
    yield head
    head.stop()


def test_rules_are_valid_and_fire_when_they_should() -> None:
    promtool = find_program("promtool")
    tests = ROOT / "tests" / "cluster" / "rules_test.yaml"
    for command in (["check", "rules", FOLDER / "rules.yaml"], ["test", "rules", tests]):
        done = subprocess.run(
            [promtool, *map(str, command)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_each_metric_is_shown_and_each_alert_is_tested() -> None:
    shown = _names(" ".join(_queries()))
    assert {f"ray_{name}" for name in METRICS} - shown <= {
        "ray_segcore_units_total",  # in an alert of its own shape
        "ray_segcore_batches_total",
    }
    groups = yaml.safe_load((FOLDER / "rules.yaml").read_text())["groups"]
    alerts = {rule["alert"] for group in groups for rule in group["rules"]}
    cases = yaml.safe_load((ROOT / "tests/cluster/rules_test.yaml").read_text())["tests"]
    fired = {
        test["alertname"] for case in cases for test in case["alert_rule_test"]
        if test["exp_alerts"]
    }  # fmt: skip
    assert fired == alerts
    assert len({panel["id"] for panel in _panels()}) == len(_panels())


def test_prometheus_has_every_series_of_a_real_run(head: RayHead, tmp_path: Path) -> None:
    source = write_files(tmp_path / "in", bright_pngs(60) | {"broken.png": b"\x89PNG broken"})
    textfiles = tmp_path / "textfiles"
    textfiles.mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(textfiles))
    exporter = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=exporter.serve_forever, daemon=True).start()
    targets = {
        "ray": f"127.0.0.1:{head.metrics_port}",
        "node": f"127.0.0.1:{exporter.server_address[1]}",
    }
    prometheus = Prometheus(tmp_path, targets, FOLDER / "rules.yaml")
    try:
        log = tmp_path / "log"
        words = (
            "segment", source, str(tmp_path / "out"), "--model", BRIGHT_MODEL, "--device", "cpu",
            "--set", "plan.images=3", "--set", "run.max_failed_fraction=1",
            "--metrics-file", str(textfiles / "metrics"),
        )  # fmt: skip
        code, stdout = head.submit(*words, log=log)
        assert code == 0, stdout + log.read_text()
        _check_series(prometheus, tmp_path)
    finally:
        prometheus.stop()
        exporter.shutdown()


def _check_series(prometheus: Prometheus, tmp_path: Path) -> None:
    """Every query has data; the last values are those of the record and of the text file."""
    done = prometheus.wait_for("sum(ray_segcore_images_total) == 61")
    assert float(done[0]["value"][1]) == 61
    prometheus.wait_for("segcore_run_exit_code == 0")
    for expression in _queries():
        series = prometheus.query_lately(expression)
        names = _names(expression)
        present = {name for name in names if prometheus.query(f"count_over_time({name}[10m])")}
        assert names - present <= BY_DESIGN_EMPTY, expression
        comparison = re.search(r"[<>=]=?\s*[\d.]+|\band\b", re.sub(r"\{[^}]*\}", "", expression))
        if not comparison and not names & BY_DESIGN_EMPTY:
            assert series, expression
    (record,) = (tmp_path / "out").glob("*/runs/*.json")
    metrics = json.loads(record.read_text())["metrics"]
    assert metrics['segcore_images_total{status="ok"}'] == 60
    failures = {name: n for name, n in metrics.items() if name.startswith("segcore_failures_total")}
    assert list(failures.values()) == [1]
    assert metrics["segcore_batch_images_total"] == 60
    text = (tmp_path / "textfiles" / "metrics").read_text()
    edition = json.loads((tmp_path / "out" / "latest.json").read_text())["edition"]
    assert f'segcore_images_total{{edition="{edition}",status="ok"}} 60' in text
    for name, value in metrics.items():  # the exporter lost nothing
        if not name.startswith(("segcore_workers", "segcore_units_left")):
            selector = f"ray_{name}"
            (series,) = prometheus.query(f"sum({selector})")
            assert float(series["value"][1]) == pytest.approx(value, abs=0.01), name
    labels = {
        label for one in prometheus.query("ray_segcore_images_total") for label in one["metric"]
    }
    assert "edition" in labels
    assert not labels & {"image", "unit", "run"}
