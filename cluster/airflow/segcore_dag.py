"""An Airflow DAG that calls `segcore reprocess` every night. Copy it into the folder of your DAGs.

Environment variables of the workers say what to call: SEGCORE_BIN, the command (by default
`segcore`), and SEGCORE_CONFIG, the configuration; SEGCORE_RETRY_S, after how many seconds it is
called again where that may help (by default 900). How its exit codes end the task:

    0        success: published, budget reached, or another call is at work (schedule.if_busy=skip)
    99       skipped: nothing to do
    2, 4     failed, without a retry: a usage error, or refused by a gate
    others   failed, and retried: units are missing, or infrastructure failed
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import DAG, BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

NOTHING_TO_DO = 99
USELESS_TO_REPEAT = {2: "a usage error", 4: "refused by a gate"}


class SegcoreOperator(BaseOperator):
    """Runs a command of segcore, and ends as its exit code says.

    Args:
        arguments: The command; Jinja templates are filled in.
    """

    template_fields: Sequence[str] = ("arguments",)

    def __init__(self, *, arguments: list[str], **options: Any) -> None:
        super().__init__(**options)
        self.arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None

    def execute(self, context: Any) -> None:
        """Wait for the command; its output becomes that of the task."""
        self._process = subprocess.Popen(self.arguments, start_new_session=True)
        try:
            code = self._process.wait()
        finally:
            self.on_kill()
        if code == NOTHING_TO_DO:
            raise AirflowSkipException("Nothing to do.")
        if code in USELESS_TO_REPEAT:
            raise AirflowFailException(f"Exit code {code}: {USELESS_TO_REPEAT[code]}.")
        if code != 0:
            raise AirflowException(f"Exit code {code}: call it again.")

    def on_kill(self) -> None:
        """Stop the command; what it has committed stays, and the next call goes on."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait()


with DAG(
    dag_id="segcore",
    schedule="0 2 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,  # one call brings everything up to date
    max_active_runs=1,
    tags=["segcore"],
):
    SegcoreOperator(
        task_id="reprocess",
        arguments=[
            os.environ.get("SEGCORE_BIN", "segcore"),
            "reprocess",
            os.environ.get("SEGCORE_CONFIG", "reprocess.yaml"),
            "--logical-date",
            "{{ ds }}",
            "--exit-99-if-nothing-to-do",
            "--json",
        ],
        retries=2,
        retry_delay=timedelta(seconds=float(os.environ.get("SEGCORE_RETRY_S", "900"))),
    )
