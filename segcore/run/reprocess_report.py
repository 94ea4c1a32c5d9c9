"""What a call of `segcore reprocess` came to, for people, schedulers and the record."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from segcore.exit_codes import ExitCode
from segcore.output.report import BUDGET_REACHED, RunReport
from segcore.text import align_columns

PUBLISHED, REFUSED, NOTHING_TO_DO = "published", "refused", "nothing_to_do"
BUSY, DAMAGED = "busy", "damaged"

_EXIT_CODES = {
    PUBLISHED: ExitCode.DONE,
    NOTHING_TO_DO: ExitCode.DONE,
    BUDGET_REACHED: ExitCode.DONE,
    BUSY: ExitCode.DONE,
    REFUSED: ExitCode.REFUSED,
}


@dataclass(frozen=True)
class ReprocessReport:
    """What a call came to.

    Attributes:
        status: ``published``; ``refused`` by a gate; ``budget_reached``: the next call goes on;
            ``nothing_to_do``; ``busy``: another call is at work; ``damaged``: results that exist
            are not sound; or how segmenting ended: ``incomplete``.
        logical_date: The date that the scheduler meant; "" if it said none.
        edition, run: What was segmented, the candidate.
        before: The edition that was published before this call; "" for none.
        published: The edition that is published now.
        reasons: Why it was refused, or did not come so far.
        measured: What the gates saw, by name.
        again: It was refused before for the same reasons, and nothing has changed since.
        images_this_time: Images that were segmented for the candidate.
        images_added: Images that were segmented with the published model after a refusal.
        updated: After a refusal: whether the published edition has all images that are listed;
            None if that was not asked for.
        notes: What else a person should know.
        segment: The report of the run; None if it did not come so far.
    """

    status: str
    output: str
    logical_date: str = ""
    edition: str = ""
    run: str = ""
    before: str = ""
    published: str = ""
    reasons: tuple[str, ...] = ()
    measured: dict[str, Any] = field(default_factory=dict)
    again: bool = False
    images_this_time: int = 0
    images_added: int = 0
    updated: bool | None = None
    notes: tuple[str, ...] = ()
    started: str = ""
    finished: str = ""
    segment: RunReport | None = None

    @property
    def exit_code(self) -> int:
        """See `segcore.exit_codes`."""
        return _EXIT_CODES.get(self.status, ExitCode.INCOMPLETE)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def summary(self) -> str:
        """For people, a few aligned lines."""
        rows = [("status", self.status)]
        if self.logical_date:
            rows.append(("date", self.logical_date))
        if self.edition:
            rows.append(("edition", self.edition))
        rows.append(("published", self.published or "nothing"))
        if self.segment is not None:
            images = f"{self.segment.images:,}, {self.images_this_time:,} of them this time"
            rows.append(("images", images))
        if self.updated is not None:
            added = f"{self.images_added:,} segmented with its own model"
            rows.append(("published one", f"{added}{'' if self.updated else '; not complete yet'}"))
        rows += [("" if number else "because", text) for number, text in enumerate(self.reasons)]
        return align_columns(rows)
