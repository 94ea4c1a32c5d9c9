"""Where the files of an output lie. No other module spells these paths.

<output>/latest.json                         the edition and run that were published last
<output>/indexes/<key>.parquet               what was found in a large tar shard: see `tar_index`
<output>/<edition>/edition.json              everything that determines the results
<output>/<edition>/plans/<run>.parquet       the units of a run
<output>/<edition>/runs/<run>.json           the record of a run: that of its newest execution
<output>/<edition>/runs/history/<id>.json    how each execution ended; never overwritten
<output>/<edition>/runs/history/<id>/*.log   the log of an execution, in pieces: see `execution_log`
<output>/<edition>/images/<unit>.parquet     one row per input image; commits the unit
<output>/<edition>/instances/<unit>.parquet  one row per instance
<output>/<edition>/unlisted/<run>.parquet    images that the listing of a run lacked: see `unlisted`
<output>/<edition>/reread/<unit>.json        a shard to read again: see `rereads`
<output>/<edition>/counts/<hash>.parquet     what parts say: a cache, see `counts_cache`
<output>/<edition>/lease/                    which run may write into the edition
<output>/<edition>/compacted/current.json    which generation of compacted files is read
<output>/<edition>/compacted/<generation>/   parts of many units in few files: see `compaction`
<output>/<edition>/rankings/<name>.parquet   which images to look at first: see `rankings`
<output>/<edition>/registered/<name>.json    files that a table outside of segcore refers to
<output>/<edition>/registered/<table>/       rows for such a table, copied out of compacted files
<output>/lease/                              who publishes, prunes or compacts
<output>/delta/<table>/                      a Delta table of what is published
<output>/reprocess/calls/<id>.json           what each call of `segcore reprocess` came to
<output>/reprocess/decisions/<key>.json      whether an edition may be published in place of another
<output>/reprocess/models/<edition>.json     the options with which an edition was made
<output>/reprocess/lease/                    which call of `segcore reprocess` is at work
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

from segcore.storage.uris import basename, join, parent

Table = Literal["images", "instances"]

PART_NAME = r"(?P<unit>[0-9a-f]{8,64})(?:-g(?P<generation>[1-9][0-9]{0,5}))?\.parquet"
_PART_NAME = re.compile(PART_NAME)


class PartName(NamedTuple):
    """Which part a file is. Of several generations of a unit, the highest is the one to read."""

    unit: str
    generation: int = 0


@dataclass(frozen=True)
class EditionLayout:
    """The files of one edition.

    Attributes:
        prefix: URI of the edition's folder, ``<output>/<edition>``.
    """

    prefix: str

    @property
    def name(self) -> str:
        """Name of the edition."""
        return basename(self.prefix)

    @property
    def output(self) -> OutputLayout:
        """The output that holds this edition."""
        return OutputLayout(parent(self.prefix))

    @property
    def edition_json(self) -> str:
        """The document of the edition."""
        return join(self.prefix, "edition.json")

    @property
    def plans_folder(self) -> str:
        """Holds the plan of each run."""
        return join(self.prefix, "plans")

    def plan(self, run: str) -> str:
        """The plan of a run."""
        return join(self.plans_folder, f"{run}.parquet")

    @property
    def runs_folder(self) -> str:
        """Holds the record of each run."""
        return join(self.prefix, "runs")

    def run_record(self, run: str) -> str:
        """The record of a run."""
        return join(self.runs_folder, f"{run}.json")

    @property
    def history_folder(self) -> str:
        """Holds a record of each execution of a run."""
        return join(self.runs_folder, "history")

    def execution(self, execution: str) -> str:
        """The record of an execution, by its id."""
        return join(self.history_folder, f"{execution}.json")

    def log_folder(self, execution: str) -> str:
        """Holds the log of an execution, in pieces."""
        return join(self.history_folder, execution)

    def log_piece(self, execution: str, number: int, form: str) -> str:
        """A piece of the log of an execution, from 0; the form is ``text`` or ``json``."""
        suffix = "jsonl" if form == "json" else "log"
        return join(self.log_folder(execution), f"{number:05d}.{suffix}")

    def parts_folder(self, table: Table) -> str:
        """Holds the parts of one table."""
        return join(self.prefix, table)

    def part(self, table: Table, unit: str, generation: int = 0) -> str:
        """The part of a unit in one table; generation 1 is the first one that was made again."""
        suffix = f"-g{generation}" if generation else ""
        return join(self.parts_folder(table), f"{unit}{suffix}.parquet")

    def parts_pattern(self, table: Table) -> str:
        """A glob pattern for all parts of one table, as DuckDB and others take it."""
        return join(self.parts_folder(table), "*.parquet")

    @property
    def unlisted_folder(self) -> str:
        """Holds, for each run, the ids of the images that its listing lacked."""
        return join(self.prefix, "unlisted")

    def unlisted(self, run: str) -> str:
        """The ids of the images whose results are kept though the listing of a run lacked them."""
        return join(self.unlisted_folder, f"{run}.parquet")

    @property
    def reread_folder(self) -> str:
        """Holds a mark for each unit whose shard is to be read again."""
        return join(self.prefix, "reread")

    def reread_mark(self, unit: str) -> str:
        """Says that the shard of a unit is to be read again; see `segcore.output.rereads`."""
        return join(self.reread_folder, f"{unit}.json")

    @property
    def counts_folder(self) -> str:
        """Holds what parts say about themselves, so that not each of them has to be opened."""
        return join(self.prefix, "counts")

    def counts_file(self, name: str) -> str:
        """A file of this cache; see `segcore.output.counts_cache`."""
        return join(self.counts_folder, f"{name}.parquet")

    @property
    def lease_folder(self) -> str:
        """Holds the lease of the edition."""
        return join(self.prefix, "lease")

    @property
    def compacted_folder(self) -> str:
        """Holds the generations of compacted files, and the pointer to the current one."""
        return join(self.prefix, "compacted")

    @property
    def compacted_pointer(self) -> str:
        """Names the current generation of compacted files."""
        return join(self.compacted_folder, "current.json")

    def compacted(self, generation: str) -> CompactedLayout:
        """One generation of compacted files."""
        return CompactedLayout(join(self.compacted_folder, generation))

    @property
    def registered_folder(self) -> str:
        """Holds lists of the files that tables outside of segcore refer to."""
        return join(self.prefix, "registered")

    @property
    def rankings_folder(self) -> str:
        """Holds rankings of the images."""
        return join(self.prefix, "rankings")

    def ranking(self, name: str) -> str:
        """A ranking of the images; see `segcore.output.rankings`."""
        return join(self.rankings_folder, f"{name}.parquet")

    def registered(self, name: str) -> str:
        """The files that one table refers to; see `segcore.output.registered`."""
        return join(self.registered_folder, f"{name}.json")

    def table_copy(self, table: Table, name: str) -> str:
        """Rows for a table, copied from a compacted file that holds others, too."""
        return join(self.registered_folder, table, f"{name}.parquet")


@dataclass(frozen=True)
class CompactedLayout:
    """The files of one generation of compacted files.

    Attributes:
        prefix: URI of its folder, ``<output>/<edition>/compacted/<generation>``.
    """

    prefix: str

    @property
    def name(self) -> str:
        """Name of the generation."""
        return basename(self.prefix)

    @property
    def begun_json(self) -> str:
        """Written first: from then on, whoever withdraws a unit leaves a mark here, too."""
        return join(self.prefix, "begun.json")

    @property
    def work(self) -> str:
        """The units to copy, in order; written before the first of the files."""
        return join(self.prefix, "work.parquet")

    @property
    def units(self) -> str:
        """The units that are covered, and where their rows lie; written last."""
        return join(self.prefix, "units.parquet")

    def file(self, table: Table, number: int) -> str:
        """The file of a number, from 0, in one table; the same units are in both tables."""
        return join(self.prefix, table, f"{number:05d}.parquet")

    def files_pattern(self, table: Table) -> str:
        """A glob pattern for all files of one table, as DuckDB and others take it."""
        return join(self.prefix, table, "*.parquet")

    def piece(self, number: int) -> str:
        """The units of the files of a number; written after these, so that work can be resumed."""
        return join(self.prefix, "pieces", f"{number:05d}.parquet")

    @property
    def withdrawn_folder(self) -> str:
        """Holds lists of units that are not to be read here any more."""
        return join(self.prefix, "withdrawn")

    def withdrawn(self, name: str) -> str:
        """A list of units that are not to be read here any more."""
        return join(self.withdrawn_folder, f"{name}.parquet")


@dataclass(frozen=True)
class OutputLayout:
    """The files of an output.

    Attributes:
        uri: URI of the output's folder, in canonical form.
    """

    uri: str

    @property
    def latest_json(self) -> str:
        """Points to what was published last."""
        return join(self.uri, "latest.json")

    @property
    def lease_folder(self) -> str:
        """Holds the lease of whoever publishes, prunes or compacts."""
        return join(self.uri, "lease")

    @property
    def delta_folder(self) -> str:
        """Holds the two Delta tables."""
        return join(self.uri, "delta")

    def delta_table(self, table: Table) -> str:
        """The folder of a Delta table; see `segcore.lakehouse.delta`."""
        return join(self.delta_folder, table)

    def delta_log(self, table: Table) -> str:
        """Holds the commits of a Delta table."""
        return join(self.delta_table(table), "_delta_log")

    def index(self, key: str) -> str:
        """The index of a large tar shard; see `segcore.sources.tar_index`."""
        return join(self.uri, "indexes", f"{key}.parquet")

    @property
    def reprocess_calls(self) -> str:
        """Holds the record of each call of `segcore reprocess`."""
        return join(self.uri, "reprocess", "calls")

    def reprocess_call(self, call: str) -> str:
        """The record of a call, by its id."""
        return join(self.reprocess_calls, f"{call}.json")

    def reprocess_decision(self, key: str) -> str:
        """Whether an edition may be published; see `segcore.output.reprocess_records`."""
        return join(self.uri, "reprocess", "decisions", f"{key}.json")

    def reprocess_model(self, edition: str) -> str:
        """The options of model and decoding with which an edition was made."""
        return join(self.uri, "reprocess", "models", f"{edition}.json")

    @property
    def reprocess_lease(self) -> str:
        """Holds the lease of the call of `segcore reprocess` that is at work."""
        return join(self.uri, "reprocess", "lease")

    def edition(self, name: str) -> EditionLayout:
        """The edition of this name."""
        return EditionLayout(join(self.uri, name))


def part_of_file(uri: str) -> PartName | None:
    """Inverse of `EditionLayout.part`; None when the object's name is not that of a part."""
    match = _PART_NAME.fullmatch(basename(uri))
    return PartName(match["unit"], int(match["generation"] or 0)) if match else None
