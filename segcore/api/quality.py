"""Tell how good results are: against known masks, against other results, by eye."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segcore.api.storage import AnyStorage, open_storage
from segcore.comparison import compare as comparison
from segcore.comparison.compare import CompareOptions, Comparison
from segcore.comparison.matching import MatchLimits
from segcore.errors import UsageError
from segcore.evaluation import evaluate as evaluation
from segcore.evaluation.average_precision import DEFAULT_MAX_DETS
from segcore.evaluation.evaluate import EvaluationReport
from segcore.evaluation.exif_labels import ExifLabels
from segcore.output import results
from segcore.ranking import rank as ranking_job
from segcore.ranking.methods import STRATA, RankBy
from segcore.ranking.rank import RankOptions, RankReport
from segcore.reporting.report import Report, ReportOptions, make_report


def evaluate(
    output: str,
    ground_truth: str,
    edition: str | None = None,
    *,
    storage: AnyStorage = None,
    max_dets: int = DEFAULT_MAX_DETS,
    allow_missing: bool = False,
    exif_labels: ExifLabels | str = ExifLabels.REFUSE,
    include_unlisted: bool = False,
) -> EvaluationReport:
    """Measure an output against a COCO file: mask and box AP::

        segcore.evaluate("masks/", "instances_val.json").scores.mask.ap50

    Args:
        output: The OUTPUT of a run, or the prefix of one edition in it.
        ground_truth: COCO instances JSON, local or in an object store; images are matched by
            `file_name`.
        edition: Name of the edition; default the published one, else the only one.
        storage: How object stores are accessed.
        max_dets: Detections that count, per image and class.
        allow_missing: Leave out images of the ground truth that the output lacks, instead of
            refusing.
        exif_labels: ``refuse``, ``shown`` or ``leave-out``: what becomes of images whose width and
            height are swapped in the ground truth.
        include_unlisted: Also measure results of images that the newest listing lacked.

    Raises:
        UsageError: There is nothing to measure, images or classes cannot be matched, or sizes
            differ.
    """
    return evaluation.evaluate(
        open_storage(storage),
        output,
        ground_truth,
        edition,
        max_dets,
        allow_missing,
        _exif_labels(exif_labels),
        include_unlisted=include_unlisted,
    )


def compare(
    first: str,
    second: str,
    *,
    first_edition: str | None = None,
    second_edition: str | None = None,
    match_iou: float = 0.5,
    same_iou: float = 0.9,
    min_score: float = 0.0,
    table: str | None = None,
    storage: AnyStorage = None,
) -> Comparison:
    """What differs between two editions of the same images, or an edition and known masks::

        segcore.compare("old/", "new/").totals.share()  # the part of all objects that changed

    Args:
        first, second: An output, the prefix of an edition, or a COCO instances file (.json).
        first_edition, second_edition: Names of editions; default the published ones.
        match_iou: IoU of masks that makes two instances one object.
        same_iou: From this IoU on it has not moved.
        min_score: Leave out instances below this score.
        table: A local Parquet file for one row per pair and lone instance.
        storage: How object stores are accessed.

    Raises:
        UsageError: A side cannot be opened, or they have no image in common.
    """
    options = CompareOptions(
        MatchLimits(match_iou, same_iou), min_score, Path(table) if table else None
    )
    return comparison.compare(
        open_storage(storage),
        first,
        second,
        options,
        first_edition=first_edition,
        second_edition=second_edition,
    )


def report(
    output: str,
    out: str,
    edition: str | None = None,
    *,
    ground_truth: str = "",
    against: str = "",
    images: int = 8,
    ranking: str = "",
    price: float | None = None,
    storage: AnyStorage = None,
) -> Report:
    """Write one HTML file about an output: run, counts, histograms, images with masks, scores::

        segcore.report("masks/", "report.html", ground_truth="instances_val.json").problems

    The rest is as for `segcore report`; `problems` of the result say what is missing in the file.

    Raises:
        SegcoreError: The output cannot be read, or the file cannot be written.
    """
    read = results.open_results(open_storage(storage), output, edition)
    options = ReportOptions(ground_truth, against, images, ranking=ranking, price=price)
    made = make_report(read, options)
    read.storage.write(out, made.html)
    return made


def rank(
    output: str,
    by: RankBy | str,
    edition: str | None = None,
    *,
    name: str = "",
    limit: int | None = None,
    seed: int = 0,
    strata: Sequence[str] = STRATA,
    overwrite: bool = False,
    storage: AnyStorage = None,
    include_unlisted: bool = False,
) -> RankReport:
    """Rank images: which to look at, correct or label first; writes ``rankings/<name>.parquet``::

        segcore.rank("masks/", "uncertain").ranking.rows.to_pandas()

    Args:
        output: The OUTPUT of a run, or the prefix of one edition in it.
        by: ``uncertain``, ``crowded``, ``diverse``, ``random`` or ``stratified``.
        edition: Name of the edition; default the published one, else the only one.
        name: Of the ranking; default what it is by.
        limit: Most images in it; default 100,000, or 1,000 where they are to be diverse.
        seed: The same seed gives the same ranking.
        strata: What tells the kinds of images of a stratified ranking apart: ``category``,
            ``size``, ``score``.
        overwrite: Replace a ranking of this name that was made with other options.
        storage: How object stores are accessed.
        include_unlisted: Also rank images that the newest listing lacked.

    Raises:
        UsageError: An option is wrong, or there is another ranking of this name.
        NothingFound: There is no image to rank.
    """
    try:
        method = RankBy(by)
    except ValueError:
        raise UsageError(f"by is {by!r}; it is one of {', '.join(RankBy)}.") from None
    read = results.open_results(
        open_storage(storage), output, edition, include_unlisted=include_unlisted
    )
    options = RankOptions(method, name, limit, seed, tuple(strata), overwrite)
    return ranking_job.rank(read, options)


def _exif_labels(value: ExifLabels | str) -> ExifLabels:
    try:
        return ExifLabels(value)
    except ValueError:
        known = ", ".join(ExifLabels)
        raise UsageError(f"exif_labels is {value!r}; it is one of {known}.") from None
