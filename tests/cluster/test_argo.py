"""cluster/argo: what is retried, the command and its configuration."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from segcore.config import load_config
from segcore.config.reprocess import ReprocessConfig
from segcore.exit_codes import ExitCode
from tests.cluster.manifests import CLUSTER, documents
from tests.docs.test_commands import check_segcore

CONFIG, WORKFLOW = documents(CLUSTER / "argo" / "cronworkflow.yaml")
(TEMPLATE,) = WORKFLOW["spec"]["workflowSpec"]["templates"]


def is_retried(status: str, exit_code: int) -> bool:
    """What the expression of the workflow says of an attempt; its language is close to Python."""
    expression = TEMPLATE["retryStrategy"]["expression"].replace("||", "or")
    assert re.fullmatch(r"[\w\s.()=\"\[\],]+", expression)

    class LastRetry:
        pass

    attempt: Any = LastRetry()
    attempt.status, attempt.exitCode = status, str(exit_code)
    return bool(eval(expression, {"lastRetry": attempt, "asInt": int}))


@pytest.mark.parametrize(
    ("code", "retried"),
    [
        (ExitCode.INCOMPLETE, True),
        (ExitCode.INTERRUPTED, True),
        (128 + 9, True),
        (128 + 15, True),
        (ExitCode.USAGE, False),
        (ExitCode.TOO_MANY_FAILED, False),
        (ExitCode.REFUSED, False),
    ],
)
def test_what_is_retried(code: int, retried: bool) -> None:
    assert is_retried("Failed", code) is retried


def test_a_pod_that_is_gone_is_retried() -> None:
    assert is_retried("Error", 0)


def test_one_call_at_a_time() -> None:
    assert WORKFLOW["spec"]["concurrencyPolicy"] == "Forbid"
    assert WORKFLOW["spec"]["schedules"] == ["0 2 * * *"]
    assert WORKFLOW["spec"]["workflowSpec"]["entrypoint"] == TEMPLATE["name"]


def test_the_command_and_its_configuration_are_taken(tmp_path: Path) -> None:
    container = TEMPLATE["container"]
    assert container["command"] == ["segcore"]
    words = [
        word.replace("{{workflow.scheduledTime}}", "2026-11-01T02:00:00Z")
        for word in container["args"]
    ]
    check_segcore(words)
    (name,) = CONFIG["data"]
    assert f"/etc/segcore/{name}" in words
    (tmp_path / name).write_text(CONFIG["data"][name])
    config = load_config(tmp_path / name, schema=ReprocessConfig)
    assert config.run.max_seconds is not None
    assert config.run.max_seconds < TEMPLATE["activeDeadlineSeconds"]
