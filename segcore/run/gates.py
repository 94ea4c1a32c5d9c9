"""Whether an edition may be published in place of another one, and why not."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow.compute as pc

from segcore.comparison.compare import CompareOptions, Comparison, compare
from segcore.comparison.matching import Change, MatchLimits
from segcore.comparison.totals import Totals
from segcore.config.reprocess import GateOptions
from segcore.errors import ListingShrank, ObjectNotFound, SegcoreError, UsageError
from segcore.evaluation.evaluate import evaluate, read_ground_truth
from segcore.evaluation.matching import match_categories
from segcore.output.layout import EditionLayout
from segcore.output.report import TOO_MANY_FAILED, RunReport
from segcore.output.run_records import read_newest_run, read_planned_sizes
from segcore.run.job import Job
from segcore.storage import Storage

_CHANGES = {"changed": None, "vanished": Change.VANISHED, "appeared": Change.APPEARED}


class Damaged(SegcoreError):
    """Results cannot be compared because some of them cannot be read."""


@dataclass
class Measured:
    """What was measured for the gates, and which of them are closed.

    Attributes:
        reasons: A sentence for each gate that refuses; empty if all are open.
        values: What was measured, by name.
        was_compared: False if it could not be, so that the next call has to try again.
    """

    reasons: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    was_compared: bool = True

    def limit(self, name: str, value: float, most: float | None, what: str, key: str) -> None:
        """Note a value, and a reason if it is over its limit."""
        self.values[name] = value
        if most is not None and value > most:
            self.reasons.append(f"{what}: {value:.2%}; gates.{key} allows {most:.2%}.")


def check_gates(gates: GateOptions, storage: Storage, categories: Mapping[int, str]) -> None:
    """Refuse gates that cannot be applied, before hours go into segmenting.

    Args:
        categories: Those of the model, by their ids.

    Raises:
        UsageError: A category is unknown, or the golden set is missing, no COCO file, or of other
            categories.
    """
    known = sorted(set(categories.values()))
    unknown = sorted(gates.max_change_by_category.keys() - set(known))
    if unknown:
        raise UsageError(
            f"gates.max_change_by_category names {unknown[0]!r}, no category of the model.",
            f"Its categories: {', '.join(known[:20])}{' …' if len(known) > 20 else ''}.",
        )
    if gates.same_iou < gates.match_iou:
        raise UsageError(
            f"gates.same_iou ({gates.same_iou:g}) is below gates.match_iou ({gates.match_iou:g})."
        )
    if gates.golden is not None:
        truth = read_ground_truth(storage, gates.golden)
        match_categories(categories, truth.categories)  # refuses those that have none in common
    elif gates.min_ap is not None:
        raise UsageError("gates.min_ap needs gates.golden.", "Name a COCO file with true masks.")


def check_listing_size(job: Job, published: EditionLayout, max_loss: float) -> None:
    """Refuse a new edition whose listing is much smaller than that of the published one.

    Raises:
        ListingShrank: It is, and `source.allow_shrunk_listing` does not allow it.
    """
    if published.name == job.edition.name or job.config.source.allow_shrunk_listing:
        return  # the same edition: see `segcore.run.job.check_listing`
    record = read_newest_run(job.storage, published)
    if record is None or record.input != job.plan.input:
        return
    try:
        before = read_planned_sizes(job.storage, published, record.run)
    except ObjectNotFound as error:
        raise UsageError(
            f"The plan of the published edition is gone, so it is not known how much it holds: "
            f"{error.message}",
            "Call it once with the model of that edition, which writes it again.",
        ) from None
    now = job.plan.units.table
    is_counted = not before["n_images"].null_count and not now["n_images"].null_count
    column, noun = ("n_images", "images") if is_counted else ("n_bytes", "bytes")
    n_before, n_now = (int(pc.sum(table[column]).as_py() or 0) for table in (before, now))
    if n_now < n_before * (1 - max_loss):
        raise ListingShrank(
            f"The listing has shrunk from {n_before:,} to {n_now:,} {noun} since the published "
            f"edition; gates.max_listing_loss allows {max_loss:.1%}. Nothing was changed.",
            "If a folder is not mounted, mend that. If they are gone on purpose, set "
            "source.allow_shrunk_listing=true.",
        )


def measure(storage: Storage, report: RunReport, published: str, gates: GateOptions) -> Measured:
    """Hold a complete edition against the gates.

    Args:
        report: Of the run that completed it.
        published: The edition that is published now; "" for none. The edition itself is not
            compared with itself: the same pixels gave the same masks.

    Raises:
        UsageError: The golden set does not fit the archive.
        Damaged: Results cannot be read.
    """
    measured = Measured()
    share = report.failed / report.images if report.images else 0.0
    measured.values["failed"] = share
    if report.status == TOO_MANY_FAILED:
        measured.reasons.append(
            f"Failed images: {share:.2%}; run.max_failed_fraction allows "
            f"{report.max_failed_fraction:.2%}."
        )
    if published == report.edition:
        return measured
    if published:
        _compare(storage, report, published, gates, measured)
    if gates.golden is not None:
        _measure_ap(storage, report, published, gates, measured)
    return measured


def _compare(
    storage: Storage, report: RunReport, published: str, gates: GateOptions, measured: Measured
) -> None:
    limits = MatchLimits(gates.match_iou, gates.same_iou)
    try:
        comparison: Comparison = compare(
            storage,
            report.output,
            report.output,
            CompareOptions(limits),
            first_edition=published,
            second_edition=report.edition,
        )
    except UsageError as error:
        measured.reasons.append(f"Nothing can be compared: {error.message}")
        measured.was_compared = False
        return
    if comparison.damaged_units:
        raise Damaged(
            f"{comparison.damaged_units[0].rstrip('.')}; so {report.edition} was not compared.",
            "`segcore verify` with --edition says more. Nothing was published.",
        )
    totals = comparison.totals
    measured.values["images_compared"] = totals.images
    measured.values["objects_compared"] = totals.n_instances
    for name, change in _CHANGES.items():
        most = getattr(gates, f"max_{name}")
        measured.limit(name, totals.share(change), most, f"Objects {name}", f"max_{name}")
    _check_categories(totals, gates, measured)


def _check_categories(totals: Totals, gates: GateOptions, measured: Measured) -> None:
    before, after = count_by_category(totals)
    measured.values["categories"] = {
        name: {"before": before[name], "after": after[name]}
        for name in sorted(before.keys() | after.keys())
    }
    for name in sorted(before.keys() | after.keys()):
        most = gates.max_change_by_category.get(name, gates.max_category_change)
        change = abs(after[name] - before[name])
        if most is not None and change > most * before[name]:
            measured.reasons.append(
                f"Objects of {name}: {before[name]:,} before, {after[name]:,} now; the gate of "
                f"this category allows a change of {most:.1%}."
            )


def count_by_category(totals: Totals) -> tuple[Counter[str], Counter[str]]:
    """Objects of each category on the first side and on the second."""
    before: Counter[str] = Counter()
    after: Counter[str] = Counter()
    for name, changes in totals.by_category.items():
        kept = changes[Change.SAME] + changes[Change.MOVED]
        before[name] += kept + changes[Change.RELABELLED] + changes[Change.VANISHED]
        after[name] += kept + changes[Change.APPEARED]
    for (_, name), number in totals.relabelled.items():
        after[name] += number
    return before, after


def _measure_ap(
    storage: Storage, report: RunReport, published: str, gates: GateOptions, measured: Measured
) -> None:
    assert gates.golden is not None, "checked by the caller"
    ap = _mask_ap(storage, report.output, gates.golden, report.edition)
    measured.values["ap"] = None if math.isnan(ap) else ap
    if math.isnan(ap):
        measured.reasons.append(f"{gates.golden} has no object in these images: no AP.")
        return
    if gates.min_ap is not None and ap < gates.min_ap:
        measured.reasons.append(f"Mask AP {ap:.4f}; gates.min_ap asks for {gates.min_ap:g}.")
    if published and gates.max_ap_drop is not None:
        before = _mask_ap(storage, report.output, gates.golden, published)
        measured.values["ap_before"] = None if math.isnan(before) else before
        if ap < before - gates.max_ap_drop:
            measured.reasons.append(
                f"Mask AP {ap:.4f}, of the published edition {before:.4f}; gates.max_ap_drop "
                f"allows {gates.max_ap_drop:g}."
            )


def _mask_ap(storage: Storage, output: str, golden: str, edition: str) -> float:
    """Raises a UsageError that says what to do here if the golden set does not fit."""
    try:
        return evaluate(storage, output, golden, edition).scores.mask.ap
    except UsageError as error:
        raise UsageError(
            f"The golden set does not fit: {error.message} Nothing was published.",
            "gates.golden is a COCO file of images of this archive, each with its size and masks.",
        ) from None
