"""Runs the DAG of cluster/airflow in a real Airflow, in an environment of its own.

    python -m tests.schedulers

The first run makes `.venv-airflow` (some minutes). A command that stands for `segcore` ends with
the exit codes of each case; the table on stdout says what became of the task, and the exit code is
1 if one of them ended otherwise than the DAG promises.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

from tests.support.environments import environment
from tests.support.paths import ROOT

WORK = ROOT / "build" / "airflow"
AIRFLOW = "apache-airflow==3.3.*"
DATE = "2026-11-{:02d}"
# Exit codes of the calls -> the state of the task, and how often the command was called.
CASES = [([0], "success", 1), ([99], "skipped", 1), ([4], "failed", 1), ([2], "failed", 1),
         ([1, 0], "success", 2), ([1, 1, 1], "failed", 3)]  # fmt: skip
STANDS_FOR_SEGCORE = """#!{python}
import json, os, sys
from pathlib import Path
folder = Path(os.environ["STANDS_FOR_SEGCORE"])
codes = json.loads((folder / "codes").read_text())
with open(folder / "calls", "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
(folder / "codes").write_text(json.dumps(codes[1:]))
sys.exit(codes[0])
"""


def airflow(*arguments: str) -> str:
    """Output of a command of Airflow; its own exit code says nothing of the task."""
    variables = {
        **os.environ,
        "AIRFLOW_HOME": str(WORK / "home"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "cluster" / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "SEGCORE_BIN": str(WORK / "segcore"),
        "SEGCORE_CONFIG": "nightly.yaml",
        "SEGCORE_RETRY_S": "1",
        "STANDS_FOR_SEGCORE": str(WORK),
    }
    programs = environment(".venv-airflow", [AIRFLOW]).parent
    command = [str(programs / "airflow"), *arguments]
    done = subprocess.run(command, cwd=WORK, env=variables, capture_output=True, text=True)
    return done.stdout + done.stderr


def prepare() -> None:
    """Airflow with nothing in it, and a command that stands for segcore."""
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    (WORK / "segcore").write_text(STANDS_FOR_SEGCORE.format(python=sys.executable))
    (WORK / "segcore").chmod(0o755)
    airflow("db", "migrate")


def run_case(day: int, codes: list[int]) -> tuple[str, list[list[str]]]:
    """The state of the task, and the arguments of each call of the command."""
    (WORK / "codes").write_text(json.dumps(codes))
    (WORK / "calls").unlink(missing_ok=True)
    log = airflow("dags", "test", "segcore", DATE.format(day))
    (WORK / f"log-{day}").write_text(log)
    calls = WORK / "calls"
    lines = calls.read_text().splitlines() if calls.exists() else []
    states = [part.split()[0] for part in log.replace("'", "").split("new_state=")[1:]]
    return states[-1] if states else "none", [json.loads(line) for line in lines]


def main() -> int:
    """Run all cases; 1 if one ended otherwise than expected."""
    prepare()
    is_right = True
    for day, (codes, expected, n_calls) in enumerate(CASES, 1):
        state, calls = run_case(day, codes)
        dates = [call[call.index("--logical-date") + 1] for call in calls]
        passed = state == expected and dates == [DATE.format(day)] * n_calls
        is_right &= passed
        verdict = "as expected" if passed else f"expected {expected}, {n_calls} calls"
        print(f"exit codes {codes}: {state}, --logical-date {dates}: {verdict}")
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
