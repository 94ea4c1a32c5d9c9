"""The sections of words and numbers: the run, what was found, and the scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from segcore.evaluation.average_precision import format_score
from segcore.evaluation.evaluate import EvaluationReport
from segcore.evaluation.remarks import shorten
from segcore.output.results import Results
from segcore.output.run_records import RunRecord
from segcore.reporting.charts import (
    Histogram,
    bar_chart,
    definitions,
    share,
    small_chart,
    table,
    table_within,
)
from segcore.reporting.contents import (
    Contents,
    area_labels,
    count_labels,
    score_labels,
)
from segcore.reporting.cost import describe_cost
from segcore.reporting.html import Content, Markup, element, join
from segcore.text import format_duration, plural, redact_link

_MAX_VALUE_CHARS = 300
_MAX_NOTES = 30


def run_section(
    results: Results,
    record: RunRecord | None,
    contents: Contents,
    problems: Sequence[str],
    max_bytes: int,
    price: float | None = None,
) -> Markup:
    """What was run, how it ended, and what could not be read for this report."""
    values = record.values if record else {}
    parts = [
        _warnings(problems),
        element("div", definitions(_totals(contents)), class_="numbers"),
        element("p", _balance(contents, values)),
        _notes([*results.edition_notes, *results.remarks(), *_texts(values, "input_notes")]),
        definitions(_facts(results, values)),
        definitions(describe_cost(values, price)) if price is not None else Markup(""),
    ]
    if contents.failures:
        rows = _count_rows(contents.failures, contents.ok + contents.failed)
        parts.append(table("Failed images by reason", ("reason", "images", "share"), rows))
    if contents.warnings:
        rows = _count_rows(contents.warnings, contents.ok + contents.failed)
        parts.append(table("Warnings", ("warning", "images", "share"), rows))
    timings = values.get("timings")
    if isinstance(timings, dict) and timings:
        steps = [(shorten(name), _seconds(value)) for name, value in list(timings.items())[:40]]
        parts.append(table("Time of the last execution", ("step", "time"), steps))
    settings = [(shorten(name), _value(value)) for name, value in _flatten(results.edition)]
    options = table_within("Options", ("option", "value"), settings, max_bytes // 2)
    summary = element("summary", "All that decides the results (edition.json)")
    return join(*parts, element("details", summary, options))


def _totals(contents: Contents) -> list[tuple[str, Content]]:
    return [
        ("images", f"{contents.ok + contents.failed:,}"),
        ("segmented", f"{contents.ok:,}"),
        ("failed", f"{contents.failed:,}"),
        ("instances", f"{contents.instances:,}"),
        ("nothing found", f"{int(contents.per_image[0]):,}"),
        ("units", f"{contents.units:,}"),
    ]


def _balance(contents: Contents, values: Mapping[str, Any]) -> str:
    """Whether the rows that were counted are those that the run recorded."""
    n_images = contents.ok + contents.failed
    text = (
        f"{plural(n_images, 'image')} = {contents.ok:,} segmented + {contents.failed:,} failed, "
        "counted from the tables."
    )
    counted = {
        "images": n_images,
        "ok": contents.ok,
        "failed": contents.failed,
        "instances": contents.instances,
    }
    recorded = {name: values.get(name) for name in counted}
    if not values or values.get("status") == "running":
        return f"{text} No finished run is recorded to compare that with."
    if recorded == counted:
        return f"{text} The record of the run says the same."
    said = ", ".join(f"{_value(value)} {name}" for name, value in recorded.items())
    return f"{text} The record of the run says otherwise: {said}."


def _facts(results: Results, values: Mapping[str, Any]) -> Iterator[tuple[str, Content]]:
    edition = results.edition
    model = edition.get("model")
    model = model if isinstance(model, Mapping) else {}
    yield "Model", _value(model.get("name", ""))
    yield "Architecture", _value(model.get("architecture", ""))
    yield "Weights (sha256)", _value(model.get("weights_sha256", ""))
    yield "Licence of the weights", _value(edition.get("licence", ""))
    yield "Edition", results.name
    yield "Run", results.run
    yield "Status of the run", _value(values.get("status", ""))
    yield "Input", redact_link(str(values.get("input", "")))
    yield "Results", redact_link(results.prefix)
    yield "Started (UTC)", _value(values.get("started", ""))
    yield "Finished (UTC)", _value(values.get("finished", ""))
    if pace := values.get("images_per_second"):
        this_time = _value(values.get("images_this_time", ""))
        yield "Speed", f"{_value(pace)} images/s, of {this_time} images of the last execution"
    yield "Workers", _value(values.get("pool", ""))
    yield "Computed with", "; ".join(_texts(values, "runtimes"))
    yield "Nodes taken out", "; ".join(_texts(values, "nodes_taken_out"))


def counts_section(contents: Contents, max_bytes: int) -> Markup:
    """What was found, by score, size and category."""
    categories = contents.categories
    charts = [
        bar_chart("Scores", Histogram(score_labels(), categories.scores.sum(axis=0), "instance")),
        bar_chart(
            "Areas of masks, pixels",
            Histogram(area_labels(), categories.areas.sum(axis=0), "instance").trimmed(),
        ),
        bar_chart(
            "Instances in an image",
            Histogram(count_labels(), contents.per_image, "image").trimmed(),
        ),
    ]
    order = np.argsort(-categories.scores.sum(axis=1), kind="stable")
    names = list(categories.names)
    headings = ("class", "instances", "share", "images", "score: median in", "area: median in",
                "in an image: median")  # fmt: skip
    rows = (_category_row(contents, names[row], int(row)) for row in order.tolist())
    by_class = table_within("By class", headings, rows, max_bytes - 60_000)
    parts = [element("div", *charts, class_="charts"), element("h3", "Classes"), by_class]
    if categories.n_pooled:
        n = plural(categories.n_pooled, "instance")
        parts.append(element("p", f"{n} of further classes are in no count by class."))
    return join(*parts)


def _category_row(contents: Contents, name: str, row: int) -> list[Content]:
    counts = contents.categories
    n = int(counts.scores[row].sum())
    cells: list[Content] = [shorten(name), f"{n:,}", share(n, contents.instances)]
    cells.append(f"{int(counts.per_image[row].sum()):,}")
    histograms = [
        Histogram(score_labels(), counts.scores[row], ""),
        Histogram(area_labels(), counts.areas[row], "").trimmed(),
        Histogram(count_labels(), counts.per_image[row], "").trimmed(),
    ]
    return cells + [join(small_chart(h.counts), _median(h)) for h in histograms]


def _median(histogram: Histogram) -> str:
    """The bin that holds the median."""
    total = int(histogram.counts.sum())
    if not total:
        return "-"
    return histogram.labels[int(np.searchsorted(np.cumsum(histogram.counts), (total + 1) // 2))]


def scores_section(report: EvaluationReport, max_bytes: int) -> Markup:
    """AP against known masks: over all classes, then class by class."""
    scores = report.scores
    text = (
        f"{plural(report.images, 'image')}, {plural(scores.n_ground_truth, 'object')}, "
        f"{plural(scores.n_detections, 'detection')}; "
        f"known masks: {redact_link(report.ground_truth)}"
    )
    all_classes = ("all", scores.n_ground_truth, scores.mask, scores.box)
    rows: list[tuple[str, int, Any, Any]] = [all_classes]
    if len(scores.per_class) > 1:
        by_count = sorted(scores.per_class, key=lambda c: -c.n_ground_truth)
        rows += [(shorten(c.name), c.n_ground_truth, c.mask, c.box) for c in by_count]
    cells = [
        (name, f"{n:,}", *map(format_score, (m.ap, m.ap50, m.ap75, m.ap_small, m.ap_medium,
                                             m.ap_large, m.recall, box.ap)))
        for name, n, m, box in rows
    ]  # fmt: skip
    headings = ("class", "objects", "mask AP", "AP50", "AP75", "small", "medium", "large",
                "recall", "box AP")  # fmt: skip
    caption = f"COCO protocol, at most {scores.max_dets} detections per image and class"
    whole = table_within(caption, headings, cells, max_bytes // 2)
    return join(element("p", text), whole, _notes(report.notes))


def _count_rows(counts: Counter[str], total: int) -> list[tuple[str, str, str]]:
    return [(shorten(name), f"{n:,}", share(n, total)) for name, n in counts.most_common(100)]


def _warnings(sentences: Sequence[str]) -> Markup:
    items = [element("li", shorten(text, _MAX_VALUE_CHARS)) for text in sentences[:_MAX_NOTES]]
    if not items:
        return Markup("")
    if len(sentences) > _MAX_NOTES:
        items.append(element("li", f"{len(sentences) - _MAX_NOTES:,} more"))
    heading = element("p", "This report is not complete:", class_="warn")
    return join(heading, element("ul", *items))


def _notes(sentences: Sequence[str]) -> Markup:
    lines = sentences[:_MAX_NOTES]
    return join(*(element("p", shorten(text, _MAX_VALUE_CHARS), class_="note") for text in lines))


def _flatten(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of a document; lists as they are."""
    for name, value in document.items():
        if isinstance(value, Mapping) and len(prefix) < _MAX_VALUE_CHARS:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _texts(values: Mapping[str, Any], name: str) -> list[str]:
    texts = values.get(name)
    return [_value(text) for text in texts[:10]] if isinstance(texts, list) else []


def _value(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return shorten(value, _MAX_VALUE_CHARS)
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"


def _seconds(value: object) -> str:
    if not isinstance(value, (int, float)) or not 0 <= value < 1e9:
        return _value(value)
    return format_duration(value) if value >= 60 else f"{value:.2f} s"
