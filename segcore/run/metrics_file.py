"""The metrics of a run as a text file, for the node exporter of Prometheus; with or without Ray."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from segcore.errors import SegcoreError, UsageError
from segcore.exit_codes import ExitCode
from segcore.output.metrics import to_text
from segcore.output.report import RunReport
from segcore.run.passes import RunState

Labels = tuple[tuple[str, str], ...]


@contextmanager
def metrics_file(path: str | None, state: RunState) -> Iterator[Callable[[RunReport], None]]:
    """Write the file when the block begins and when it ends, however it ends.

    Args:
        path: Local; None for no file.

    Yields:
        What takes the report.

    Raises:
        UsageError: The file cannot be written when the block begins.
    """
    if path is None:
        yield lambda report: None
        return
    reports: list[RunReport] = []
    began = time.time()
    try:
        _write(Path(path), "", state, _run_values(began, state, None, None))
    except OSError as error:
        raise UsageError(
            f"The metrics file {path} cannot be written: {error.strerror}.",
            hint="Its folder must exist; for the node exporter it is that of "
            "--collector.textfile.directory, and the name ends with .prom.",
        ) from None
    code: int = ExitCode.INCOMPLETE
    try:
        yield reports.append
        code = reports[-1].exit_code if reports else ExitCode.INCOMPLETE
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
        raise
    except SegcoreError as error:
        code = error.exit_code
        raise
    finally:
        report = reports[-1] if reports else state.started
        edition = report.edition if report else ""
        try:
            _write(Path(path), edition, state, _run_values(began, state, report, code))
        except OSError as error:
            state.warn(f"The metrics file {path} cannot be written: {error.strerror}.")


def _run_values(
    began: float, state: RunState, report: RunReport | None, code: int | None
) -> dict[str, tuple[str, dict[Labels, float]]]:
    """Gauges about the run itself; `code` is None while it is in progress."""
    is_over = code is not None
    values: dict[str, tuple[str, dict[Labels, float]]] = {
        "segcore_run_started_timestamp_seconds": ("When the command began.", {(): began}),
        "segcore_run_in_progress": ("1 until it has ended.", {(): float(not is_over)}),
    }
    if code is None:
        return values
    values |= {
        "segcore_run_finished_timestamp_seconds": ("When it ended.", {(): time.time()}),
        "segcore_run_exit_code": ("What it ended with.", {(): float(code)}),
        "segcore_run_step_seconds": (
            "Seconds of its steps.",
            {(("step", step),): seconds for step, seconds in state.timings.items()},
        ),
    }
    if report is not None:
        values |= {
            "segcore_run_images": (
                "Images of the input with a row in the output.",
                {(("status", "ok"),): report.ok, (("status", "failed"),): report.failed},
            ),
            "segcore_run_units": ("Units of the plan.", {(): report.units}),
            "segcore_run_units_missing": ("Units without a result.", {(): report.units_missing}),
        }
    return values


def _write(
    path: Path, edition: str, state: RunState, run: dict[str, tuple[str, dict[Labels, float]]]
) -> None:
    """Replace the file as a whole: the collector may read at any time.

    Raises:
        OSError: It cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_text(to_text(state.samples, run, edition))
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
