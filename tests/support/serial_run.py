"""A run without Ray for tests about what comes after it: the same parts, one process."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from segcore.config import Config
from segcore.errors import ImageError
from segcore.images import decode_image
from segcore.models.base import Model
from segcore.models.registry import load_model
from segcore.output.edition import make_edition
from segcore.output.parts import ImageResult, Parts
from segcore.output.report import SUCCESS, RunReport
from segcore.planning.plan import make_plan
from segcore.planning.plan_files import encode_plan
from segcore.sources import Sample, open_source, read_unit
from segcore.storage import Storage, join, normalize


def segment(config: Config) -> RunReport:
    """Do what `segcore.run.segment.segment` does, slowly and simply, and publish it."""
    storage = Storage(config.storage)
    model = load_model(config.model.name, config.model.options())
    edition = make_edition(model.info, config.decode)
    assert config.input is not None
    assert config.output is not None
    plan = make_plan(open_source(config.input, config.source, storage), config.plan)
    output = normalize(config.output)
    prefix = join(output, edition.name)
    categories = tuple((c.id, c.name) for c in model.info.categories)
    parts = Parts(storage, prefix, edition.name, plan.run, edition.licence, categories)
    counts: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    for unit in plan.units:
        results = [
            _result(sample, model, config) for sample in read_unit(unit, storage, config.source)
        ]
        parts.commit(unit, results)
        counts["images"] += len(results)
        counts["instances"] += sum(len(r.instances or ()) for r in results)
        failures.update(str(r.error.code) for r in results if r.error)
    storage.write(join(prefix, "edition.json"), edition.to_json())
    storage.write(join(prefix, "plans", f"{plan.run}.parquet"), encode_plan(plan))
    storage.write(join(output, "latest.json"), f'{{"edition": "{edition.name}"}}'.encode())
    failed = sum(failures.values())
    return RunReport(
        status=SUCCESS,
        run=plan.run,
        edition=edition.name,
        input=plan.input,
        output=output,
        prefix=prefix,
        model=model.info.name,
        sequence=1,
        max_failed_fraction=config.run.max_failed_fraction,
        images=counts["images"],
        ok=counts["images"] - failed,
        failed=failed,
        instances=counts["instances"],
        failures=dict(failures),
        units=len(plan.units),
    )


def _result(sample: Sample, model: Model, config: Config) -> ImageResult:
    row = ImageResult(sample.image_id, sample.uri, sample.etag)
    if sample.data is None:
        return replace(row, error=sample.error)
    try:
        pixels = decode_image(sample.data, config.decode)
    except ImageError as error:
        return replace(row, error=error)
    prepared = [model.preprocess(pixels)]
    found = model.postprocess(model.forward(prepared), prepared)[0]
    return replace(row, width=found.width, height=found.height, instances=found)
