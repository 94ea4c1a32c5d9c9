"""The check of whole units: their parts are read, decoded and compared with all that is known.

Nothing here is shared with the caller, so that units can be checked in other processes.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segcore.errors import StorageError
from segcore.inspection.compacted_checks import read_compacted_unit
from segcore.inspection.image_checks import PlannedPart, count_warnings
from segcore.inspection.part_checks import PartPair, check_pair
from segcore.inspection.problems import Problem
from segcore.output.compacted_rows import CompactedParts
from segcore.output.compaction import CoveredUnit
from segcore.output.layout import EditionLayout
from segcore.output.schema import SCHEMA_VERSION
from segcore.output.tables import encode_part
from segcore.storage import Storage

# Another version of the library may write other bytes; then page checksums and rows must do.
_OTHER_WRITER = re.compile(rf"(?!.* {re.escape(pa.__version__)}$)parquet-cpp-arrow version [\d.]+")


def _no_hashes() -> np.ndarray:
    return np.zeros(0, np.uint64)


@dataclass(frozen=True)
class CommittedUnit:
    """A unit to check.

    Attributes:
        generation: The newest of its part.
        has_instances: Whether that generation has its second file.
        planned: What the plan says of it; None where it says nothing.
        unlisted: Its images, if the listing of the newest run lacked them.
        covered: Where compacted files hold its rows; None if they are in parts of its own.
    """

    unit: str
    generation: int
    has_instances: bool
    planned: PlannedPart | None = None
    unlisted: Sequence[str] | None = None
    covered: CoveredUnit | None = None


@dataclass(frozen=True)
class UnitCheck:
    """What the check of one unit gives.

    Attributes:
        id_hashes: (N,) uint64, see `hash_names`.
    """

    unit: str
    problems: list[Problem]
    id_hashes: np.ndarray = field(default_factory=_no_hashes)
    ok: int = 0
    failed: int = 0
    instances: int = 0
    warnings: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class EditionFacts:
    """What the parts of an edition must agree with.

    Attributes:
        categories: id -> name.
    """

    categories: dict[int, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class UnitChecker:
    """Checks units; can be sent to other processes, and used by many threads."""

    storage: Storage
    layout: EditionLayout
    edition: EditionFacts
    compacted: CompactedParts

    def check_all(self, units: Sequence[CommittedUnit], threads: int) -> list[UnitCheck]:
        """Check some units, this many at once."""
        with ThreadPoolExecutor(min(threads, len(units)) or 1, "segcore-verify") as pool:
            return list(pool.map(self.check, units))

    def check(self, committed: CommittedUnit) -> UnitCheck:
        """Read both parts of a unit and check all there is to check."""
        problems: list[Problem] = []
        unit = committed.unit
        images_uri, instances_uri = self._uris(committed)
        if committed.covered is not None:
            images, instances = self._read_compacted(committed.covered, images_uri, problems)
        else:
            images = self._read(images_uri, problems)
            instances = self._read(instances_uri, problems) if committed.has_instances else None
        if images is None:
            return UnitCheck(unit, problems)
        if instances is None:
            return UnitCheck(unit, problems, hash_image_ids(images))
        pair = PartPair(
            unit=unit,
            images_uri=images_uri,
            instances_uri=instances_uri,
            images=images,
            instances=instances,
            edition=self.layout.name,
            categories=self.edition.categories,
            planned=committed.planned,
            schema_version=SCHEMA_VERSION if committed.covered else self.edition.schema_version,
        )
        problems += check_pair(pair)
        if committed.unlisted is not None:
            problems += _check_unlisted(pair, committed.unlisted)
        if any(problem.kind == "wrong_schema" for problem in problems):
            return UnitCheck(unit, problems)
        ok = int(pc.sum(pc.equal(images["status"], "ok")).as_py() or 0)
        return UnitCheck(
            unit=unit,
            problems=problems,
            id_hashes=hash_image_ids(images),
            ok=ok,
            failed=images.num_rows - ok,
            instances=instances.num_rows,
            warnings=count_warnings(images),
        )

    def _uris(self, committed: CommittedUnit) -> tuple[str, str]:
        """The files of `images` and `instances` that hold the rows of a unit."""
        unit, covered = committed.unit, committed.covered
        if covered is not None:
            return self.compacted.uri("images", covered), self.compacted.uri("instances", covered)
        generation = committed.generation
        images_uri = self.layout.part("images", unit, generation)
        return images_uri, self.layout.part("instances", unit, generation)

    def _read_compacted(
        self, unit: CoveredUnit, uri: str, problems: list[Problem]
    ) -> tuple[pa.Table, pa.Table] | tuple[None, None]:
        try:
            return read_compacted_unit(self.compacted, unit, self.layout.name)
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


def _check_unlisted(pair: PartPair, listed_as_unlisted: Sequence[str]) -> Iterator[Problem]:
    """The part of unlisted images has the rows of these and of no others."""
    if pair.images["image_id"].to_pylist() != list(listed_as_unlisted):
        message = "its images are not those that the list of unlisted images names for its unit."
        yield Problem("wrong_unlisted", pair.images_uri, message)


def hash_image_ids(images: pa.Table) -> np.ndarray:
    """(N,) uint64 of the image ids; equal ids have equal hashes."""
    if "image_id" not in images.column_names:
        return _no_hashes()
    return hash_names(images["image_id"].to_pylist())


def hash_names(image_ids: Iterable[str]) -> np.ndarray:
    """(N,) uint64; equal names have equal hashes."""
    digests = (hashlib.blake2b(str(name).encode(), digest_size=8).digest() for name in image_ids)
    return np.frombuffer(b"".join(digests), np.uint64)
