"""Uploads the stored outputs of schema 1 to an S3 server and decodes files for comparison.

Shared by `make_schema1.py`, which runs the old code, and `test_schema1.py`, which runs today's.
Nothing here imports segcore: the code under test must not take part in the comparison.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import boto3
import pyarrow.parquet as pq
from botocore.config import Config

STORE = Path(__file__).resolve().parent / "schema1"
BUCKET = "tests"
PREFIX = "schema1/"  # part of every URI, and so of every unit's name: it must never change
ROOT_URI = f"s3://{BUCKET}/{PREFIX}"
INPUTS = {"loose": "archive/loose", "tars": "archive/tars", "tables": "archive/tables"}

# Report fields that depend on time or on the machine.
VOLATILE = ("started", "finished", "timings", "images_per_second", "pool")


@dataclass(frozen=True)
class Outcome:
    """What a command did; `document` is the JSON on its stdout."""

    exit_code: int
    document: dict[str, Any]
    stderr: str


@dataclass(frozen=True)
class Stored:
    """An object below `PREFIX`."""

    data: bytes
    changed: datetime

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


class Bucket:
    """Objects below `PREFIX` on a loopback S3 server.

    Args:
        environment: The server's AWS_ variables.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._client = boto3.client(
            "s3",
            endpoint_url=environment["AWS_ENDPOINT_URL"],
            region_name=environment["AWS_REGION"],
            aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
            # Plain PUTs: the etag must be the md5 of the content, as it was in the old runs.
            config=Config(request_checksum_calculation="when_required"),
        )

    def reset(self) -> None:
        """Replace everything by the stored archives, ground truth and outputs."""
        for name in self.objects():
            self.delete(name)
        for part in ("archive", "output", "truth.json"):
            self.put_files(STORE / part, part)

    def put_files(self, source: Path, name: str) -> None:
        """Upload a file as `name`, or a folder's files below `name`."""
        if source.is_file():
            self.put(name, source.read_bytes())
            return
        for path in sorted(source.rglob("*")):
            if path.is_file():
                self.put(f"{name}/{path.relative_to(source).as_posix()}", path.read_bytes())

    @contextmanager
    def holding(self, source: Path) -> Iterator[None]:
        """Hold a folder's files, below its name, and then none there."""
        self.put_files(source, source.name)
        yield
        for name in self.objects(f"{source.name}/"):
            self.delete(f"{source.name}/{name}")

    def put(self, name: str, data: bytes) -> None:
        etag = self._client.put_object(Bucket=BUCKET, Key=PREFIX + name, Body=data)["ETag"]
        assert etag.strip('"') == hashlib.md5(data).hexdigest(), name

    def delete(self, name: str) -> None:
        self._client.delete_object(Bucket=BUCKET, Key=PREFIX + name)

    def extend(self, output: str) -> None:
        """Add the images or shards that the archive of `output` gains."""
        self.put_files(STORE / "more" / output, INPUTS[output])

    def forget_plans(self, output: str) -> None:
        """Delete the plans: the next run cuts the whole archive anew, and finds by their names
        alone which units are done."""
        for name in self.objects(f"output/{output}/"):
            if "/plans/" in name:
                self.delete(f"output/{output}/{name}")

    def objects(self, below: str = "") -> dict[str, Stored]:
        """All objects whose name starts with `below`, by the rest of their name."""
        start = PREFIX + below
        found: dict[str, Stored] = {}
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=start)
        for page in pages:
            for item in page.get("Contents", ()):
                got = self._client.get_object(Bucket=BUCKET, Key=item["Key"])
                name = item["Key"].removeprefix(start)
                found[name] = Stored(got["Body"].read(), item["LastModified"])
        return found


def run(command: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> Outcome:
    """Run a command that prints one JSON document."""
    done = subprocess.run(
        command, cwd=cwd, env=dict(environment), capture_output=True, text=True, timeout=280
    )
    assert done.stdout, f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}"
    return Outcome(done.returncode, json.loads(done.stdout), done.stderr)


def arguments(segment: Sequence[str], output: str) -> list[str]:
    """Arguments of `segcore segment` for one of the outputs, except for the model."""
    return [ROOT_URI + INPUTS[output], f"{ROOT_URI}output/{output}", *segment, "--json"]


def steady(document: Mapping[str, Any]) -> dict[str, Any]:
    """A report without the fields that differ from run to run."""
    return {key: value for key, value in document.items() if key not in VOLATILE}


def decoded(data: bytes) -> dict[str, Any]:
    """Columns, metadata and rows of a Parquet file, independent of the library that wrote it."""
    table = pq.read_table(io.BytesIO(data))
    metadata = table.schema.metadata or {}
    return {
        "columns": [[f.name, str(f.type), f.nullable] for f in table.schema],
        "metadata": {key.decode(): value.decode() for key, value in sorted(metadata.items())},
        "rows": table.to_pylist(),
    }


def is_lease(name: str) -> bool:
    """Whether a file of an output belongs to the lease; these name a process, host and user."""
    return "/lease/" in name


def is_part(name: str) -> bool:
    """Whether a file of an output is a part: rows of `images` or `instances`."""
    return "/images/" in name or "/instances/" in name
