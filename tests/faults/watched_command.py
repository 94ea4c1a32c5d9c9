"""`segcore segment` as a process whose output is watched from outside while it works."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from segcore.storage import Storage
from tests.support.commands import SegmentCommand


class OutputUnits:
    """Which units of an output are in which table, by listing it without asking the job."""

    def __init__(self, storage: Storage, output: str) -> None:
        self._storage, self._output = storage, output

    def committed(self) -> set[str]:
        """Units that are done."""
        return self._units("images")

    def half_committed(self) -> set[str]:
        """Units with instances but without images."""
        instances = self._units("instances")  # first, or a unit done in between would count
        return instances - self._units("images")

    def _units(self, table: str) -> set[str]:
        paths = (info.uri.split("/") for info in self._storage.list(self._output))
        return {names[-1] for names in paths if names[-2] == table}


class WatchedCommand(SegmentCommand):
    """A command and the units of its output.

    Attributes:
        units: Of its output, now.
        committed_before: How many units were committed when it was started.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        environment: Mapping[str, str],
        units: OutputUnits,
    ) -> None:
        self.units = units
        self.committed_before = len(units.committed())
        super().__init__(arguments, log, environment)
