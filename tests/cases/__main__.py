"""Runs every row of ../shared/cases/README.md and prints what happens now.

    python -m tests.cases              # all rows; four minutes on two cores
    python -m tests.cases tar hostile  # rows whose names begin so

Images are segmented by the bundled model in this process, without Ray. A row is wrong if what
happens is not what its README calls right; the exit code is 1 then. The files lie outside of the
repository: without that folder nothing is run.
"""

from __future__ import annotations

import sys
import tempfile
import traceback
from pathlib import Path

from tests.cases.rows import CASES, Case
from tests.support.paths import SHARED


def main() -> int:
    """Run the rows that are asked for; returns the exit code."""
    if not (SHARED / "cases").exists():
        print(f"the cases are not here: {SHARED / 'cases'}")
        return 0
    wanted = tuple(sys.argv[1:])
    n_wrong = n_run = 0
    for case in CASES:
        if wanted and not case.name.startswith(wanted):
            continue
        found, is_right = _run(case)
        n_run += 1
        n_wrong += not is_right
        print(f"{'right' if is_right else 'WRONG':6}{case.name:37}{found}", flush=True)
    print(f"{n_run} rows, {n_wrong} wrong")
    return 1 if n_wrong else 0


def _run(case: Case) -> tuple[str, bool]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = case.run(Path(folder))
        except Exception:
            return traceback.format_exc(limit=-3), False
    return found, found == case.right or (callable(case.right) and case.right(found))


if __name__ == "__main__":
    sys.exit(main())
