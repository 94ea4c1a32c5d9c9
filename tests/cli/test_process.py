"""The process of a command ends with the command's own exit code, whatever its threads do."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.paths import PYTHONPATH

# A thread that pyarrow calls back into Python from; without `run_as_process` the end is SIGABRT.
_BUSY = """
import io, sys, threading, time
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from segcore.cli.main import run

sink = io.BytesIO()
values = np.random.default_rng(0).random(40_000)
pq.write_table(pa.table({f"c{i}": values for i in range(20)}), sink, row_group_size=1000)
reading = threading.Event()

class Slow(io.BytesIO):
    def read(self, size=-1):
        reading.set()
        time.sleep(0.05)
        return super().read(size)

file = Slow(sink.getvalue())
pa.set_cpu_count(4)
batches = pq.ParquetFile(file, pre_buffer=False).iter_batches(1000, use_threads=True)
threading.Thread(target=lambda: list(batches), daemon=True).start()
reading.wait()
sys.argv = ["segcore", *sys.argv[1:]]
run()
"""


def _run(code: str, *arguments: str, **options: int) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment, text=True, stderr=subprocess.PIPE, check=False,
        **{"stdout": subprocess.PIPE, **options},
    )  # fmt: skip


@pytest.mark.slow
def test_a_thread_at_work_does_not_change_the_exit_code() -> None:
    done = _run(_BUSY, "status", "/nonexistent/output")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("Error: ")
    assert "Fatal" not in done.stderr


@pytest.mark.slow
def test_what_was_printed_arrives_before_the_end() -> None:
    done = _run("from segcore.cli.main import run; run()", "--version")
    assert (done.returncode, done.stdout.split()[:1]) == (0, ["segcore"])
    script = (
        "import atexit, sys\nfrom segcore.cli.process import run_as_process\n"
        "def main():\n    atexit.register(print, 'closed')\n"
        "    print('x' * 100_000)\n    sys.exit(3)\n"
        "run_as_process(main)"
    )
    done = _run(script)
    assert (done.returncode, done.stdout) == (3, "x" * 100_000 + "\nclosed\n")
    unread, written = os.pipe()
    os.close(unread)
    assert _run(script.replace("sys.exit(3)", "sys.exit(0)"), stdout=written).returncode == 1
    os.close(written)


@pytest.mark.slow
def test_a_program_that_raises_ends_as_always() -> None:
    done = _run("from segcore.cli.process import run_as_process as run; run(lambda: 1 / 0)")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
