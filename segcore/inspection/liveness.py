"""Signs of life of a run: how fast it is, and who may write into its edition."""

from __future__ import annotations

from dataclasses import dataclass

from segcore.lease.observation import RELEASED
from segcore.text import format_duration


@dataclass(frozen=True)
class Pace:
    """How fast the run in progress is.

    Attributes:
        images_per_second: Over the newest parts of this run; 0 before there are any.
        eta_s: Seconds left at that pace; None when unknown.
        last_commit_s: Seconds since the newest part, by this machine's clock; None before there
            is one.
    """

    images_per_second: float = 0.0
    eta_s: float | None = None
    last_commit_s: float | None = None

    def summary(self) -> str:
        """For people, one line."""
        if self.last_commit_s is None:
            return "no part committed yet by this run"
        eta = "-" if self.eta_s is None else format_duration(self.eta_s)
        ago = format_duration(self.last_commit_s)
        return f"{self.images_per_second:.1f} images/s · ETA {eta} · newest part {ago} ago"


@dataclass(frozen=True)
class LeaseState:
    """Who may write into the edition.

    Attributes:
        state: ``held``; or free, because it was ``released``, its process is ``gone``, or it
            ``expired``.
        holder: For people.
        host, pid, user: The same in parts; None when the lease file is not one of segcore's.
        since: When it began, by the holder's own clock.
        last_heartbeat_s: Seconds since its last heartbeat by the storage's clock; None when that
            was not needed, or could not be found out.
    """

    state: str
    holder: str
    last_heartbeat_s: float | None
    host: str | None = None
    pid: int | None = None
    user: str | None = None
    since: str | None = None

    def summary(self) -> str:
        """For people, one line; "" when there is no holder any more."""
        if self.state == RELEASED:
            return ""
        age_s = self.last_heartbeat_s
        heartbeat = "" if age_s is None else f"; last heartbeat {format_duration(age_s)} ago"
        return f"{self.state}: {self.holder}{heartbeat}"
