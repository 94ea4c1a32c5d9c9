"""Whether an output is what segcore promises: every part, every row, every mask, and the sums.

Works part by part, so that memory does not grow with the archive except by 8 bytes per image
(to find an image that stands in two parts).
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segcore.errors import SegcoreError, StorageError
from segcore.inspection.part_checks import PartPair, check_pair
from segcore.inspection.problems import Problem, Verification
from segcore.output.parts import encode_part, unit_of_part
from segcore.output.report import COMPLETE
from segcore.output.results import find_edition
from segcore.output.run_records import RunRecord, read_plan, read_run_records
from segcore.planning.plan import Plan
from segcore.sources.units import Unit
from segcore.storage import Storage, join
from segcore.storage.uris import basename, parent

_MAX_JSON = 16 << 20
# Another version of the library may write other bytes; then page checksums and rows must do.
_OTHER_WRITER = re.compile(rf"(?!.* {re.escape(pa.__version__)}$)parquet-cpp-arrow version [\d.]+")

Progress = Callable[[int, int], None]  # parts checked, parts in all


@dataclass(frozen=True)
class _Checked:
    """What the check of one unit leaves behind."""

    unit: str
    problems: list[Problem]
    hashes: np.ndarray
    ok: int = 0
    failed: int = 0
    instances: int = 0


@dataclass(frozen=True)
class _Checker:
    """Checks one unit; shared by the threads."""

    storage: Storage
    prefix: str
    categories: dict[int, str]

    def uri(self, table: str, unit: str) -> str:
        return join(self.prefix, table, f"{unit}.parquet")

    def check(self, unit: str, planned: Unit | None, has_instances: bool) -> _Checked:
        """Read both parts of a committed unit and check all there is to check."""
        problems: list[Problem] = []
        images = self._read("images", unit, problems)
        instances = self._read("instances", unit, problems) if has_instances else None
        hashes = np.zeros(0, np.uint64)
        if images is None or instances is None:
            return _Checked(unit, problems, _hashes(images) if images else hashes)
        pair = PartPair(
            unit=unit,
            images_uri=self.uri("images", unit),
            instances_uri=self.uri("instances", unit),
            images=images,
            instances=instances,
            edition=basename(self.prefix),
            categories=self.categories,
            planned=planned,
        )
        problems += check_pair(pair)
        if any(problem.kind == "wrong_schema" for problem in problems):
            return _Checked(unit, problems, hashes)
        ok = images["status"].to_pylist().count("ok")
        return _Checked(
            unit, problems, _hashes(images), ok, images.num_rows - ok, instances.num_rows
        )

    def _read(self, table: str, unit: str, problems: list[Problem]) -> pa.Table | None:
        uri = self.uri(table, unit)
        try:
            data = self.storage.read(uri)
            file = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
            found = file.read(use_threads=False)
            found.validate(full=True)
            metadata = found.schema.metadata or {}
            rewritten = encode_part(found, {k.decode(): v.decode() for k, v in metadata.items()})
        except (pa.ArrowException, OSError, ValueError, StorageError) as error:
            reason = str(error).partition("\n")[0][:200]
            problems.append(Problem("unreadable_part", uri, f"it cannot be read: {reason}"))
            return None
        if rewritten != data and not _OTHER_WRITER.fullmatch(file.metadata.created_by):
            message = "its bytes are not those that segcore writes for these rows."
            problems.append(Problem("altered_part", uri, message))
        return found


def verify_output(
    storage: Storage,
    output: str,
    edition: str | None = None,
    *,
    threads: int = 8,
    progress: Progress = lambda done, total: None,
) -> Verification:
    """Check an edition from storage alone.

    Args:
        output: What the run was given as output, or the prefix of one edition in it.
        edition: Name of the edition; default the one `latest.json` points to, else the newest.
        threads: Units checked at once; each holds the two parts of one unit in memory.

    Raises:
        UsageError: No output of segcore there.
        SegcoreError: The storage cannot be listed.
    """
    prefix = find_edition(storage, output, edition, newest=True)
    result = Verification(edition=basename(prefix), prefix=prefix)
    categories = _check_edition(storage, prefix, result)
    record = _newest_record(storage, prefix, result)
    plan = _plan(storage, prefix, record, result)
    committed = _listed(storage, prefix, "images", result)
    with_instances = _listed(storage, prefix, "instances", result)
    _check_names(prefix, plan, committed, with_instances, result)
    checker = _Checker(storage, prefix, categories)
    hashes: dict[str, np.ndarray] = {}
    for checked in _check_all(checker, plan, committed, with_instances, threads):
        hashes[checked.unit] = checked.hashes
        result.units += 1
        result.ok += checked.ok
        result.failed += checked.failed
        result.instances += checked.instances
        result.note(checked.problems)
        progress(result.units, len(committed))
    result.images = result.ok + result.failed
    result.note(_duplicates(checker, hashes))
    result.note(_compare_record(record, result))
    _check_latest(storage, prefix, result)
    result.problems.sort(key=lambda problem: (problem.uri, problem.kind, problem.image_id))
    return result


def _check_all(
    checker: _Checker, plan: Plan | None, committed: set[str], whole: set[str], threads: int
) -> Iterator[_Checked]:
    """All committed units, a bounded number of them at once."""
    waiting: deque[Future[_Checked]] = deque()
    with ThreadPoolExecutor(threads, "segcore-verify") as pool:
        for unit, planned in _with_plan(plan, committed):
            waiting.append(pool.submit(checker.check, unit, planned, unit in whole))
            if len(waiting) >= 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _with_plan(plan: Plan | None, committed: set[str]) -> Iterator[tuple[str, Unit | None]]:
    left = set(committed)
    for unit in plan.units if plan is not None else ():
        if unit.unit in left:
            left.discard(unit.unit)
            yield unit.unit, unit
    for name in sorted(left):
        yield name, None


def _check_edition(storage: Storage, prefix: str, result: Verification) -> dict[int, str]:
    """Categories of the edition; its fingerprint must be that of what it says."""
    uri = join(prefix, "edition.json")
    try:
        document = json.loads(storage.read(uri, _MAX_JSON))
        outside = ("edition", "fingerprint", "licence", "limits")
        hashed = {key: value for key, value in document.items() if key not in outside}
        text = json.dumps(hashed, sort_keys=True, separators=(",", ":"))
        fingerprint = hashlib.sha256(text.encode()).hexdigest()
        if fingerprint != document["fingerprint"]:
            message = f"it says fingerprint {document['fingerprint']}, its content {fingerprint}."
            result.note([Problem("bad_edition", uri, message)])
        if document["edition"] != basename(prefix):
            message = f"it is the edition {document['edition']}, not {basename(prefix)}."
            result.note([Problem("bad_edition", uri, message)])
        return {int(c["id"]): str(c["name"]) for c in document["model"]["categories"]}
    except (ValueError, KeyError, TypeError, AttributeError, StorageError) as error:
        result.note([Problem("bad_edition", uri, f"it cannot be read: {error!r:.200}")])
        return {}


def _newest_record(storage: Storage, prefix: str, result: Verification) -> RunRecord | None:
    try:
        found = read_run_records(storage, prefix)
    except SegcoreError as error:
        result.note([Problem("bad_record", join(prefix, "runs"), error.message)])
        return None
    if not found:
        result.note([Problem("bad_record", join(prefix, "runs"), "there is no run record.")])
        return None
    result.run = found[-1].run
    return found[-1]


def _plan(
    storage: Storage, prefix: str, record: RunRecord | None, result: Verification
) -> Plan | None:
    if record is None:
        return None
    try:
        return read_plan(storage, prefix, record.run)
    except (SegcoreError, KeyError, ValueError, pa.ArrowException) as error:
        uri = join(prefix, "plans", f"{record.run}.parquet")
        result.note([Problem("bad_plan", uri, str(error)[:300])])
        return None


def _listed(storage: Storage, prefix: str, table: str, result: Verification) -> set[str]:
    """Units that have a part in this table."""
    units: set[str] = set()
    folder = join(prefix, table)
    for info in storage.list(folder):
        unit = unit_of_part(info.uri)
        if unit is not None and parent(info.uri) == folder:
            units.add(unit)
        else:
            message = f"it is no part, but lies in {table}/."
            result.note([Problem("alien_file", info.uri, message)])
    return units


def _check_names(
    prefix: str, plan: Plan | None, committed: set[str], whole: set[str], result: Verification
) -> None:
    """Plan against listings."""

    def note(kind: str, table: str, units: Iterable[str], message: str) -> None:
        uris = (join(prefix, table, f"{unit}.parquet") for unit in sorted(units))
        result.note(Problem(kind, uri, message) for uri in uris)

    if plan is not None:
        planned = set(plan.units.ids())
        hint = "the plan holds its unit; the same `segcore segment` again makes it."
        note("missing_part", "images", planned - committed, hint)
        note("unplanned_part", "images", committed - planned, "the plan does not hold its unit.")
    note("missing_instances", "instances", committed - whole, "its unit is committed without it.")
    message = "its unit is not committed: left by a job that died, or one at work now."
    note("orphan_part", "instances", whole - committed, message)


def _hashes(images: pa.Table) -> np.ndarray:
    """(N,) uint64 of the image ids; equal ids have equal hashes."""
    if "image_id" not in images.column_names:
        return np.zeros(0, np.uint64)
    texts = images["image_id"].to_pylist()
    digests = (hashlib.blake2b(str(text).encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(b"".join(digests), np.uint64)


def _duplicates(checker: _Checker, hashes: dict[str, np.ndarray]) -> Iterator[Problem]:
    """Images with several rows: equal hashes first, then the ids themselves decide."""
    if not hashes:
        return
    together = np.sort(np.concatenate(list(hashes.values())))
    repeated = np.unique(together[1:][together[1:] == together[:-1]])
    del together
    if not repeated.size:
        return
    first: dict[str, str] = {}
    for unit, found in hashes.items():
        places = np.flatnonzero(np.isin(found, repeated)).tolist()
        if not places:
            continue
        uri = checker.uri("images", unit)
        with checker.storage.open(uri) as file:
            ids = pq.read_table(file, columns=["image_id"])["image_id"]
        for image_id in (ids[place].as_py() for place in places):
            if image_id in first:
                where = "this part" if first[image_id] == uri else first[image_id]
                yield Problem("duplicate_image", uri, f"it has a row in {where}, too.", image_id)
            first.setdefault(image_id, uri)


def _compare_record(record: RunRecord | None, result: Verification) -> Iterator[Problem]:
    """The counts of a finished run; a running one has none yet."""
    if record is None or record.status not in COMPLETE:
        return
    for name in ("units", "images", "ok", "failed", "instances"):
        said, found = record.values.get(name), getattr(result, name)
        if said != found:
            yield Problem("report_differs", record.uri, f"it says {name} {said}, found {found}.")


def _check_latest(storage: Storage, prefix: str, result: Verification) -> None:
    """The published pointer, when it names this edition."""
    output = parent(prefix)
    uri = join(output, "latest.json")
    try:
        if not storage.exists(uri):
            return
        pointer = json.loads(storage.read(uri, _MAX_JSON))
        name = pointer["edition"]
        if name != basename(prefix) and not storage.exists(join(output, name, "edition.json")):
            result.note([Problem("bad_latest", uri, f"it points to {name}, which is not there.")])
        elif name == basename(prefix):
            run = pointer.get("run")
            if run is not None and not storage.exists(join(prefix, "runs", f"{run}.json")):
                result.note([Problem("bad_latest", uri, f"its run {run} has no record.")])
    except (ValueError, KeyError, TypeError, AttributeError, SegcoreError) as error:
        result.note([Problem("bad_latest", uri, f"it cannot be read: {error!r:.200}")])
