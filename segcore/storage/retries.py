"""How long to wait before a request is sent again, and for how long to go on sending it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

_FIRST_DELAY_S, _MAX_DELAY_S = 0.1, 15.0
_PATIENT_ATTEMPT = 7  # from here on a delay is about the longest
_PATIENCE_S_PER_RETRY = 15.0
_Result = TypeVar("_Result")


def sleep_before_retry(attempt: int) -> None:
    """Sleep before retry number `attempt` (from 0): exponential backoff with full jitter."""
    time.sleep(random.uniform(0, min(_MAX_DELAY_S, _FIRST_DELAY_S * 2**attempt)))


class Patience:
    """How long one request is repeated that the store refuses because there are too many.

    By default two minutes: other requests are refused for the same reason, and giving up would only
    send them anew. A request that is hardly repeated at all, as that of a heartbeat, has none.

    Args:
        retries: How often requests are repeated that fail otherwise.
    """

    def __init__(self, retries: int) -> None:
        self._seconds = retries * _PATIENCE_S_PER_RETRY if retries > 1 else 0.0
        self._began: float | None = None

    def wait(self) -> bool:
        """Wait before the next attempt; False once that is of no use any more."""
        if self._began is None:
            self._began = time.monotonic()
        if time.monotonic() - self._began >= self._seconds:
            return False
        sleep_before_retry(_PATIENT_ATTEMPT)
        return True


def repeat_while_throttled(
    action: Callable[[], _Result], is_throttled: Callable[[Exception], bool], retries: int
) -> _Result:
    """Run an action that retries what fails otherwise."""
    patience = Patience(retries)
    while True:
        try:
            return action()
        except Exception as error:
            if not is_throttled(error) or not patience.wait():
                raise
