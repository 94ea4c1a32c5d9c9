"""What a configuration amounts to: the edition, the plan, and what of it is already done."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from segcore.config import Config
from segcore.errors import CheckpointError, NothingFound, ObjectNotFound, UsageError
from segcore.models.base import ModelInfo
from segcore.models.registry import bundled_names, load_model
from segcore.output.edition import Edition, make_edition
from segcore.output.parts import Parts
from segcore.output.report import Preview
from segcore.output.run_records import read_plan, read_run_records
from segcore.planning.plan import Plan, make_plan, summarize_plan
from segcore.sources import open_source
from segcore.storage import Storage, is_remote, join, normalize
from segcore.worker.preprocessing import Preprocessor

MAX_JSON_BYTES = 16 << 20
MAX_WEIGHTS_BYTES = 4 << 30


@dataclass(frozen=True)
class Job:
    """A run before it starts. Nothing was written yet.

    Attributes:
        weights: Bytes of the checkpoint when the model is a file or an object, so that every
            worker has the same; None when its name is enough.
        committed: Ids of all units that have parts in this edition.
        last: The newest record in ``runs/``; {} for the first run.
    """

    config: Config
    storage: Storage
    output: str
    weights: bytes | None
    info: ModelInfo
    edition: Edition
    plan: Plan
    parts: Parts
    committed: frozenset[str]
    last: dict[str, Any]
    kind: str

    @cached_property
    def planned(self) -> dict[str, int | None]:
        """Ids of all units, and how many images each has, where that is known."""
        table = self.plan.units.table
        ids, images = table["unit"].to_pylist(), table["n_images"].to_pylist()
        return dict(zip(ids, images, strict=True))

    @property
    def prefix(self) -> str:
        """``<output>/<edition>``."""
        return self.parts.prefix

    @property
    def sequence(self) -> int:
        """Number of this run in its edition; the same plan again keeps its number."""
        number = int(self.last.get("sequence", 0))
        return number if self.last.get("run") == self.plan.run else number + 1

    def uri(self, *names: str) -> str:
        """A URI below the edition."""
        return join(self.prefix, *names)

    def preview(self) -> Preview:
        """What the run would do. What can be carried over counts as done: nothing is segmented."""
        moved = {unit for unit, old in self.plan.carried.items() if old in self.committed}
        counts = summarize_plan(self.plan, self.committed | moved)
        return Preview(
            input=self.plan.input,
            prefix=self.prefix,
            model=self.info.name,
            kind=self.kind,
            images=counts.images,
            units=counts.units,
            bytes=counts.bytes,
            images_done=counts.done_images,
            units_done=counts.done_units,
            units_stale=len(self.committed - self.planned.keys()),
        )


def prepare_job(config: Config, *, overwrite: bool = False) -> Job:
    """Check everything that can be wrong and find out what there is to do.

    Raises:
        UsageError: Input or output missing or in each other's way, or the output belongs to
            another input, or the model cannot take images as they are to be decoded.
        SegcoreError: The model, the input or the storage cannot be used.
    """
    if config.input is None or config.output is None:
        missing = "INPUT" if config.input is None else "OUTPUT"
        raise UsageError(
            f"{missing} is missing.",
            hint="segcore segment INPUT OUTPUT, or `input:` and `output:` in the --config file.",
        )
    storage = Storage(config.storage)
    source_uri, output = normalize(config.input), normalize(config.output)
    if output == source_uri or output.startswith(source_uri + "/"):
        raise UsageError(
            f"The output {output} lies inside the input: the next run would read its own tables.",
            hint="Choose an output beside the input.",
        )
    weights = _read_weights(config.model.name, storage)
    probe_options = config.model.options().model_copy(update={"device": "cpu"})
    model = load_model(config.model.name, probe_options, weights)
    Preprocessor(model.preprocess, config.decode)  # may not go together
    info = model.info
    del model
    edition = make_edition(info, config.decode)
    prefix = join(output, edition.name)
    last = _last_run(storage, prefix)
    if last and last["input"] != source_uri and not overwrite:
        raise UsageError(
            f"{prefix} holds the results of another input, {last['input']}.",
            hint="Choose another output, or --overwrite to delete those results first.",
        )
    source = open_source(source_uri, config.source, storage)
    plan = make_plan(source, config.plan, None if overwrite else _plan_of(storage, prefix, last))
    if not plan.units and not config.source.allow_empty:
        raise NothingFound(
            f"{source_uri} holds no images. {' '.join(plan.notes)}".strip(),
            "Set source.allow_empty=true if an input may be empty.",
        )
    parts = Parts(
        storage=storage,
        prefix=prefix,
        edition=edition.name,
        run=plan.run,
        licence=edition.licence,
        categories=tuple((category.id, category.name) for category in info.categories),
    )
    committed = frozenset() if overwrite else frozenset(parts.committed())
    return Job(
        config=config,
        storage=storage,
        output=output,
        weights=weights,
        info=info,
        edition=edition,
        plan=plan,
        parts=parts,
        committed=committed,
        last=last,
        kind=source.kind,
    )


def refresh_job(job: Job, *, overwrite: bool = False) -> Job:
    """The job as storage has it now, after another run may have been at work.

    Raises:
        SegcoreError: As `prepare_job` does.
    """
    last = _last_run(job.storage, job.prefix)
    if last.get("run") != job.last.get("run"):  # another plan, which ours has to follow
        return prepare_job(job.config, overwrite=overwrite)
    committed = frozenset() if overwrite else frozenset(job.parts.committed())
    return replace(job, last=last, committed=committed)


def check_paths_reachable(job: Job) -> None:
    """Refuse local paths on a Ray cluster that may have other machines.

    Raises:
        UsageError: A local path, a remote cluster, and no word that the path is shared.
    """
    options = job.config.ray
    if options.address in (None, "local") or options.shared_paths:
        return
    for what, uri in (("input", job.plan.input), ("output", job.output)):
        if not is_remote(uri):
            raise UsageError(
                f"The {what} {uri} is a local path, but workers may run on other machines of "
                f"the cluster at {options.address}.",
                hint="Use s3:// URIs, or --set ray.shared_paths=true when every machine sees "
                "the same files there.",
            )


def _read_weights(name: str, storage: Storage) -> bytes | None:
    """The checkpoint's bytes when `name` is a file or an object; see `Job.weights`."""
    if is_remote(name) and not name.startswith(("http://", "https://")):
        try:
            return storage.read(name, MAX_WEIGHTS_BYTES)
        except ObjectNotFound:
            raise CheckpointError(f"There is no model at {name}.") from None
    if os.path.isfile(name) and name not in bundled_names():
        return storage.read(name, MAX_WEIGHTS_BYTES)
    return None


def _last_run(storage: Storage, prefix: str) -> dict[str, Any]:
    """What the newest record in ``runs/`` says; {} when there is none."""
    found = read_run_records(storage, prefix)
    return found[-1].values if found else {}


def _plan_of(storage: Storage, prefix: str, last: dict[str, Any]) -> Plan | None:
    """The plan of the last run, so that what is unchanged keeps its units."""
    if not last:
        return None
    try:
        return read_plan(storage, prefix, last["run"])
    except ObjectNotFound:
        return None
