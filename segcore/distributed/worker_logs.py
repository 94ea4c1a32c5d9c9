"""The log of a worker process: to the driver with its progress, and to Ray's file of its stderr."""

from __future__ import annotations

import logging
import os
import socket
import warnings

from segcore.logs.records import LOGGER_NAME
from segcore.logs.relay import LogBuffer


def collect_log(level: int) -> LogBuffer:
    """Collect the log of this process from now on, Python's warnings included.

    Args:
        level: The least severe records of segcore that are wanted.
    """
    buffer = LogBuffer(level, f"{os.getpid()} on {socket.gethostname()}")
    root = logging.getLogger()
    for handler in [known for known in root.handlers if isinstance(known, LogBuffer)]:
        root.removeHandler(handler)
    if not root.handlers:
        root.addHandler(logging.StreamHandler())
    root.addHandler(buffer)
    logging.getLogger(LOGGER_NAME).setLevel(level)
    logging.captureWarnings(True)
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # for developers
    return buffer
