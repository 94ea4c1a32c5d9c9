"""The executions of all editions of an output, newest first."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from segcore.inspection.editions import DIED, is_at_work
from segcore.output.editions import require_editions
from segcore.output.executions import Execution, read_recent_executions
from segcore.output.layout import EditionLayout, OutputLayout
from segcore.output.report import RUNNING
from segcore.output.reprocess_records import read_calls
from segcore.output.run_records import read_newest_run
from segcore.storage import Storage, normalize
from segcore.text import printable


@dataclass(frozen=True)
class PastExecution:
    """An execution and the edition that it wrote into."""

    edition: str
    execution: Execution

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"edition": self.edition, **asdict(self.execution)}


def read_history(storage: Storage, output: str, count: int) -> list[PastExecution]:
    """The newest executions of an output, with those that have not ended.

    Args:
        output: What a run was given as output.
        count: How many at most.

    Raises:
        UsageError: There is no edition.
        StorageError: The history cannot be listed.
    """
    layout = OutputLayout(normalize(output))
    found = []
    for edition in require_editions(storage, layout):
        ended = read_recent_executions(storage, edition, count)
        found += [PastExecution(edition.name, execution) for execution in ended]
        known = {execution.execution for execution in ended}
        if (current := _unfinished(storage, edition)) and current.execution not in known:
            found.append(PastExecution(edition.name, current))
    found.sort(key=lambda past: past.execution.execution, reverse=True)  # ids begin with the time
    return found[:count]


@dataclass(frozen=True)
class PastCall:
    """A call of `segcore reprocess` that came to something.

    Attributes:
        call: Its id, which begins with the time.
        logical_date: What the scheduler said; "" if it said none.
        edition: The candidate; "" if it did not come so far.
        reason: The first one why it was refused, or did not come so far; "" without any.
    """

    call: str
    started: str
    status: str
    logical_date: str
    edition: str
    published: str
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def summary(self) -> str:
        """For people, one line."""
        date = f" for {self.logical_date}" if self.logical_date else ""
        reason = f": {self.reason}" if self.reason else ""
        line = f"{self.started}  reprocess{date}: {self.status}{reason}  [{self.edition}]"
        return printable(line)


def read_past_calls(storage: Storage, output: str, count: int) -> list[PastCall]:
    """The newest calls of `segcore reprocess` for an output, newest first.

    Raises:
        StorageError: They cannot be listed.
    """
    calls = []
    for record in read_calls(storage, OutputLayout(normalize(output)), count):
        names = ("call", "started", "status", "logical_date", "edition", "published")
        values = {name: str(record.get(name, "")) for name in names}
        reasons = record.get("reasons")
        reason = str(reasons[0])[:200] if isinstance(reasons, list) and reasons else ""
        calls.append(PastCall(**values, reason=reason))
    return calls


def _unfinished(storage: Storage, layout: EditionLayout) -> Execution | None:
    """The execution of the newest run if it goes on, or died; None otherwise."""
    record = read_newest_run(storage, layout)
    if record is None or record.status != RUNNING:
        return None
    state = RUNNING if is_at_work(storage, layout) else DIED
    values = {**record.values, "status": state, "images_this_time": None}
    return Execution.of_record(str(record.values.get("execution", "")), values)
