"""What a part says about itself in its Parquet metadata."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa

from segcore.errors import ImageWarning
from segcore.output.tables import ImageResult
from segcore.text import parse_json

_READER = b"segcore.reader"


class WrittenPart(NamedTuple):
    """The file of an ``images`` part as it was written: bytes, and the etag that listings show."""

    generation: int
    size: int
    etag: str


@dataclass(frozen=True)
class PartCounts:
    """Counts of one unit, repeated in the metadata of both its parts.

    Attributes:
        failures: Failed images by error code.
        notes: What was noticed while reading, such as ``duplicate_names`` (renamed) in a tar; and
            how many pages and frames were left out.
        warnings: Images by code of their warnings.
        written: The file that this process wrote with these counts; None where they were read.
    """

    unit: str
    ok: int
    failed: int
    instances: int
    failures: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    warnings: dict[str, int] = field(default_factory=dict)
    written: WrittenPart | None = field(default=None, compare=False)

    @property
    def images(self) -> int:
        """Rows of the ``images`` part."""
        return self.ok + self.failed

    @classmethod
    def of_results(
        cls, unit: str, results: Sequence[ImageResult], notes: Mapping[str, int]
    ) -> PartCounts:
        """The counts of a unit's results."""
        return cls.of_rows(
            unit,
            [None if r.error is None else str(r.error.code) for r in results],
            sum(len(r.instances) for r in results if r.instances is not None),
            [r.warnings for r in results],
            notes,
        )

    @classmethod
    def of_tables(cls, unit: str, images: pa.Table, instances: pa.Table) -> PartCounts:
        """The counts of a unit's tables; what reading noticed is not in them."""
        warnings = (map(ImageWarning.parse, texts) for texts in images["warnings"].to_pylist())
        error_codes = images["error_code"].to_pylist()
        return cls.of_rows(unit, error_codes, instances.num_rows, warnings, {})

    @classmethod
    def of_rows(
        cls,
        unit: str,
        error_codes: Sequence[str | None],
        instances: int,
        warnings: Iterable[Iterable[ImageWarning]],
        notes: Mapping[str, int],
    ) -> PartCounts:
        """The counts of rows: the error code and the warnings of each image."""
        failures = Counter(code for code in error_codes if code is not None)
        by_code: Counter[str] = Counter()
        all_notes = Counter(notes)
        for warnings_of_image in map(tuple, warnings):
            by_code.update({str(warning.code) for warning in warnings_of_image})
            for warning in warnings_of_image:
                all_notes[str(warning.code)] += warning.n_left_out
        return cls(
            unit=unit,
            ok=len(error_codes) - failures.total(),
            failed=failures.total(),
            instances=instances,
            failures=dict(sorted(failures.items())),
            notes={name: number for name, number in sorted(all_notes.items()) if number},
            warnings=dict(sorted(by_code.items())),
        )

    @classmethod
    def from_metadata(cls, metadata: Mapping[bytes, bytes] | None) -> PartCounts:
        """Inverse of `to_metadata`; other keys are ignored.

        Raises:
            KeyError, ValueError: It is not the metadata of a part.
        """
        values = {key.decode(): value.decode() for key, value in (metadata or {}).items()}
        return cls(
            unit=values["segcore.unit"],
            ok=int(values["segcore.n_ok"]),
            failed=int(values["segcore.n_failed"]),
            instances=int(values["segcore.n_instances"]),
            failures=parse_json(values["segcore.failures"]),
            notes=parse_json(values["segcore.notes"]),
            warnings=parse_json(values.get("segcore.warnings", "{}")),  # not in schema 1
        )

    def to_metadata(self) -> dict[str, str]:
        """The counts as Parquet metadata."""
        return {
            "segcore.unit": self.unit,
            "segcore.n_ok": str(self.ok),
            "segcore.n_failed": str(self.failed),
            "segcore.n_instances": str(self.instances),
            "segcore.failures": json.dumps(self.failures, sort_keys=True),
            "segcore.notes": json.dumps(self.notes, sort_keys=True),
            "segcore.warnings": json.dumps(self.warnings, sort_keys=True),
        }


def reader_of_metadata(metadata: Mapping[bytes, bytes] | None) -> int:
    """The version of the readers of archives that gave the rows of a part; 1 if it names none."""
    text = (metadata or {}).get(_READER, b"1").decode("ascii", "replace")
    return int(text) if text.isdecimal() else 1
