"""What a part says about itself in its Parquet metadata."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from segcore.output.tables import ImageResult

_READER = b"segcore.reader"


@dataclass(frozen=True)
class PartCounts:
    """Counts of one unit, repeated in the metadata of both its parts.

    Attributes:
        failures: Failed images by error code.
        notes: What was noticed while reading, such as ``duplicate_names`` (renamed) in a tar.
    """

    unit: str
    ok: int
    failed: int
    instances: int
    failures: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """Rows of the ``images`` part."""
        return self.ok + self.failed

    @classmethod
    def of_results(
        cls, unit: str, results: Sequence[ImageResult], notes: Mapping[str, int]
    ) -> PartCounts:
        """The counts of a unit's results."""
        failures = Counter(str(r.error.code) for r in results if r.error is not None)
        failed = sum(failures.values())
        return cls(
            unit=unit,
            ok=len(results) - failed,
            failed=failed,
            instances=sum(len(r.instances) for r in results if r.instances is not None),
            failures=dict(sorted(failures.items())),
            notes={name: number for name, number in sorted(notes.items()) if number},
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
            failures=json.loads(values["segcore.failures"]),
            notes=json.loads(values["segcore.notes"]),
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
        }


def reader_of_metadata(metadata: Mapping[bytes, bytes] | None) -> int:
    """The version of the readers of archives that gave the rows of a part; 1 if it names none."""
    text = (metadata or {}).get(_READER, b"1").decode("ascii", "replace")
    return int(text) if text.isdecimal() else 1
