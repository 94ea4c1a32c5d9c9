"""How long to wait before a request is sent again."""

from __future__ import annotations

import random
import time

_FIRST_DELAY_S, _MAX_DELAY_S = 0.1, 15.0


def sleep_before_retry(attempt: int) -> None:
    """Sleep before retry number `attempt` (from 0): exponential backoff with full jitter."""
    time.sleep(random.uniform(0, min(_MAX_DELAY_S, _FIRST_DELAY_S * 2**attempt)))
