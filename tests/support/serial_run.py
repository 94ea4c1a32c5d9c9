"""A run without Ray for tests about what comes after it: the same parts, one process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace

import pytest

from segcore.config import Config
from segcore.errors import ImageError
from segcore.images import decode_with_warnings
from segcore.models.base import Model
from segcore.models.registry import load_model
from segcore.output.edition import make_edition
from segcore.output.latest import publish
from segcore.output.layout import OutputLayout
from segcore.output.parts import Parts
from segcore.output.report import SUCCESS, RunReport
from segcore.output.tables import ImageResult
from segcore.output.unlisted import UNLISTED_SCHEMA, write_unlisted
from segcore.planning.plan import make_plan, without_counts
from segcore.planning.plan_files import encode_plan
from segcore.run.job import Job
from segcore.run.passes import Notify, Pass, RunState
from segcore.sources import Sample, open_source, read_unit
from segcore.storage import Storage, normalize
from segcore.worker.pages import image_bytes, split_pages
from segcore.worker.unit_results import name_row

RunPasses = Callable[[Job, Sequence[Pass], RunState, Notify], None]


def segment(config: Config) -> RunReport:
    """Do what `segcore.run.segment.segment` does, slowly and simply, and publish it."""
    storage = Storage(config.storage)
    model = load_model(config.model.name, config.model.options())
    edition = make_edition(model.info, config.decode)
    assert config.input is not None
    assert config.output is not None
    plan = make_plan(open_source(config.input, config.source, storage), config.plan)
    if config.decode.pages == "all":
        plan = without_counts(plan)
    output = OutputLayout(normalize(config.output))
    layout = output.edition(edition.name)
    categories = tuple((c.id, c.name) for c in model.info.categories)
    parts = Parts(storage, layout.prefix, edition.name, plan.run, edition.licence, categories)
    storage.write(layout.edition_json, edition.to_json())
    storage.write(layout.plan(plan.run), encode_plan(plan))
    results: list[ImageResult] = []
    warnings: Counter[str] = Counter()
    for unit in plan.units:
        samples = split_pages(read_unit(unit, storage, config.source), config.decode)
        unit_results = [_segment_sample(sample, model, config) for sample in samples]
        warnings.update(parts.commit(unit, unit_results).warnings)
        results += unit_results
    failures = Counter(str(result.error.code) for result in results if result.error)
    report = RunReport(
        status=SUCCESS,
        run=plan.run,
        edition=edition.name,
        input=plan.input,
        output=output.uri,
        prefix=layout.prefix,
        model=model.info.name,
        sequence=1,
        max_failed_fraction=config.run.max_failed_fraction,
        images=len(results),
        ok=len(results) - failures.total(),
        failed=failures.total(),
        instances=sum(len(result.instances or ()) for result in results),
        failures=dict(failures),
        warnings=dict(sorted(warnings.items())),
        units=len(plan.units),
    )
    write_unlisted(storage, layout, plan.run, UNLISTED_SCHEMA.empty_table())
    write_record(report, storage)
    publish(storage, layout, plan.run, report.status)
    return report


def run_passes(job: Job, passes: Sequence[Pass], state: RunState, notify: Notify) -> None:
    """Do what `segcore.run.passes.run_passes` does, without Ray."""
    model = load_model(job.config.model.name, job.config.model.options())
    for current in passes:
        for unit in current.units:
            notes: Counter[str] = Counter()
            samples = read_unit(unit, job.storage, job.config.source, notes)
            results = [_segment_sample(sample, model, job.config) for sample in samples]
            job.parts.commit(unit, results, notes)
            state.done.add(unit.unit)


def without_ray(patch: pytest.MonkeyPatch, run: RunPasses = run_passes) -> None:
    """Let whole runs of `segcore.run.segment` work in this process; `run` does the units."""
    patch.setattr("segcore.run.segment.run_passes", run)
    patch.setattr("segcore.run.segment.connect_workers", lambda *args: nullcontext())


def write_record(report: RunReport, storage: Storage | None = None) -> str:
    """Write the record of a run where the run itself would; returns its URI."""
    uri = OutputLayout(report.output).edition(report.edition).run_record(report.run)
    (storage or Storage()).write(uri, report.to_json())
    return uri


def _segment_sample(sample: Sample, model: Model, config: Config) -> ImageResult:
    row = name_row(sample)
    try:
        image = decode_with_warnings(image_bytes(sample), config.decode)
    except ImageError as error:
        return replace(row, error=error)
    prepared = [model.preprocess(image.pixels)]
    instances = model.postprocess(model.forward(prepared), prepared)[0]
    return replace(
        row,
        width=instances.width,
        height=instances.height,
        instances=instances,
        warnings=(*row.warnings, *image.warnings),
    )
