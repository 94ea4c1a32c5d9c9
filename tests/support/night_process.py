"""One call of a scheduler in a process of its own, without Ray."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from segcore.config import load_config
from segcore.config.reprocess import ReprocessConfig
from segcore.run.reprocess import reprocess
from segcore.storage import Storage
from tests.support.jobs import BRIGHT_MODEL
from tests.support.run_without_ray import without_ray


class NightProcess:
    """A call that has begun; the modules are imported once for all of them.

    Args:
        folder: Has the archive `in`; the output is `out`.
        kill_before: The process kills itself with SIGKILL before it writes an object whose URI
            holds this text; "" for never.
    """

    def __init__(self, folder: str, *sets: str, kill_before: str = "") -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._answer, answer = context.Pipe(duplex=False)
        arguments = (answer, folder, sets, dict(os.environ), kill_before)
        self._process = context.Process(target=_call, args=arguments)
        self._process.start()
        answer.close()

    def join(self) -> tuple[int | None, str]:
        """Its exit code, and the status of the call; "" if it did not come so far."""
        try:
            status = str(self._answer.recv())
        except EOFError:
            status = ""
        self._process.join()
        return self._process.exitcode, status


def _call(
    answer: Connection,
    folder: str,
    sets: tuple[str, ...],
    environment: Mapping[str, str],
    kill_before: str,
) -> None:
    os.environ.update(environment)
    flags = {
        "input": ("input", f"{folder}/in"),
        "output": ("output", f"{folder}/out"),
        "model": ("model.name", BRIGHT_MODEL),
    }
    sets = ("plan.images=3", "run.lease_ttl_s=60", "schedule.if_busy=wait", *sets)
    config = load_config(sets=list(sets), flags=flags, schema=ReprocessConfig)
    if kill_before:
        die_before_writing(kill_before)
    with without_ray():
        answer.send(reprocess(config).status)


def die_before_writing(place: str) -> None:
    """Let this process kill itself before it writes an object whose URI holds this text."""
    write = Storage.write

    def watched(storage: Storage, uri: str, data: Any) -> Any:
        if place in uri:
            os.kill(os.getpid(), signal.SIGKILL)
        return write(storage, uri, data)

    Storage.write = watched  # type: ignore[method-assign]
