"""Whether an output is what segcore promises: every part, every row, every mask, and the sums.

Works unit by unit, so that memory does not grow with the archive except by 8 bytes per image
(to find an image that is in two parts) and by the names of units.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice

import pyarrow as pa

from segcore.errors import SegcoreError
from segcore.inspection.compacted_checks import check_compacted_files
from segcore.inspection.document_checks import (
    check_edition,
    check_history,
    check_latest,
    check_newest_run,
    compare_with_record,
)
from segcore.inspection.duplicates import ImageIdHashes, find_duplicates
from segcore.inspection.input_checks import find_unread_images
from segcore.inspection.part_listings import (
    PartListing,
    compare_listings,
    list_parts,
    without_kept_for_tables,
)
from segcore.inspection.problems import Problem, Verification
from segcore.inspection.stored_plan import StoredPlan, open_stored_plan
from segcore.inspection.unit_checks import CommittedUnit, UnitCheck, UnitChecker, hash_names
from segcore.output.compacted_rows import CompactedParts
from segcore.output.editions import choose_edition
from segcore.output.layout import EditionLayout
from segcore.output.run_records import RunRecord
from segcore.storage import Storage

_UNITS_AT_ONCE = 16  # that are handed to a process together

Progress = Callable[[int, int, int], None]  # units checked, units in all, instances so far
Batches = Iterable[Sequence[CommittedUnit]]
CheckBatches = Callable[[UnitChecker, Batches], Iterator[list[UnitCheck]]]


def check_in_threads(threads: int) -> CheckBatches:
    """Checks units in this process, this many at once; the heavy parts hold no lock."""

    def check(checker: UnitChecker, batches: Batches) -> Iterator[list[UnitCheck]]:
        pending: deque[Future[UnitCheck]] = deque()
        with ThreadPoolExecutor(threads, "segcore-verify") as pool:
            for unit in (unit for batch in batches for unit in batch):
                pending.append(pool.submit(checker.check, unit))
                if len(pending) >= 2 * threads:
                    yield [pending.popleft().result()]
            while pending:
                yield [pending.popleft().result()]

    return check


def verify_output(
    storage: Storage,
    output: str,
    edition: str | None = None,
    *,
    threads: int = 8,
    include_unlisted: bool = False,
    check_input: bool = False,
    check_batches: CheckBatches | None = None,
    progress: Progress = lambda done, total, instances: None,
) -> Verification:
    """Check an edition from storage alone.

    Args:
        output: What the run was given as output, or the prefix of one edition in it.
        edition: Name of the edition; default the one with the newest run record, else the one
            that `latest.json` points to.
        threads: Units checked at once; each holds the two parts of one unit in memory.
        check_input: Also look for images that an older reader left unread in tar shards, and mark
            these shards, so that the next run does them again.
        include_unlisted: Also read the parts of images that the listing of the newest run lacked.
        check_batches: How the units are checked; default in this process, in `threads`.

    Raises:
        UsageError: There is no output of segcore.
        SegcoreError: The storage cannot be listed.
    """
    started = time.monotonic()
    choice = choose_edition(storage, output, edition, newest=True)
    layout = choice.layout
    result = Verification(layout.name, layout.prefix, edition_notes=choice.sentences())
    facts = check_edition(storage, layout, result)
    record = check_newest_run(storage, layout, result)
    result.add(check_history(storage, layout))
    plan = _open_plan(storage, layout, record, result)
    parts = list_parts(storage, layout, record, result)
    parts = without_kept_for_tables(storage, layout, plan, parts, result)
    compare_listings(layout, plan, parts, result)
    compacted = parts.reader or CompactedParts(storage, layout)
    checker = UnitChecker(storage, layout, facts, compacted)
    units = set(parts.generations)
    if not include_unlisted:
        units -= parts.unlisted.keys()
    from_list = {unit: ids for unit, ids in parts.unlisted.items() if unit not in units}
    hashes = ImageIdHashes()
    for unit, ids in from_list.items():
        hashes.add(unit, hash_names(ids))
    n_units, n_done = len(units), 0
    batches = _batches(_find_in_plan(plan, parts, units, result))
    for checks in (check_batches or check_in_threads(threads))(checker, batches):
        for check in checks:
            hashes.add(check.unit, check.id_hashes)
            _add_check(result, check, is_listed=check.unit not in parts.unlisted)
        n_done += len(checks)
        progress(n_done, n_units, result.instances)
    result.images = result.ok + result.failed
    result.add(check_compacted_files(storage, parts.compacted, layout.name))
    result.add(find_duplicates(storage, layout, parts, hashes, from_list))
    if check_input and plan is not None:
        result.add(find_unread_images(storage, layout, plan, parts, threads))
    result.add(compare_with_record(record, result))
    check_latest(storage, layout, result)
    result.problems.sort(key=lambda problem: (problem.uri, problem.kind, problem.image_id))
    result.seconds = time.monotonic() - started
    return result


def _add_check(result: Verification, check: UnitCheck, *, is_listed: bool) -> None:
    """Add the problems of a unit; the counts are those of listed images."""
    result.add(check.problems)
    if is_listed:
        result.units += 1
        result.ok += check.ok
        result.failed += check.failed
        result.instances += check.instances
        result.warnings.update(check.warnings)


def _batches(units: Iterator[CommittedUnit]) -> Iterator[list[CommittedUnit]]:
    while batch := list(islice(units, _UNITS_AT_ONCE)):
        yield batch


def _find_in_plan(
    plan: StoredPlan | None, parts: PartListing, remaining: set[str], result: Verification
) -> Iterator[CommittedUnit]:
    """Each unit to check, with what the plan says of it; empties `remaining`."""

    def committed(unit: str) -> CommittedUnit:
        has_instances = unit not in parts.without_instances
        unlisted = parts.unlisted.get(unit)
        generation, covered = parts.generations[unit], parts.find_compacted(unit)
        return CommittedUnit(unit, generation, has_instances, unlisted=unlisted, covered=covered)

    try:
        for unit, planned in plan.parts() if plan is not None else ():
            if unit in remaining:
                remaining.discard(unit)
                yield replace(committed(unit), planned=planned)
    except SegcoreError as error:
        assert plan is not None, "raised by its parts"
        result.add([Problem("bad_plan", plan.uri, error.message[:300])])
    for unit in sorted(remaining):
        yield committed(unit)


def _open_plan(
    storage: Storage, layout: EditionLayout, record: RunRecord | None, result: Verification
) -> StoredPlan | None:
    if record is None:
        return None
    try:
        return open_stored_plan(storage, layout, record.run)
    except (SegcoreError, KeyError, ValueError, pa.ArrowException) as error:
        result.add([Problem("bad_plan", layout.plan(record.run), str(error)[:300])])
        return None
