"""Whether an output is what segcore promises: every part, every row, every mask, and the sums.

Works part by part, so that memory does not grow with the archive except by 8 bytes per image
(to find an image that is in two parts).
"""

from __future__ import annotations

import hashlib
import io
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segcore.errors import ObjectNotFound, SegcoreError, StorageError, describe_error
from segcore.inspection.compacted_checks import check_compacted_files, read_compacted_unit
from segcore.inspection.input_checks import find_unread_images
from segcore.inspection.part_checks import PartPair, check_pair, count_warnings
from segcore.inspection.part_listings import PartListing, compare_listings, list_parts
from segcore.inspection.problems import Problem, Verification
from segcore.output.compaction import CoveredUnit
from segcore.output.documents import read_document
from segcore.output.edition import document_of, fingerprint_of
from segcore.output.editions import choose_edition
from segcore.output.latest import read_latest
from segcore.output.layout import EditionLayout, Table
from segcore.output.report import COMPLETE
from segcore.output.run_records import RunRecord, read_newest_run, read_plan
from segcore.output.schema import SCHEMA_VERSION
from segcore.output.tables import encode_part
from segcore.planning.plan import Plan
from segcore.sources.units import Unit
from segcore.storage import Storage

_TABLES: tuple[Table, Table] = ("images", "instances")
# Another version of the library may write other bytes; then page checksums and rows must do.
_OTHER_WRITER = re.compile(rf"(?!.* {re.escape(pa.__version__)}$)parquet-cpp-arrow version [\d.]+")

Progress = Callable[[int, int], None]  # parts checked, parts in all


def _no_hashes() -> np.ndarray:
    return np.zeros(0, np.uint64)


@dataclass(frozen=True)
class _UnitCheck:
    """What the check of one unit gives.

    Attributes:
        id_hashes: (N,) uint64, see `_hash_image_ids`.
    """

    unit: str
    problems: list[Problem]
    id_hashes: np.ndarray = field(default_factory=_no_hashes)
    ok: int = 0
    failed: int = 0
    instances: int = 0
    warnings: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _EditionFacts:
    """What the parts of an edition must agree with.

    Attributes:
        categories: id -> name.
    """

    categories: dict[int, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class _UnitChecker:
    """Checks one unit at a time; shared by the threads."""

    storage: Storage
    layout: EditionLayout
    edition: _EditionFacts
    parts: PartListing

    def check(self, unit: str, planned: Unit | None) -> _UnitCheck:
        """Read both parts of a committed unit and check all there is to check."""
        problems: list[Problem] = []
        images_uri, instances_uri = (self.uri(table, unit) for table in _TABLES)
        covered = self.parts.find_compacted(unit)
        if covered is not None:
            images, instances = self._read_compacted(covered, images_uri, problems)
        else:
            images = self._read(images_uri, problems)
            has_instances = self.parts.has_instances(unit)
            instances = self._read(instances_uri, problems) if has_instances else None
        if images is None:
            return _UnitCheck(unit, problems)
        if instances is None:
            return _UnitCheck(unit, problems, _hash_image_ids(images))
        pair = PartPair(
            unit=unit,
            images_uri=images_uri,
            instances_uri=instances_uri,
            images=images,
            instances=instances,
            edition=self.layout.name,
            categories=self.edition.categories,
            planned=planned,
            schema_version=SCHEMA_VERSION if covered else self.edition.schema_version,
        )
        problems += check_pair(pair)
        if unit in self.parts.unlisted:
            problems += _check_unlisted(pair, self.parts.unlisted[unit])
        if any(problem.kind == "wrong_schema" for problem in problems):
            return _UnitCheck(unit, problems)
        ok = images["status"].to_pylist().count("ok")
        return _UnitCheck(
            unit=unit,
            problems=problems,
            id_hashes=_hash_image_ids(images),
            ok=ok,
            failed=images.num_rows - ok,
            instances=instances.num_rows,
            warnings=count_warnings(images),
        )

    def uri(self, table: Table, unit: str) -> str:
        """The newest part of a committed unit in one table, or the file it was compacted into."""
        covered = self.parts.find_compacted(unit)
        if covered is not None and self.parts.reader is not None:
            return self.parts.reader.uri(table, covered)
        return self.layout.part(table, unit, self.parts.generations[unit])

    def _read_compacted(
        self, unit: CoveredUnit, uri: str, problems: list[Problem]
    ) -> tuple[pa.Table, pa.Table] | tuple[None, None]:
        assert self.parts.reader is not None, "the unit was found by it"
        try:
            return read_compacted_unit(self.parts.reader, unit, self.layout.name)
        except StorageError as error:
            problems.append(Problem("unreadable_part", uri, f"it cannot be read: {error.message}"))
            return None, None

    def _read(self, uri: str, problems: list[Problem]) -> pa.Table | None:
        """The rows of a part; None, with a problem added, when it cannot be read."""
        try:
            data = self.storage.read(uri)
            file = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
            rows = file.read(use_threads=False)
            rows.validate(full=True)
            metadata = rows.schema.metadata or {}
            rewritten = encode_part(rows, {k.decode(): v.decode() for k, v in metadata.items()})
        except (pa.ArrowException, OSError, ValueError, StorageError) as error:
            reason = str(error).partition("\n")[0][:200]
            problems.append(Problem("unreadable_part", uri, f"it cannot be read: {reason}"))
            return None
        if rewritten != data and not _OTHER_WRITER.fullmatch(file.metadata.created_by):
            message = "its bytes are not those that segcore writes for these rows."
            problems.append(Problem("altered_part", uri, message))
        return rows


def verify_output(
    storage: Storage,
    output: str,
    edition: str | None = None,
    *,
    threads: int = 8,
    include_unlisted: bool = False,
    check_input: bool = False,
    progress: Progress = lambda done, total: None,
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

    Raises:
        UsageError: There is no output of segcore.
        SegcoreError: The storage cannot be listed.
    """
    choice = choose_edition(storage, output, edition, newest=True)
    layout = choice.layout
    result = Verification(layout.name, layout.prefix, edition_notes=choice.sentences())
    facts = _check_edition(storage, layout, result)
    record = _check_newest_run(storage, layout, result)
    plan = _check_plan(storage, layout, record, result)
    parts = list_parts(storage, layout, record, result)
    compare_listings(layout, plan, parts, result)
    checker = _UnitChecker(storage, layout, facts, parts)
    id_hashes = {unit: _hash_names(ids) for unit, ids in parts.unlisted.items()}
    units = set(parts.generations) if include_unlisted else parts.generations.keys() - id_hashes
    for number, check in enumerate(_check_units(checker, plan, units, threads), start=1):
        id_hashes[check.unit] = check.id_hashes
        result.add(check.problems)
        if check.unit not in parts.unlisted:
            result.units += 1
            result.ok += check.ok
            result.failed += check.failed
            result.instances += check.instances
            result.warnings.update(check.warnings)
        progress(number, len(units))
    result.images = result.ok + result.failed
    result.add(check_compacted_files(storage, parts.compacted, layout.name))
    result.add(_find_duplicates(storage, checker, id_hashes))
    if check_input and plan is not None:
        result.add(find_unread_images(storage, layout, plan, parts, threads))
    result.add(_compare_with_record(record, result))
    _check_latest(storage, layout, result)
    result.problems.sort(key=lambda problem: (problem.uri, problem.kind, problem.image_id))
    return result


def _check_units(
    checker: _UnitChecker,
    plan: Plan | None,
    units: set[str],
    threads: int,
) -> Iterator[_UnitCheck]:
    """These committed units, a bounded number of them at once."""
    pending: deque[Future[_UnitCheck]] = deque()
    with ThreadPoolExecutor(threads, "segcore-verify") as pool:
        for unit, planned in _find_in_plan(plan, units):
            pending.append(pool.submit(checker.check, unit, planned))
            if len(pending) >= 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _find_in_plan(plan: Plan | None, committed: set[str]) -> Iterator[tuple[str, Unit | None]]:
    """Each committed unit, with what the plan says of it; None where it says nothing."""
    not_in_plan = set(committed)
    for unit in plan.units if plan is not None else ():
        if unit.unit in not_in_plan:
            not_in_plan.discard(unit.unit)
            yield unit.unit, unit
    for name in sorted(not_in_plan):
        yield name, None


def _check_edition(storage: Storage, layout: EditionLayout, result: Verification) -> _EditionFacts:
    """What the edition says; its fingerprint must be that of its content."""
    uri = layout.edition_json
    try:
        edition = read_document(storage, uri)
        fingerprint = fingerprint_of(document_of(edition))
        if fingerprint != edition["fingerprint"]:
            message = (
                f"it states the fingerprint {edition['fingerprint']}, "
                f"but its content gives {fingerprint}."
            )
            result.add([Problem("bad_edition", uri, message)])
        if edition["edition"] != layout.name:
            message = f"it is the edition {edition['edition']}, not {layout.name}."
            result.add([Problem("bad_edition", uri, message)])
        version = int(edition["schema_version"])
        if not 1 <= version <= SCHEMA_VERSION:
            message = f"its schema version is {version}; this segcore knows 1 to {SCHEMA_VERSION}."
            result.add([Problem("bad_edition", uri, message)])
            version = SCHEMA_VERSION
        categories = {int(c["id"]): str(c["name"]) for c in edition["model"]["categories"]}
        return _EditionFacts(categories, version)
    except (ValueError, KeyError, TypeError, AttributeError, SegcoreError) as error:
        result.add(
            [Problem("bad_edition", uri, f"it cannot be read: {describe_error(error, 200)}")]
        )
        return _EditionFacts()


def _check_newest_run(
    storage: Storage, layout: EditionLayout, result: Verification
) -> RunRecord | None:
    try:
        record = read_newest_run(storage, layout)
    except SegcoreError as error:
        result.add([Problem("bad_record", layout.runs_folder, error.message)])
        return None
    if record is None:
        result.add([Problem("bad_record", layout.runs_folder, "there is no run record.")])
        return None
    result.run = record.run
    return record


def _check_plan(
    storage: Storage, layout: EditionLayout, record: RunRecord | None, result: Verification
) -> Plan | None:
    if record is None:
        return None
    try:
        return read_plan(storage, layout, record.run)
    except (SegcoreError, KeyError, ValueError, pa.ArrowException) as error:
        result.add([Problem("bad_plan", layout.plan(record.run), str(error)[:300])])
        return None


def _check_unlisted(pair: PartPair, listed_as_unlisted: list[str]) -> Iterator[Problem]:
    """The part of unlisted images has the rows of these and of no others."""
    if pair.images["image_id"].to_pylist() != listed_as_unlisted:
        message = "its images are not those that the list of unlisted images names for its unit."
        yield Problem("wrong_unlisted", pair.images_uri, message)


def _hash_image_ids(images: pa.Table) -> np.ndarray:
    """(N,) uint64 of the image ids; equal ids have equal hashes."""
    if "image_id" not in images.column_names:
        return _no_hashes()
    return _hash_names(images["image_id"].to_pylist())


def _hash_names(image_ids: Iterable[str]) -> np.ndarray:
    digests = (hashlib.blake2b(str(name).encode(), digest_size=8).digest() for name in image_ids)
    return np.frombuffer(b"".join(digests), np.uint64)


def _find_duplicates(
    storage: Storage, checker: _UnitChecker, id_hashes: dict[str, np.ndarray]
) -> Iterator[Problem]:
    """Images with several rows: equal hashes first, then the ids themselves decide.

    Args:
        id_hashes: Unit -> hashes of its image ids, in the order of its rows.
    """
    if not id_hashes:
        return
    all_hashes = np.sort(np.concatenate(list(id_hashes.values())))
    repeated = np.unique(all_hashes[1:][all_hashes[1:] == all_hashes[:-1]])
    del all_hashes
    if not repeated.size:
        return
    first_uris: dict[str, str] = {}  # image id -> the part that has its first row
    for unit, hashes in id_hashes.items():
        suspect_rows = np.flatnonzero(np.isin(hashes, repeated)).tolist()
        if not suspect_rows:
            continue
        if unit not in checker.parts.generations:
            continue  # a problem of its own
        uri = checker.uri("images", unit)
        if checker.parts.find_compacted(unit) is not None and checker.parts.reader is not None:
            ids = checker.parts.reader.read("images", unit, ["image_id"])["image_id"]
        else:
            with storage.open(uri) as file:
                ids = pq.read_table(file, columns=["image_id"])["image_id"]
        for image_id in (ids[row].as_py() for row in suspect_rows):
            if image_id in first_uris:
                first = first_uris[image_id]
                message = f"it also has a row in {'this part' if first == uri else first}."
                yield Problem("duplicate_image", uri, message, image_id)
            first_uris.setdefault(image_id, uri)


def _compare_with_record(record: RunRecord | None, result: Verification) -> Iterator[Problem]:
    """The counts of a finished run; one in progress has none yet."""
    if record is None or record.status not in COMPLETE:
        return
    for name in ("units", "images", "ok", "failed", "instances", "images_unlisted"):
        stated = record.values.get(name, 0 if name == "images_unlisted" else None)
        actual = getattr(result, name)
        if stated != actual:
            message = f"it states {name} {stated}, but the parts give {actual}."
            yield Problem("report_differs", record.uri, message)
    stated = record.values.get("warnings", {})  # records of schema 1 have none
    if stated != dict(result.warnings):
        message = f"it states the warnings {stated}, but the parts give {dict(result.warnings)}."
        yield Problem("report_differs", record.uri, message)


def _check_latest(storage: Storage, layout: EditionLayout, result: Verification) -> None:
    """What is published must exist; if it is this edition, its run, too."""
    output = layout.output
    uri = output.latest_json
    try:
        latest = read_latest(storage, output)
        name, run = latest["edition"], latest.get("run")
        if name != layout.name:
            if not storage.exists(output.edition(name).edition_json):
                message = f"it points to the edition {name}, which does not exist."
                result.add([Problem("bad_latest", uri, message)])
        elif run is not None and not storage.exists(layout.run_record(run)):
            result.add([Problem("bad_latest", uri, f"its run {run} has no record.")])
    except ObjectNotFound:
        return  # nothing is published
    except (ValueError, KeyError, TypeError, AttributeError, SegcoreError) as error:
        result.add([Problem("bad_latest", uri, f"it cannot be read: {describe_error(error, 200)}")])
