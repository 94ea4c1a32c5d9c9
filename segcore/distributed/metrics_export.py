"""Samples to Prometheus, by Ray's own exporter: as ``ray_segcore_...`` on the port of its node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from segcore.output.metrics import METRICS, Key


class MetricsExporter:
    """Hands samples to Ray; one process of a run does it, so that no series is there twice.

    Without Ray's exporter (`ray[default]`) they go nowhere, which costs nothing.

    Args:
        edition: Label of every series.
    """

    def __init__(self, edition: str) -> None:
        self._edition = edition
        self._metrics: dict[str, Any] = {}

    def export(self, samples: Mapping[Key, float], totals: Mapping[Key, float]) -> None:
        """Add what is new.

        Args:
            samples: What is new of counters.
            totals: The values now, for gauges.
        """
        for key, value in samples.items():
            name, label = key
            metric = METRICS[name]
            tags = {"edition": self._edition} | ({metric.label: label} if metric.label else {})
            handle = self._handle(name)
            if metric.is_gauge:
                handle.set(totals[key], tags=tags)
            elif value > 0:
                handle.inc(value, tags=tags)

    def _handle(self, name: str) -> Any:
        if name not in self._metrics:
            from ray.util import metrics

            metric = METRICS[name]
            keys = ("edition", metric.label) if metric.label else ("edition",)
            kind = metrics.Gauge if metric.is_gauge else metrics.Counter
            self._metrics[name] = kind(name, metric.help, tag_keys=keys)
        return self._metrics[name]
