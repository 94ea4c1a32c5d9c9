"""What publishing asks of a table, whatever its format is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from segcore.lakehouse.files import TableFiles


class LakeTable(Protocol):
    """One of the two tables; nothing is created before the first publication.

    Attributes:
        name: For people.
    """

    name: str

    def holds(self, marks: Mapping[str, str]) -> bool:
        """Whether readers find the rows that were published with these marks."""

    def pins(self, files: TableFiles) -> set[str]:
        """URIs of files of the output that it refers to, or will once it has these."""

    def stage(self, files: TableFiles, marks: Mapping[str, str]) -> None:
        """Make a candidate of these files, and no others; readers do not see it."""

    def staged_rows(self) -> int:
        """Rows of the candidate."""

    def discard(self) -> None:
        """Drop the candidate."""

    def forward(self) -> None:
        """Let readers find the candidate."""
