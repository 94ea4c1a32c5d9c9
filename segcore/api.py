"""The public functions for notebooks and scripts, with arguments in the order people expect.

Commands and packages of segcore use the functions behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segcore.comparison import compare as comparison
from segcore.comparison.compare import CompareOptions, Comparison
from segcore.comparison.matching import MatchLimits
from segcore.config import Config, load_config
from segcore.config.exports import ExportConfig, PrelabelConfig
from segcore.config.reprocess import ReprocessConfig
from segcore.corrections import import_corrections as corrections
from segcore.corrections.import_corrections import ImportReport
from segcore.errors import UsageError
from segcore.evaluation import evaluate as evaluation
from segcore.evaluation.average_precision import DEFAULT_MAX_DETS
from segcore.evaluation.evaluate import EvaluationReport
from segcore.evaluation.exif_labels import ExifLabels
from segcore.exports import export as export_job
from segcore.exports.summary import ExportSummary
from segcore.output import results
from segcore.output.report import RunReport
from segcore.reporting.report import Report, ReportOptions, make_report
from segcore.run import prelabel as prelabel_job
from segcore.run import reprocess as reprocess_job
from segcore.run import segment as job
from segcore.run.prelabel import PrelabelReport
from segcore.run.reprocess_report import ReprocessReport
from segcore.storage import Storage, StorageOptions

if TYPE_CHECKING:
    from PIL.Image import Image

AnyStorage = Storage | StorageOptions | None


def segment(
    input: str | Config,
    output: str | None = None,
    *,
    model: str | None = None,
    options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
    remove_unlisted: bool = False,
    notify: Callable[[str], None] = lambda text: None,
) -> RunReport:
    """Segment an archive; resume where an earlier run with the same model and options stopped::

        report = segcore.segment("photos/", "masks/", options={"model.conf": 0.4}, notify=print)

    Args:
        input: Folder or prefix of images or shards, a manifest, or a COCO JSON file; or a whole
            `Config`, which says everything that `output`, `model` and `options` would.
        output: Folder or prefix for the tables.
        model: A name that `segcore models` lists, a checkpoint, or ``package.module:Class``.
        options: Further options by their dotted keys; ``docs/options.md`` lists them.
        overwrite: Delete the results of this edition first.
        retry_failed: Also segment the images that failed before.
        remove_unlisted: At the end, delete the results of images that the input lacks today.
        notify: Takes sentences for people while the run is in progress.

    Returns:
        The report; its `exit_code` is 0 if everything is accounted for.

    Raises:
        UsageError: An argument is wrong.
        SegcoreError: Nothing could be started, or the run broke off.
    """
    if isinstance(input, Config):
        config = _whole_config(input, output, model, options)
    else:
        flags: dict[str, tuple[str | tuple[str, ...], Any]] = {
            "input": ("input", input),
            "output": ("output", output),
            "model": ("model.name", model),
        }
        flags |= {f"options[{key!r}]": (key, value) for key, value in (options or {}).items()}
        config = load_config(flags=flags)
    return job.segment(
        config,
        overwrite=overwrite,
        retry_failed=retry_failed,
        remove_unlisted=remove_unlisted,
        notify=notify,
    )


class Results(results.Results):
    """One edition of an output: its tables, and pictures of its images."""

    def plot(self, image_id: str, scale: float = 1.0, labels: bool = True) -> Image:
        """The masks of one image over it; a notebook shows the result as a picture.

        The image is read from where the job read it.

        Args:
            image_id: As in the tables, or the end of it from a slash or # on, such as a file name.
            scale: Size of the picture relative to the image.
            labels: Write category and score beside each instance.

        Raises:
            UsageError: There is no such image, or several; it failed; or it is gone from the
                archive or has changed.
        """
        from PIL.Image import fromarray

        from segcore.visualize.pictures import draw_picture, read_pictures
        from segcore.visualize.selection import Choice, Selection, select_images

        selected = select_images(self, Selection(Choice.FIRST, image_id, limit=2))
        if selected.n_matching > 1:
            ids = " and ".join(record.image_id for record in selected.records)
            raise UsageError(f"{image_id} is the end of several ids: {ids}.")
        picture = next(iter(read_pictures(self, selected.records)))
        if picture.image is None:
            raise UsageError(f"{picture.record.image_id} cannot be shown: {picture.reason}")
        return fromarray(draw_picture(picture, scale=scale, labels=labels, as_read=True))


def open_results(
    output: str,
    edition: str | None = None,
    *,
    storage: AnyStorage = None,
    include_unlisted: bool = False,
) -> Results:
    """The results in an output: tables by unit, one Arrow table, a DataFrame, or pictures::

        results = segcore.open_results("masks/")
        results.plot("photo7.jpg")
        masks = results.to_pandas("instances", columns=["image_id", "category", "score"])

    Args:
        output: The OUTPUT of a run, or the prefix of one edition in it.
        edition: Name of the edition; default the published one, else the only one.
        storage: How object stores are accessed.
        include_unlisted: Also the results of images that the newest listing lacked.

    Raises:
        UsageError: There is no output, no such edition, or there are several and none was chosen.
    """
    opened = results.open_results(
        _storage(storage), output, edition, include_unlisted=include_unlisted
    )
    return Results(**{one.name: getattr(opened, one.name) for one in fields(opened)})


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
        _storage(storage),
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
        _storage(storage),
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
    storage: AnyStorage = None,
) -> Report:
    """Write one HTML file about an output: run, counts, histograms, images with masks, scores::

        segcore.report("masks/", "report.html", ground_truth="instances_val.json").problems

    The rest is as for `segcore report`; `problems` of the result say what is missing in the file.

    Raises:
        SegcoreError: The output cannot be read, or the file cannot be written.
    """
    read = results.open_results(_storage(storage), output, edition)
    made = make_report(read, ReportOptions(ground_truth, against, images))
    read.storage.write(out, made.html)
    return made


def export(
    output: str,
    dest: str,
    format: str = "coco",
    edition: str | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    storage: AnyStorage = None,
    include_unlisted: bool = False,
    notify: Callable[[str], None] = lambda text: None,
) -> ExportSummary:
    """Write results as files of an annotation tool or a training format::

        segcore.export("masks/", "tasks/", "label-studio", options={"min_score": 0.4})

    Args:
        output: The OUTPUT of a run, or the prefix of one edition in it.
        dest: Folder or prefix: new, empty, or an earlier export to add to.
        format: ``coco``, ``coco-results``, ``yolo-seg``, ``cvat``, ``label-studio``, ``labelme``,
            ``hf`` or ``overlays``.
        edition: Name of the edition; default the published one, else the only one.
        options: Further options of the section ``export`` in ``docs/options.md``. With `workers`
            over 1, processes are started: call it under ``if __name__ == "__main__":`` then.
        storage: How object stores are accessed.
        include_unlisted: Also the results of images that the newest listing lacked.
        notify: Takes sentences for people while the export is in progress.

    Raises:
        UsageError: An option is wrong, or `dest` holds something else.
        SegcoreError: Reading or writing failed; call it again to continue.
    """
    flags: dict[str, tuple[str | tuple[str, ...], Any]] = {"format": ("export.format", format)}
    flags |= {f"options[{k!r}]": (f"export.{k}", value) for k, value in (options or {}).items()}
    config = load_config(flags=flags, schema=ExportConfig)
    found = results.open_results(
        _storage(storage), output, edition, include_unlisted=include_unlisted
    )
    return export_job.export(found, dest, config.export, notify)


def import_corrections(
    source: str,
    truth: str,
    dest: str | None = None,
    *,
    format: str = "auto",
    file_names: str = "archive",
    overwrite: bool = False,
    storage: AnyStorage = None,
) -> ImportReport:
    """Read corrections from an annotation tool into COCO ground truth::

        segcore.import_corrections("project-3.json", "truth.json", dest="tasks/")

    Args:
        source: What the tool wrote (file, zip of CVAT, folder), or the edited `dest` itself.
        truth: The COCO file to write.
        dest: Where `export` wrote to; by default `source`, or the folder that it is in.
        format: ``auto``, ``coco``, ``yolo-seg``, ``cvat``, ``label-studio`` or ``labelme``.
        file_names: ``archive``: images are named by their paths in the archive; ``export``: by
            the names that the export gave them.
        overwrite: Replace `truth`.
        storage: How object stores are accessed.

    Raises:
        UsageError: There are no corrections, or none that belong to the export.
    """
    if file_names not in ("archive", "export"):
        raise UsageError(f"file_names is {file_names!r}; it is one of archive, export.")
    return corrections.import_corrections(
        _storage(storage),
        source,
        truth,
        dest=dest,
        form=format,
        file_names="export" if file_names == "export" else "archive",
        overwrite=overwrite,
    )


def prelabel(
    config: PrelabelConfig, *, notify: Callable[[str], None] = lambda text: None
) -> PrelabelReport:
    """Segment an archive and export the masks, in one call; see `segcore.run.prelabel`::

        config = segcore.load_config("prelabel.yaml", schema=segcore.PrelabelConfig)
        segcore.prelabel(config, notify=print)

    Raises:
        UsageError: The configuration is wrong.
        SegcoreError: The job broke off; call it again to continue.
    """
    return prelabel_job.prelabel(config, notify=notify)


def reprocess(
    config: ReprocessConfig,
    *,
    logical_date: str = "",
    notify: Callable[[str], None] = lambda text: None,
) -> ReprocessReport:
    """Bring an output up to date with its archive; publish it if it passes the gates::

        config = segcore.load_config("nightly.yaml", schema=segcore.ReprocessConfig)
        segcore.reprocess(config, logical_date="2026-11-01", notify=print)

    Args:
        logical_date: The date that a scheduler means; only recorded.

    Raises:
        UsageError: The configuration, a gate or the golden set is wrong.
        SegcoreError: The job broke off; call it again to continue.
    """
    return reprocess_job.reprocess(config, logical_date=logical_date, notify=notify)


def _whole_config(
    config: Config, output: str | None, model: str | None, options: Mapping[str, Any] | None
) -> Config:
    if output is not None or model is not None or options:
        raise TypeError("a Config says everything: leave output, model and options out")
    return config


def _exif_labels(value: ExifLabels | str) -> ExifLabels:
    try:
        return ExifLabels(value)
    except ValueError:
        known = ", ".join(ExifLabels)
        raise UsageError(f"exif_labels is {value!r}; it is one of {known}.") from None


def _storage(storage: AnyStorage) -> Storage:
    return storage if isinstance(storage, Storage) else Storage(storage)
