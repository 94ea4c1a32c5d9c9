"""Samples to Prometheus, by Ray's own exporter: as ``ray_segcore_...`` on the port of its node."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from segcore.output.metrics import METRICS, Key

_GAUGES_INTERVAL_S = 5.0


class MetricsExporter:
    """Hands samples to Ray; one process of a run does it, so that no series is there twice.

    Without Ray's exporter (`ray[default]`) they go nowhere, which costs nothing.

    Args:
        edition: Label of every series.
    """

    def __init__(self, edition: str) -> None:
        self._edition = edition
        self._metrics: dict[str, Any] = {}
        self._gauges_set_at = float("-inf")  # monotonic seconds

    def export(self, samples: Mapping[Key, float], totals: Mapping[Key, float]) -> None:
        """Add what is new.

        Args:
            samples: What is new of counters.
            totals: The values now, for gauges. All are set now and then: Ray forgets old ones.
        """
        now = time.monotonic()
        is_due = now - self._gauges_set_at >= _GAUGES_INTERVAL_S
        if is_due:
            self._gauges_set_at = now
        for key, value in totals.items():
            if METRICS[key[0]].is_gauge and (is_due or key in samples):
                self._handle(key[0]).set(value, tags=self._tags(key))
        for key, value in samples.items():
            if not METRICS[key[0]].is_gauge and value > 0:
                self._handle(key[0]).inc(value, tags=self._tags(key))

    def _tags(self, key: Key) -> dict[str, str]:
        name, value = key
        label = METRICS[name].label
        return {"edition": self._edition} | ({label: value} if label else {})

    def _handle(self, name: str) -> Any:
        if name not in self._metrics:
            from ray.util import metrics

            metric = METRICS[name]
            keys = ("edition", metric.label) if metric.label else ("edition",)
            kind = metrics.Gauge if metric.is_gauge else metrics.Counter
            self._metrics[name] = kind(name, metric.help, tag_keys=keys)
        return self._metrics[name]
