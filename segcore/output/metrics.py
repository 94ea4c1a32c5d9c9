"""The metrics of a run: their names, and the text that Prometheus reads.

A *sample* is a value under (name, value of its label); "" where it has none. The names are a
contract: dashboards and alerts use them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Key = tuple[str, str]  # name, value of the label
Samples = dict[Key, float]


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        label: Name of its label; "" for none.
        help: What it counts, as Prometheus shows it.
        is_gauge: It goes up and down; otherwise it only grows.
        is_peak: Of several processes the largest counts, not the sum.
    """

    label: str
    help: str
    is_gauge: bool = False
    is_peak: bool = False


METRICS: dict[str, Metric] = {
    "segcore_images_total": Metric("status", "Images of committed units, by status ok or failed."),
    "segcore_failures_total": Metric("code", "Failed images by their error code."),
    "segcore_instances_total": Metric("", "Instances of committed units."),
    "segcore_input_bytes_total": Metric("", "Compressed bytes of committed units."),
    "segcore_units_total": Metric("", "Committed units."),
    "segcore_unit_errors_total": Metric("", "Times that a unit could not be committed."),
    "segcore_stage_seconds_total": Metric(
        "stage", "Seconds of threads in a stage: read, decode, network, masks or write."
    ),
    "segcore_wait_seconds_total": Metric(
        "queue",
        "Seconds that threads waited: images (the model for images), model (a batch for the "
        "model), memory (a decoder for room), window (the reader for the model).",
    ),
    "segcore_batches_total": Metric("", "Batches that went into the model."),
    "segcore_batch_images_total": Metric("", "Images in these batches."),
    "segcore_batch_slots_total": Metric("", "Images for which these batches had room."),
    "segcore_model_busy_seconds_total": Metric(
        "", "Seconds in which a worker had at least one batch in the model."
    ),
    "segcore_retries_total": Metric(
        "what", "Repetitions: batch (in smaller ones, or later), process (one that died)."
    ),
    "segcore_nodes_taken_out": Metric(
        "", "Nodes of this pass that got no more units.", is_gauge=True
    ),
    "segcore_workers": Metric("", "Processes of the pool.", is_gauge=True),
    "segcore_units_left": Metric("", "Units of this pass that are not done.", is_gauge=True),
    "segcore_gpu_memory_peak_bytes": Metric(
        "", "Most memory that a worker has held on its GPU.", is_gauge=True, is_peak=True
    ),
}


def merge(into: Samples, samples: Mapping[Key, float]) -> None:
    """Add samples of another process or pass; gauges are replaced, peaks grow."""
    for key, value in samples.items():
        metric = METRICS[key[0]]
        if metric.is_peak:
            into[key] = max(into.get(key, 0.0), value)
        elif metric.is_gauge:
            into[key] = value
        else:
            into[key] = into.get(key, 0.0) + value


def to_document(samples: Mapping[Key, float]) -> dict[str, float]:
    """Samples as JSON: ``segcore_images_total{status="ok"}`` -> value."""
    return {
        _series(name, _labels(name, label)): round(v, 3) for (name, label), v in _sorted(samples)
    }


def to_text(
    samples: Mapping[Key, float],
    run: Mapping[str, tuple[str, Mapping[tuple[tuple[str, str], ...], float]]],
    edition: str,
) -> str:
    """A file for the textfile collector of Prometheus' node exporter.

    Args:
        run: Gauges about the run itself: name -> (help, labels -> value).
        edition: Label of every series.
    """
    lines: list[str] = []
    common = (("edition", edition),)
    names = sorted({name for name, _ in samples})
    for name in names:
        metric = METRICS[name]
        lines += _head(name, metric.help, "gauge" if metric.is_gauge else "counter")
        for (_, label), value in _sorted({k: v for k, v in samples.items() if k[0] == name}):
            lines.append(f"{_series(name, common + _labels(name, label))} {value:.10g}")
    for name, (text, values) in run.items():
        lines += _head(name, text, "gauge")
        lines += [f"{_series(name, common + key)} {value:.15g}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def _head(name: str, text: str, kind: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _sorted(samples: Mapping[Key, float]) -> list[tuple[Key, float]]:
    return sorted(samples.items())


def _labels(name: str, label: str) -> tuple[tuple[str, str], ...]:
    return ((METRICS[name].label, label),) if METRICS[name].label else ()


def _series(name: str, labels: tuple[tuple[str, str], ...]) -> str:
    pairs = ",".join(f'{key}="{_escape(value)}"' for key, value in labels)
    return f"{name}{{{pairs}}}" if pairs else name


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
