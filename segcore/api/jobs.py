"""Run jobs: segment an archive, prelabel one for an annotation tool, keep an output up to date."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from segcore.config import Config, load_config
from segcore.config.exports import PrelabelConfig
from segcore.config.reprocess import ReprocessConfig
from segcore.output.report import RunReport
from segcore.run import prelabel as prelabel_job
from segcore.run import reprocess as reprocess_job
from segcore.run import segment as job
from segcore.run.prelabel import PrelabelReport
from segcore.run.reprocess_report import ReprocessReport


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
