"""Exit codes of many calls on a busy machine: none may abort in place of its own code.

    python -m tests.measure.exit_codes [--calls 200] [--at-once 2] [--busy 0] [--minutes 600]

Short commands that import Arrow and torch, of which some end with an error, and one call in ten
that segments a tiny archive with Ray. A thread that comes back from a library while Python is
dismantled once ended some 5 % of such calls with 134 (SIGABRT); that needs a busy machine to be
seen: --busy starts so many processes that do nothing but count. The table has a line for each kind
of call, with the codes that came and how often; any that is not the expected one is shown with the
end of stderr, and the exit code is 1. No call begins after --minutes: then the table has fewer.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from segcore.exit_codes import ExitCode
from segcore.storage import Storage
from segcore.testing.synthetic_archive import SyntheticArchive, write_archive
from tests.support.paths import PYTHONPATH

_SHARE_WITH_RAY = 10  # one call of so many
_STDERR_SHOWN = 1500  # characters
_SEGMENT = "segment, with Ray"


@dataclass(frozen=True)
class Call:
    """One command, and the code that it has to end with."""

    kind: str
    arguments: tuple[str, ...]
    expected: ExitCode = ExitCode.DONE


def short_calls(archive: SyntheticArchive, output: str, image: str) -> list[Call]:
    """One of each kind that starts no Ray; `output` is finished."""
    missing = f"{output}-missing"
    picture = f"{output}-{{number}}.png"
    segment = ("segment", archive.shards, output, "--set", "run.max_failed_fraction=1")
    return [
        Call("status", ("status", output)),
        Call("verify", ("verify", output)),
        Call("failures", ("failures", output)),
        Call("evaluate", ("evaluate", output, archive.ground_truth)),
        Call("predict", ("predict", image, "--out", picture)),
        Call("segment, nothing to do", segment),
        Call("status, no output", ("status", missing), ExitCode.USAGE),
        Call("evaluate, no truth", ("evaluate", output, missing), ExitCode.USAGE),
        Call("segment, no input", ("segment", missing, output), ExitCode.USAGE),
    ]


def all_calls(n_calls: int, short: Sequence[Call], archive: SyntheticArchive) -> Iterator[Call]:
    """The calls in turn; one in `_SHARE_WITH_RAY` segments the archive anew."""
    others = cycle(short)
    for number in range(n_calls):
        if number % _SHARE_WITH_RAY == 0:
            output = f"{archive.shards}-masks-{number}"
            arguments = "segment", archive.shards, output, "--set", "run.max_failed_fraction=1"
            yield Call(_SEGMENT, arguments)
        else:
            yield from islice(others, 1)


def run(number: int, call: Call, pycache: str) -> tuple[int, str]:
    """The exit code (negative: the signal that ended it), and stderr.

    The first calls compile the modules, as an installer does.
    """
    arguments = [argument.format(number=number) for argument in call.arguments]
    environment = {
        **os.environ,
        "PYTHONPATH": PYTHONPATH,
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": pycache,
    }
    done = subprocess.run(
        [sys.executable, "-m", "segcore", *arguments], env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
    )  # fmt: skip
    return done.returncode, done.stderr


@contextmanager
def busy_processes(n: int) -> Iterator[None]:
    """So many processes that take a core each, where they get one."""
    counting = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for process in counting:
            process.kill()
            process.wait()


def describe_load() -> str:
    """The load of the machine, as `uptime` has it."""
    return "load " + ", ".join(f"{value:.1f}" for value in os.getloadavg())


class Tally:
    """How the calls ended so far; says at once which ended otherwise than expected."""

    def __init__(self) -> None:
        self.codes: dict[tuple[str, ExitCode], Counter[int]] = {}
        self.n_done = self.n_unexpected = 0

    def add(self, call: Call, code: int, stderr: str) -> None:
        """Count a call that ended."""
        self.codes.setdefault((call.kind, call.expected), Counter())[code] += 1
        self.n_done += 1
        if code != call.expected:
            self.n_unexpected += 1
            print(f"{call.kind}: {code}\n{stderr[-_STDERR_SHOWN:]}", flush=True)
        if self.n_done % 20 == 0:
            print(f"{self.n_done} done; {describe_load()}", flush=True)

    def show(self) -> None:
        """Print a line for each kind of call."""
        for (kind, expected), counts in self.codes.items():
            listed = ", ".join(f"{code} x {n}" for code, n in sorted(counts.items()))
            print(f"{kind:24} expected {int(expected)}, got {listed}")
        print(f"{self.n_unexpected} of {self.n_done} ended otherwise than expected.")


def main() -> None:
    """Call, and print how the calls ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--busy", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=600)
    options = parser.parse_args()
    tally, until = Tally(), time.monotonic() + options.minutes * 60
    with tempfile.TemporaryDirectory() as folder:
        archive = write_archive(Storage(), folder, n_images=4, n_broken=1, per_shard=5)
        image, output, pycache = f"{folder}/image.png", f"{folder}/masks", f"{folder}/pyc"
        Path(image).write_bytes(_first_image(archive))
        short = short_calls(archive, output, image)
        finishing = next(call for call in short if call.arguments[:3:2] == ("segment", output))
        code, stderr = run(-1, finishing, pycache)
        if code != ExitCode.DONE:
            sys.exit(f"The first run ended with {code}:\n{stderr}")
        calls = list(all_calls(options.calls, short, archive))
        print(f"{len(calls)} calls, {options.at_once} at once; {describe_load()}", flush=True)

        def run_in_time(number: int) -> tuple[int, str] | None:
            return run(number, calls[number], pycache) if time.monotonic() < until else None

        with busy_processes(options.busy), ThreadPoolExecutor(options.at_once) as pool:
            running = {pool.submit(run_in_time, number): number for number in range(len(calls))}
            for future in as_completed(running):
                if (ended := future.result()) is not None:
                    tally.add(calls[running[future]], *ended)
    tally.show()
    sys.exit(bool(tally.n_unexpected))


def _first_image(archive: SyntheticArchive) -> bytes:
    shard = next(Path(archive.shards).glob("*.tar"))
    with tarfile.open(shard) as tar:
        members = (member for member in tar if member.name.endswith((".png", ".jpg")))
        content = tar.extractfile(next(members))
        assert content is not None
        return content.read()


if __name__ == "__main__":
    main()
