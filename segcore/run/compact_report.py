"""What a compaction did, for people and for scripts."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from segcore.text import align_columns, format_bytes, plural


@dataclass(frozen=True)
class CompactReport:
    """What a compaction did, or would do.

    Attributes:
        generation: Of the compacted files that readers take; "" if there are none.
        units: Units that these cover and readers take from there.
        units_added: Units that were read from their parts until now.
        units_hidden: Units with rows in the files that were current before, which were not read
            any more: replaced, or withdrawn.
        units_outside: Units that readers take from their parts now.
        files, bytes: Compacted files that readers take, of both tables.
        files_deleted, bytes_deleted: What was not needed any more.
        files_waiting, bytes_waiting: What will be deleted by a call after the grace period.
        files_pinned: What is kept because a table has registered it.
        images, instances: Patterns that find the compacted files.
        dry_run: Nothing was changed.
        nothing_to_do: Nothing was compacted, because nothing had to be.
    """

    edition: str
    prefix: str
    generation: str = ""
    units: int = 0
    units_added: int = 0
    units_hidden: int = 0
    units_outside: int = 0
    files: int = 0
    bytes: int = 0
    files_deleted: int = 0
    bytes_deleted: int = 0
    files_waiting: int = 0
    bytes_waiting: int = 0
    files_pinned: int = 0
    images: str = ""
    instances: str = ""
    dry_run: bool = False
    nothing_to_do: bool = False
    edition_notes: tuple[str, ...] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def summary(self) -> str:
        """For people, a few aligned lines."""
        added = f"{self.units_added:,} new, {self.units_hidden:,} replaced or withdrawn"
        rows = [("edition", self.edition)]
        if self.dry_run:
            rows.append(("to do", "nothing" if self.nothing_to_do else added))
        elif self.nothing_to_do:
            rows.append(("done", "nothing: no unit has changed since the last compaction"))
        else:
            rows.append(("done", added))
        if self.generation:
            size = f"{plural(self.files, 'file')}, {format_bytes(self.bytes)}"
            rows.append(("compacted", f"{plural(self.units, 'unit')} in {size}"))
            rows.append(("outside", plural(self.units_outside, "unit")))
        if self.files_deleted:
            deleted = f"{plural(self.files_deleted, 'file')}, {format_bytes(self.bytes_deleted)}"
            rows.append(("deleted", deleted))
        if self.files_waiting:
            waiting = f"{plural(self.files_waiting, 'file')}, {format_bytes(self.bytes_waiting)}"
            rows.append(("to delete", f"{waiting}, at a call after the grace period"))
        if self.files_pinned:
            rows.append(("kept", f"{plural(self.files_pinned, 'file')} that a table refers to"))
        if self.generation:
            rows += [("tables", self.images), ("", self.instances)]
        return align_columns(rows)
