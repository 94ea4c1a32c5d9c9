"""A store that refuses requests from a moment of a run on, as when credentials expire."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

MOMENTS = ("listing", "first read", "middle", "commit")
_N_BEFORE = {"middle": 10, "commit": 2}  # images read, parts committed, before it begins


@dataclass
class Refusal:
    """What `FakeS3.refuse` answers.

    Attributes:
        answer: (HTTP status, error code).
        moment: One of `MOMENTS`; the first request of that kind is refused.
        only_one: That object alone, whenever it is asked for; else all requests from then on.
        key: The first object that was refused; None where it was a listing.
        has_begun: Whether anything was refused.
    """

    answer: tuple[int, str]
    moment: str
    only_one: bool = False
    key: str | None = None
    has_begun: bool = False
    _n_seen: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, method: str, key: str | None) -> tuple[int, str] | None:
        with self._lock:
            if self.has_begun:
                return self.answer if key == self.key or not self.only_one else None
            if not self._is_of_moment(method, key or ""):
                return None
            self._n_seen += 1
            if self._n_seen <= _N_BEFORE.get(self.moment, 0):
                return None
            self.has_begun, self.key = True, key
            return self.answer

    def _is_of_moment(self, method: str, key: str) -> bool:
        if self.moment == "listing":
            return not key
        if self.moment == "commit":
            return method == "PUT" and "/images/" in key
        return method == "GET" and key.startswith("in/")
