"""cluster/aws/iam-policy.json, decided as IAM does."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.manifests import CLUSTER
from tests.support.commands import call_segcore
from tests.support.jobs import BRIGHT_MODEL
from tests.support.run_without_ray import without_ray

OUTPUT = "s3://bucket/masks/"
# Whether the input is one file; where that is not to be known, it is listed.
ASKED_FIRST = {("s3:GetObject", "shards")}

POLICY = json.loads((CLUSTER / "aws" / "iam-policy.json").read_text())["Statement"]
_BUCKET = {"shards": "INPUT-BUCKET", "masks": "OUTPUT-BUCKET"}  # the server has one for both


def actions_of(statement: Mapping[str, Any]) -> list[str]:
    """The actions of a statement, which may name one of them alone."""
    actions = statement["Action"]
    return [actions] if isinstance(actions, str) else list(actions)


def is_allowed(policy: list[Mapping[str, Any]], action: str, key: str) -> bool:
    """Whether a policy allows an action.

    Args:
        key: Of an object; of a listing its prefix, or the key that is missing, where S3 asks
            whether it may say so.
    """
    bucket = f"arn:aws:s3:::{_BUCKET.get(key.partition('/')[0], 'OTHER')}"
    resource = bucket if action == "s3:ListBucket" else f"{bucket}/{key}"
    for statement in policy:
        prefixes = statement.get("Condition", {"StringLike": {"s3:prefix": ["*"]}})
        assert set(prefixes) == {"StringLike"}
        assert set(prefixes["StringLike"]) == {"s3:prefix"}
        if (
            action in actions_of(statement)
            and fnmatch.fnmatchcase(resource, statement["Resource"])
            and any(fnmatch.fnmatchcase(key, one) for one in prefixes["StringLike"]["s3:prefix"])
        ):
            return True
    return False


def without(sid: str, action: str) -> list[Mapping[str, Any]]:
    """The policy without one of its rights."""
    policy = []
    for statement in POLICY:
        actions = actions_of(statement)
        if statement["Sid"] == sid:
            actions.remove(action)
        policy.append({**statement, "Action": actions})
    return policy


def call(*words: str, code: int = 0) -> Any:
    """What a command prints with `--json`."""
    with without_ray():
        done = call_segcore(*words, "--json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def night(folder: Path, *sets: str) -> Any:
    """What `segcore reprocess` prints of a call; its configuration goes into the folder."""
    config = {
        "input": "s3://bucket/shards/",
        "output": OUTPUT,
        "model": {"name": BRIGHT_MODEL, "device": "cpu"},
        "plan": {"images": 2},
        "schedule": {"removed": "prune"},
    }
    path = folder / "nightly.yaml"
    path.write_text(yaml.safe_dump(config))
    words = [word for one in sets for word in ("--set", one)]
    return call("reprocess", str(path), *words)
