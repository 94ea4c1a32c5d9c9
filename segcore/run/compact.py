"""Compaction: the parts of many units become a few large files, and readers switch to them at once.

In this order: the new generation is announced; then what is to be copied is looked up and written
down; then the files are written, the list of their units, and the pointer. Whatever dies in between
leaves what readers see as it was, and the same command goes on behind the last file that is written
as a whole. A job that segments at the same time is in nobody's way: parts that it commits stay
beside the compacted files, parts that it replaces win over these, and units that it withdraws are
marked in each generation that has been announced.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from segcore.errors import ObjectNotFound, StorageError, UsageError
from segcore.lease.hold import heartbeat_options, hold_lease
from segcore.output.compacted_rows import CompactedParts
from segcore.output.compaction import (
    CompactedPointer,
    CoveredUnit,
    covered_units,
    encode_covered,
    generation_folders,
    read_covered,
    read_pointer,
    write_pointer,
)
from segcore.output.documents import read_document
from segcore.output.editions import choose_edition
from segcore.output.layout import CompactedLayout, EditionLayout
from segcore.output.schema import SCHEMA_VERSION
from segcore.run.compact_plan import CompactOptions, FoundEdition, look_up, plan_work
from segcore.run.compact_report import CompactReport
from segcore.run.compacted_files import FilesWriter, UnitReader
from segcore.run.superseded import Superseded, find_superseded
from segcore.storage import ObjectInfo, Storage
from segcore.storage.uris import parent

Notify = Callable[[str], None]


def compact(
    storage: Storage,
    output: str,
    edition: str | None = None,
    options: CompactOptions = CompactOptions(),
    *,
    dry_run: bool = False,
    notify: Notify = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> CompactReport:
    """Compact an edition, and delete what earlier compactions left behind long enough ago.

    Args:
        output: What a run was given as output, or the prefix of one edition in it.
        edition: Name of the edition; default the published one, else the only one.
        dry_run: Only say what is to be done.
        progress: Called with the units copied and the units to copy.

    Raises:
        UsageError: There is no such edition.
        NotSettled: A run has to end first, see `segcore segment`.
        LeaseHeld: Another process publishes, prunes or compacts in this output.
        StorageError: A part is damaged, or storage fails; readers see what they saw before.
    """
    choice = choose_edition(storage, output, edition)
    layout = choice.layout
    empty = CompactReport(layout.name, layout.prefix, edition_notes=tuple(choice.sentences()))
    if dry_run:
        found = look_up(storage, layout)
        to_do = found.needs_compaction(options)
        superseded = find_superseded(storage, layout, found.pointer, found.units, -math.inf)
        return replace(_describe(empty, found, superseded), dry_run=True, nothing_to_do=not to_do)
    folder = layout.output.lease_folder
    heartbeats = Storage(heartbeat_options(storage.options, options.lease_ttl_s))
    with hold_lease(
        storage, folder, options.lease_ttl_s, notify, heartbeats, what="output"
    ) as lease:
        deleted = _delete_superseded(storage, layout, options.grace_s, lease.check)
        found = look_up(storage, layout)
        before, to_do = found, found.needs_compaction(options)
        if to_do:
            is_resumed = _write_generation(found, options, lease.check, progress)
            if is_resumed:
                found = look_up(storage, layout)
                if found.needs_compaction(options):  # units have come since it was begun
                    _write_generation(found, options, lease.check, progress)
            deleted += _delete_superseded(storage, layout, options.grace_s, lease.check)
            found = look_up(storage, layout)
        deadline = _deadline(storage, layout, options.grace_s)
        waiting = find_superseded(storage, layout, found.pointer, found.units, deadline)
        lease.check()
    return replace(
        _describe(empty, found, waiting),
        units_added=len(before.added) if to_do else 0,
        units_hidden=len(before.hidden) if to_do else 0,
        files_deleted=len(deleted),
        bytes_deleted=sum(info.size for info in deleted),
        nothing_to_do=not to_do,
    )


def _describe(report: CompactReport, found: FoundEdition, superseded: Superseded) -> CompactReport:
    """The report with the state that is found."""
    waiting = (*superseded.old, *superseded.young)
    report = replace(
        report,
        units_added=len(found.added),
        units_hidden=len(found.hidden),
        units_outside=len(found.added),
        files_waiting=len(waiting),
        bytes_waiting=sum(info.size for info in waiting),
        files_pinned=superseded.pinned,
    )
    files = found.units.layout
    if files is None:
        return report
    images, instances = files.files_pattern("images"), files.files_pattern("instances")
    folders = [parent(pattern) for pattern in (images, instances)]
    sizes = [info.size for folder in folders for info in found.storage.list(folder)]
    return replace(
        report,
        generation=files.name,
        units=len(found.units.generations.keys() - found.added),
        files=len(sizes),
        bytes=sum(sizes),
        images=images,
        instances=instances,
    )


def _write_generation(
    found: FoundEdition,
    options: CompactOptions,
    check_lease: Callable[[], None],
    progress: Callable[[int, int], None],
) -> bool:
    """Write all files of a new generation, and let readers take it.

    Returns:
        Whether it had been begun before, so that it may lack units.
    """
    storage, layout = found.storage, found.layout
    base = found.pointer.generation if found.pointer else ""
    files = _unfinished_generation(found, base, options)
    is_resumed = files is not None
    if files is None:
        files = _new_generation(storage, layout, base, options)
        found = look_up(storage, layout)  # what was withdrawn before the announcement is gone now
        work = plan_work(found)
        storage.write(files.work, encode_covered(work))
    else:
        work = list(covered_units(read_covered(storage, files.work)))
    document = read_document(storage, layout.edition_json)
    writer = FilesWriter(
        storage=storage,
        files=files,
        metadata={
            "segcore.schema_version": str(SCHEMA_VERSION),
            "segcore.edition": layout.name,
            "segcore.run": found.run,
            "segcore.licence": str(document.get("model", {}).get("licence", "")),
            "segcore.compacted": files.name,
            "segcore.sort": options.sort,
        },
        sort=options.sort,
        file_bytes=options.file_bytes,
        check_lease=check_lease,
    )
    reader = UnitReader(storage, layout, found.compacted)
    covered = writer.write(work, reader, lambda done: progress(done, len(work)))
    check_lease()
    storage.write(files.units, encode_covered(covered))
    previous = (base, *(found.pointer.previous if found.pointer else ()))
    existing = {folder.name for folder in generation_folders(storage, layout)}
    kept = tuple(name for name in previous if name in existing)
    check_lease()
    write_pointer(storage, layout, CompactedPointer(files.name, kept, options.sort))
    return is_resumed


def _begun_document(base: str, options: CompactOptions) -> dict[str, Any]:
    return {"base": base, "sort": options.sort, "file_bytes": options.file_bytes}


def _unfinished_generation(
    found: FoundEdition, base: str, options: CompactOptions
) -> CompactedLayout | None:
    """The newest generation, if it was begun with the same options on the same base.

    And only if all that it is to hold is still read: rows of units that were replaced or withdrawn
    since would be in its files, and perhaps marked nowhere as such.
    """
    storage = found.storage
    folders = [files for files in generation_folders(storage, found.layout) if files.name > base]
    for files in folders[-1:]:
        try:
            if read_document(storage, files.begun_json) != _begun_document(base, options):
                return None
            work = read_covered(storage, files.work)
        except (ObjectNotFound, UsageError):
            return None
        if _versions(covered_units(work)) <= _versions(plan_work(found)):
            return files
    return None


def _versions(units: Iterable[CoveredUnit]) -> set[tuple[str, int, str]]:
    """What is to be copied of each unit."""
    return {(unit.unit, unit.generation, unit.etag) for unit in units}


def _new_generation(
    storage: Storage, layout: EditionLayout, base: str, options: CompactOptions
) -> CompactedLayout:
    """Announce a generation of the next number."""
    names = [base or "0", *(files.name for files in generation_folders(storage, layout))]
    number = max(int(name.partition("-")[0]) for name in names) + 1
    files = layout.compacted(f"{number:06d}-{secrets.token_hex(4)}")
    document = _begun_document(base, options)
    storage.write(files.begun_json, (json.dumps(document) + "\n").encode())
    return files


def _delete_superseded(
    storage: Storage, layout: EditionLayout, grace_s: float, check_lease: Callable[[], None]
) -> list[ObjectInfo]:
    """Delete what has not been needed for the grace period; returns what that was."""
    units = CompactedParts(storage, layout).units()
    pointer = read_pointer(storage, layout)
    deadline = _deadline(storage, layout, grace_s)
    superseded = find_superseded(storage, layout, pointer, units, deadline)
    check_lease()
    storage.delete_all(info.uri for info in superseded.old)
    return list(superseded.old)


def _deadline(storage: Storage, layout: EditionLayout, grace_s: float) -> float:
    """The grace period before now, by the clock of the storage.

    Now is when the lease was written last, which is at most a heartbeat ago.
    """
    if not grace_s:
        return math.inf
    folder = layout.output.lease_folder
    times = [time for _, time in storage.list_with_times(folder)]
    if not times:
        raise StorageError(f"The lease in {folder} is gone.")
    return max(times) - grace_s
