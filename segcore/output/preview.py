"""What a run would do, before it does it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from segcore.output.edition_changes import EditionChanges
from segcore.text import align_columns, format_bytes, plural


@dataclass(frozen=True)
class Preview:
    """What a run would do.

    Attributes:
        images: None when shards are counted only as they are read.
        images_done, bytes_done: Of the units already done; images are None as above.
        units_stale: Committed units that are not in the plan, because images of theirs changed,
            were cut anew or are not listed; those whose images are in other parts are deleted.
        entries_lost: Images or shards of the last run that are not listed any more.
        remove_unlisted: Their results are to be removed.
        nothing_to_do: A run would find everything done and write nothing.
        input_notes: Sentences about what the listing of the input left out.
        precision_reason: Why `model.precision` is what it is, if it was chosen by itself.
        new_beside: The edition beside which a run would begin a new one; None if it would not.
    """

    input: str
    prefix: str
    model: str
    kind: str
    images: int | None
    units: int
    bytes: int
    images_done: int | None
    units_done: int
    units_stale: int
    bytes_done: int = 0
    entries_lost: int = 0
    remove_unlisted: bool = False
    nothing_to_do: bool = False
    input_notes: tuple[str, ...] = ()
    precision_reason: str = ""
    new_beside: EditionChanges | None = None

    @property
    def units_left(self) -> int:
        """Units that are not done."""
        return self.units - self.units_done

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def notes(self) -> list[str]:
        """What a person should know before the run begins."""
        notes = [*self.input_notes, *self.warnings()]
        if self.precision_reason:
            notes.append(self.precision_reason)
        if self.new_beside is None:
            return notes
        older, fields = self.new_beside.older, "; ".join(self.new_beside.fields)
        change = f"This begins a new edition beside {older}: {fields or 'the fields are the same'}."
        return [*notes, change]

    def summary_line(self) -> str:
        """One line for people."""
        units = f"{plural(self.units, 'unit')} ({format_bytes(self.bytes)})"
        if self.images is None:
            plan = f"{units}; their images are counted when read"
        else:
            plan = f"{plural(self.images, 'image')} in {units}"
        done = f"; {self.units_done:,} done, {self.units_left:,} to do" if self.units_done else ""
        return f"Plan: {plan}{done}."

    def summary(self) -> str:
        """The plan for people, a few aligned lines."""
        unknown = "counted when read"
        images_done = unknown if self.images_done is None else plural(self.images_done, "image")
        rows = [
            ("input", f"{self.input}  ({self.kind})"),
            ("images", unknown if self.images is None else f"{self.images:,}"),
            ("units", f"{self.units:,}"),
            ("bytes", f"{self.bytes:,}  ({format_bytes(self.bytes)})"),
            ("model", self.model),
            ("output", self.prefix),
            ("skipped", f"{plural(self.units_done, 'unit')} already done ({images_done})"),
            ("to do", plural(self.units_left, "unit")),
        ]
        if self.units_stale:
            stale = plural(self.units_stale, "unit")
            rows.append(("not planned", f"{stale} of earlier plans; those replaced are deleted"))
        if self.entries_lost:
            lost = plural(self.entries_lost, "image or shard", "images or shards")
            rows.append(("unlisted", f"{lost} of the last run; {self._fate_of_unlisted()}"))
        return align_columns(rows)

    def warnings(self) -> list[str]:
        """What a person should know before it begins."""
        if not self.entries_lost:
            return []
        lost = plural(self.entries_lost, "image or shard", "images or shards")
        verb = "is" if self.entries_lost == 1 else "are"
        fate = self._fate_of_unlisted()
        return [f"{lost} of the last run {verb} not listed any more; {fate}."]

    def _fate_of_unlisted(self) -> str:
        if self.remove_unlisted:
            return "their results are removed at the end"
        return "their results are kept (--remove-unlisted removes them)"
