"""What a configuration amounts to: the model, the plan, and what of it is already done."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import cached_property

from segcore.config import Config
from segcore.distributed import cluster
from segcore.errors import (
    ListingShrank,
    NothingFound,
    ObjectNotFound,
    UsageError,
)
from segcore.output.committed import NOTHING_COMMITTED, CommittedParts
from segcore.output.compacted_rows import CompactedParts
from segcore.output.counts_cache import CountsCache
from segcore.output.edition import Edition
from segcore.output.edition_changes import EditionChanges, compare_with_older
from segcore.output.latest import Published, read_published
from segcore.output.layout import EditionLayout, OutputLayout
from segcore.output.parts import Parts
from segcore.output.preview import Preview
from segcore.output.registered import refuse_to_overwrite
from segcore.output.report import NOTHING_FOUND
from segcore.output.rereads import read_reread_marks
from segcore.output.run_records import RunRecord, read_plan, read_run_records
from segcore.planning.lost import LostEntries
from segcore.planning.plan import (
    Plan,
    Units,
    make_plan,
    remaining_units,
    summarize_plan,
    without_counts,
)
from segcore.run.job_model import JobModel, open_model
from segcore.run.settle import LastUnlisted, read_last_unlisted
from segcore.sources import open_source
from segcore.sources.base import Source
from segcore.sources.tar import TarSource
from segcore.sources.tar_index import IndexShards
from segcore.storage import Storage, normalize
from segcore.storage.uris import normalize_input
from segcore.text import plural, redact

_MAX_LOST_SHARE = 10  # one in so many entries of the last listing may be gone


@dataclass(frozen=True)
class Job:
    """A run before it starts. Nothing has been written yet.

    Attributes:
        listed: The parts of this edition.
        counts: What they say about themselves, as far as it is known.
        published: What readers of the output find.
        records: The runs of this edition, oldest first.
        last_unlisted: Images without a place in the last plan whose results exist.
        rereads: Unit -> its shard, of shards to read again; see `segcore.output.rereads`.
        source_kind: What the input is, see `segcore.sources.base.Kind`.
        changes: In what the edition differs from the one beside it; None if there is none.
    """

    config: Config
    storage: Storage
    output: OutputLayout
    model: JobModel
    plan: Plan
    parts: Parts
    listed: CommittedParts
    counts: CountsCache
    published: Published
    records: tuple[RunRecord, ...]
    last_unlisted: LastUnlisted | None
    rereads: dict[str, str]
    source_kind: str
    changes: EditionChanges | None = None

    @cached_property
    def planned(self) -> frozenset[str]:
        """Ids of all units."""
        return frozenset(self.plan.units.ids())

    @cached_property
    def committed(self) -> frozenset[str]:
        """Ids of all units that have parts in this edition."""
        return frozenset(self.listed.newest["unit"].to_pylist())

    @cached_property
    def left(self) -> Units:
        """The units that have no part in this edition."""
        return remaining_units(self.plan.units, self.committed)

    @property
    def n_done(self) -> int:
        """How many units have parts in this edition."""
        return len(self.plan.units) - len(self.left)

    @property
    def edition(self) -> Edition:
        """The edition that the run writes into."""
        return self.model.edition

    @property
    def layout(self) -> EditionLayout:
        """Where the files of the edition lie."""
        return self.parts.layout

    @property
    def last_run(self) -> RunRecord | None:
        """The newest run of this edition; None for the first one."""
        return self.records[-1] if self.records else None

    @property
    def sequence(self) -> int:
        """Number of this run in its edition; repeating the same plan keeps its number."""
        if self.last_run is None:
            return 1
        same_plan = self.last_run.run == self.plan.run
        return self.last_run.sequence if same_plan else self.last_run.sequence + 1

    def preview(self, *, remove_unlisted: bool = False) -> Preview:
        """What the run would do. Units that can be carried over count as done."""
        carried = {unit for unit, old in self.plan.carried.items() if old in self.committed}
        counts = summarize_plan(self.plan, self.committed | carried)
        return Preview(
            input=self.plan.input,
            prefix=self.layout.prefix,
            model=self.model.info.name,
            kind=self.source_kind,
            images=counts.images,
            units=counts.units,
            bytes=counts.bytes,
            images_done=counts.done_images,
            bytes_done=counts.done_bytes,
            units_done=counts.done_units,
            units_stale=len(self.committed) - self.n_done,
            entries_lost=self.plan.lost.lost,
            remove_unlisted=remove_unlisted,
            input_notes=self.plan.notes,
            precision_reason=self.model.precision_reason,
            new_beside=self.changes if self.last_run is None else None,
        )


def prepare_job(
    config: Config,
    *,
    overwrite: bool = False,
    index_shards: IndexShards | None = None,
    model: JobModel | None = None,
) -> Job:
    """Check everything that can be wrong and find out what there is to do.

    Args:
        index_shards: Keeps the indexes of large tar shards; None: they are only read.
        model: What the configuration names, if that is known without loading it.

    Raises:
        UsageError: Input or output is missing, one lies in the other's way, the output belongs to
            another input, or the model cannot take images as they are to be decoded.
        SegcoreError: The model, the input or the storage cannot be used.
    """
    storage = Storage(config.storage)
    input_uri, output = locate_input_and_output(config)
    model = model or open_model(config, storage, output, input_uri)
    layout = output.edition(model.edition.name)
    records = open_edition(storage, layout, input_uri, model.records, overwrite=overwrite)
    assert config.input is not None, "checked by locate_input_and_output"
    source = open_source(config.input, config.source, storage)  # a slash at its end matters
    if isinstance(source, TarSource):
        source.index_uri, source.index_shards = output.index, index_shards
    parts = open_parts(storage, layout, model)
    previous = () if overwrite else records
    last_unlisted = read_last_unlisted(parts, previous)
    rereads = {} if overwrite else read_reread_marks(storage, layout)
    cut_anew = frozenset(rereads.values())
    plan = open_plan(config, storage, source, layout, previous, last_unlisted, cut_anew)
    published = read_published(storage, output)
    job = Job(
        config=config,
        storage=storage,
        output=output,
        model=model,
        plan=plan,
        parts=replace(parts, run=plan.run),
        listed=NOTHING_COMMITTED,
        counts=CountsCache(storage, layout),
        published=published,
        records=records,
        last_unlisted=last_unlisted,
        rereads=rereads,
        source_kind=source.kind,
        changes=compare_with_older(storage, output, model.edition, published.edition),
    )
    return _with_committed(job, overwrite)


def load_model_of(job: Job) -> Job:
    """The job with its model loaded, which was only recalled before.

    Raises:
        SegcoreError: It cannot be loaded.
    """
    model = open_model(job.config, job.storage, job.output, job.plan.input)
    if model.edition.name != job.edition.name:
        return prepare_job(job.config)
    return replace(job, model=model)


def refresh_job(job: Job, *, overwrite: bool = False) -> Job:
    """The job as storage has it now, after another run may have been at work.

    Raises:
        SegcoreError: As `prepare_job` does.
    """
    records = tuple(read_run_records(job.storage, job.layout))
    if [record.run for record in records[-1:]] != [record.run for record in job.records[-1:]]:
        return prepare_job(job.config, overwrite=overwrite)  # ours has to follow another plan
    last_unlisted = read_last_unlisted(job.parts, () if overwrite else records)
    job = replace(
        job,
        records=records,
        last_unlisted=last_unlisted,
        counts=CountsCache(job.storage, job.layout),
        published=read_published(job.storage, job.output),
    )
    return _with_committed(job, overwrite)


def locate_input_and_output(config: Config) -> tuple[str, OutputLayout]:
    """URI of the input, and the output.

    Raises:
        UsageError: One of them is missing, or the output lies inside the input.
    """
    if config.input is None or config.output is None:
        missing = "INPUT" if config.input is None else "OUTPUT"
        raise UsageError(
            f"{missing} is missing.",
            hint="segcore segment INPUT OUTPUT, or `input:` and `output:` in the --config file.",
        )
    input_uri, output_uri = normalize_input(config.input), normalize(config.output)
    if output_uri == input_uri or output_uri.startswith(input_uri + "/"):
        raise UsageError(
            f"The output {output_uri} lies inside the input: the next run would read its own "
            "tables.",
            hint="Choose an output that is not inside the input.",
        )
    return input_uri, OutputLayout(output_uri)


def open_edition(
    storage: Storage,
    layout: EditionLayout,
    input_uri: str,
    known_records: tuple[RunRecord, ...] | None = None,
    *,
    overwrite: bool,
) -> tuple[RunRecord, ...]:
    """The runs of the edition, oldest first.

    Args:
        known_records: Them, where they have been read.

    Raises:
        UsageError: The newest was on another input, and its results are not to be overwritten.
    """
    records = known_records
    if records is None:
        records = tuple(read_run_records(storage, layout))
    if overwrite:
        refuse_to_overwrite(storage, layout)
    if not records or records[-1].input == input_uri or overwrite:
        return records
    if _holds_results(storage, layout, records[-1]):
        raise UsageError(
            f"{layout.prefix} holds the results of another input, {records[-1].input}.",
            hint="Choose another output, or --overwrite to delete those results first.",
        )
    return records


def open_plan(
    config: Config,
    storage: Storage,
    source: Source,
    layout: EditionLayout,
    records: Sequence[RunRecord],
    last_unlisted: LastUnlisted | None,
    cut_anew: AbstractSet[str],
) -> Plan:
    """The plan of this run; units that have not changed since the last of `records` are kept.

    Raises:
        NothingFound: The input holds no image, and that is not allowed.
        ListingShrank: Much of what the last plan had is gone, and that is not allowed.
        SegcoreError: The input cannot be listed, or the plan of the last run is damaged.
    """
    previous: Plan | None = None
    for record in records[-1:]:
        if record.input != source.input:
            continue
        try:
            previous = read_plan(storage, layout, record.run)
        except ObjectNotFound:
            previous = None
    unlisted = None if last_unlisted is None else last_unlisted.rows
    plan = make_plan(source, config.plan, previous, unlisted, cut_anew)
    if not plan.units and not config.source.allow_empty:
        raise NothingFound(
            f"{source.input} holds no images. {' '.join(plan.notes)}".strip(),
            "Set source.allow_empty=true if an input may be empty.",
        )
    if not config.source.allow_shrunk_listing:
        check_listing(plan.lost, source.input)
    return plan if config.decode.pages == "first" else without_counts(plan)


def check_listing(lost: LostEntries, input_uri: str) -> None:
    """Refuse a listing that lacks more than a tenth of the last one.

    Raises:
        ListingShrank: It does.
    """
    if lost.lost * _MAX_LOST_SHARE <= lost.total:
        return
    examples = f" (for example {redact(lost.examples[0])})" if lost.examples else ""
    verb = "is" if lost.lost == 1 else "are"
    raise ListingShrank(
        f"{redact(input_uri)} has shrunk: {lost.lost:,} of the "
        f"{plural(lost.total, 'image or shard', 'images or shards')} of the last run {verb} not "
        f"listed any more{examples}. Nothing was changed.",
        "If a folder is not mounted or a prefix is wrong, mend that. If they are gone on purpose, "
        "add --allow-shrunk-listing; their results are kept unless --remove-unlisted is given.",
    )


def open_parts(storage: Storage, layout: EditionLayout, model: JobModel) -> Parts:
    """The parts of the edition; their `run` is set once its plan is known."""
    return Parts(
        storage=storage,
        prefix=layout.prefix,
        edition=layout.name,
        run="",
        licence=model.edition.licence,
        categories=tuple((category.id, category.name) for category in model.info.categories),
    )


def check_paths_reachable(config: Config) -> None:
    """Refuse local paths on a Ray cluster that has other machines; nothing is listed for this.

    Raises:
        UsageError: A path is local, the cluster has other machines, and nothing says that they
            share it.
        ClusterError: The cluster cannot be reached.
    """
    input_uri, output = locate_input_and_output(config)
    cluster.check_paths_shared(config.ray, [("input", input_uri), ("output", output.uri)])


def _with_committed(job: Job, overwrite: bool) -> Job:
    """The job with the units that need not be done: none, if all are to be done again."""
    listed = NOTHING_COMMITTED if overwrite else job.parts.list_committed()
    return replace(job, parts=job.parts.as_listed(listed.generations()), listed=listed)


def _holds_results(storage: Storage, layout: EditionLayout, last_run: RunRecord) -> bool:
    """Whether a run on another input left results that another one would mix with or delete."""
    if last_run.status == NOTHING_FOUND:
        return False
    has_parts = next(storage.list(layout.parts_folder("images")), None) is not None
    return has_parts or bool(CompactedParts(storage, layout).units().generations)
