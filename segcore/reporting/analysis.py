"""The sections about how an edition compares with known masks: curves, thresholds, calibration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from segcore.evaluation.analysis import Analysis, ClassAnalysis, ImageErrors
from segcore.evaluation.average_precision import RECALLS, format_score
from segcore.evaluation.evaluate import EvaluationReport
from segcore.evaluation.remarks import shorten
from segcore.reporting.charts import Line, line_chart, table, table_within
from segcore.reporting.html import Content, Markup, element, join

_CURVE_CLASSES = 8  # that have a curve of their own: those with most objects
_CURVE_IOUS = (50, 75)  # percent


def analysis_section(report: EvaluationReport, max_bytes: int) -> Markup:
    """Precision at each recall, how far scores can be trusted, and the best one by class."""
    analysis = report.analysis
    intro = (
        "Masks with an IoU of 0.50 or more are right, unless another is said. Each class counts "
        "alike in the mean of the classes."
    )
    parts: list[Content] = [element("p", intro, class_="note")]
    charts = [*_curves(report), *_calibration_chart(analysis)]
    parts.append(element("div", *charts, class_="charts"))
    parts += [_thresholds(report, max_bytes // 3), *_calibration_table(analysis)]
    parts.append(_confusions(analysis, max_bytes // 6))
    return join(*parts)


def describe_image(errors: ImageErrors) -> str:
    """What is wrong in an image: ``4 right, 2 missed, 1 invented``."""
    counts = (errors.right, "right"), (errors.missed, "missed"), (errors.wrong, "invented")
    return ", ".join(f"{count:,} {text}" for count, text in counts)


def _curves(report: EvaluationReport) -> list[Markup]:
    classes = [one for one in report.analysis.per_class if one.precision]
    if not classes:
        return []
    lines = [
        Line(f"IoU 0.{iou}", RECALLS, np.mean([one.precision[iou] for one in classes], axis=0))
        for iou in _CURVE_IOUS
    ]
    title = "Precision at each recall, mean of the classes"
    charts = [line_chart(title, ("recall", "precision"), lines)]
    if len(classes) > 1:
        objects = {one.category_id: one.n_ground_truth for one in report.scores.per_class}
        largest = sorted(classes, key=lambda one: (-objects[one.category_id], one.name))
        shown = largest[:_CURVE_CLASSES]
        more = f", the {len(shown)} with most objects" if len(classes) > len(shown) else ""
        lines = [Line(shorten(one.name), RECALLS, np.array(one.precision[50])) for one in shown]
        title = f"The same by class at IoU 0.50{more}"
        charts.append(line_chart(title, ("recall", "precision"), lines))
    return charts


def _calibration_chart(analysis: Analysis) -> list[Markup]:
    filled = [one for one in analysis.calibration if one.n_detections]
    if not filled:
        return []
    scores = np.array([one.mean_score for one in filled], float)
    right = np.array([one.precision for one in filled], float)
    ends = np.array([0.0, 1.0])
    lines = [Line("share that is right", scores, right), Line("as the scores say", ends, ends)]
    return [line_chart("Scores and the share that is right", ("score", "share"), lines)]


def _calibration_table(analysis: Analysis) -> list[Content]:
    if analysis.calibration_error is None:
        return []
    rows = [
        (f"{one.low:.1f} to {one.low + 0.1:.1f}", f"{one.n_detections:,}",
         format_score(one.mean_score), format_score(one.precision))
        for one in analysis.calibration
    ]  # fmt: skip
    text = (
        "Scores differ from the share of detections that is right by "
        f"{analysis.calibration_error:.3f} on average, by detections."
    )
    headings = ("score", "detections", "mean score", "share that is right")
    return [element("h3", "Calibration"), element("p", text), table("Calibration", headings, rows,
            caption_is_shown=False)]  # fmt: skip


def _thresholds(report: EvaluationReport, max_bytes: int) -> Markup:
    objects = {one.category_id: one.n_ground_truth for one in report.scores.per_class}
    with_objects = [one for one in report.analysis.per_class if one.best is not None]
    ordered = sorted(with_objects, key=lambda one: (-objects[one.category_id], one.name))
    rows = (_threshold_row(one, objects[one.category_id]) for one in ordered)
    headings = ("class", "objects", "keep from score", "F1", "precision", "recall")
    caption = "Best score by class (highest F1)"
    return join(
        element("h3", "Best score thresholds"), table_within(caption, headings, rows, max_bytes)
    )


def _threshold_row(one: ClassAnalysis, n_objects: int) -> Sequence[Content]:
    best = one.best
    assert best is not None, "those without objects are left out"
    values = (best.score, best.f1, best.precision, best.recall)
    return [shorten(one.name), f"{n_objects:,}", *map(format_score, values)]


def _confusions(analysis: Analysis, max_bytes: int) -> Markup:
    wrong = [one for one in analysis.confusions if one.truth != one.found]
    if not wrong:
        return Markup("")
    rows = [
        (shorten(one.truth) if one.truth else "no object", shorten(one.found) if one.found else
         "missed", f"{one.n:,}")
        for one in wrong[:200]
    ]  # fmt: skip
    headings = ("is", "found as", "objects")
    caption = "Confusions, with detections from the best score of their class on"
    return table_within(caption, headings, rows, max_bytes, n_more=len(wrong) - len(rows))
