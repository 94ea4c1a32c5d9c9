"""Exchange masks with annotation tools and training: files for them, and what they give back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from segcore.api.storage import AnyStorage, open_storage
from segcore.config import load_config
from segcore.config.exports import ExportConfig
from segcore.corrections import import_corrections as corrections
from segcore.corrections.import_corrections import ImportReport
from segcore.errors import UsageError
from segcore.exports import export as export_job
from segcore.exports.summary import ExportSummary
from segcore.output import results


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
        open_storage(storage), output, edition, include_unlisted=include_unlisted
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
        open_storage(storage),
        source,
        truth,
        dest=dest,
        form=format,
        file_names="export" if file_names == "export" else "archive",
        overwrite=overwrite,
    )
