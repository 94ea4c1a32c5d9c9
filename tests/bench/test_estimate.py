"""How long a job takes, by a bench's JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from segcore.bench.estimate import estimate_job, read_bench
from segcore.errors import UsageError
from segcore.output.preview import Preview
from segcore.storage import Storage

PLANNED = Preview(
    input="in",
    prefix="out/m-1",
    model="m",
    kind="tar",
    images=1000,
    units=10,
    bytes=100_000_000,
    images_done=200,
    units_done=2,
    units_stale=0,
    bytes_done=40_000_000,
)
BENCH: dict[str, Any] = {
    "machine": {"cpu": "A CPU", "cores": 16, "gpu": "A GPU"},
    "model": "m",
    "device": "cuda:0",
    "job": {"workers": "1 actor", "job_images_per_s": 20.0, "bytes_per_image": 50_000.0},
}


def _read(folder: Path, document: object):
    path = folder / "bench.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return read_bench(Storage(), str(path))


def test_images_that_are_known_are_divided_by_the_speed(tmp_path: Path) -> None:
    estimate = estimate_job(PLANNED, _read(tmp_path, BENCH))
    assert (estimate.images, estimate.is_counted, estimate.seconds) == (800, True, 40.0)
    summary = estimate.summary()
    assert "800 images in 0:40 on one machine" in summary
    assert "A GPU, 16 cores; 1 actor" in summary


def test_images_that_are_counted_when_read_are_guessed_from_their_bytes(tmp_path: Path) -> None:
    planned = replace(PLANNED, images=None, images_done=None)
    estimate = estimate_job(planned, _read(tmp_path, BENCH | {"device": "cpu"}))
    assert (estimate.images, estimate.is_counted, estimate.seconds) == (1200, False, 60.0)
    assert "some 1,200 images of 48.8 KiB in 1:00" in estimate.summary()
    assert "A CPU" in estimate.summary()


def test_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="measured n, and this job runs m"):
        estimate_job(PLANNED, _read(tmp_path, BENCH | {"model": "n"}))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "not a result"),
        ([1], "not a result"),
        ({}, "not a result"),
        (BENCH | {"job": None}, "stages only"),
        (BENCH | {"machine": None}, "not a result"),
        (BENCH | {"job": BENCH["job"] | {"job_images_per_s": "fast"}}, "not a result"),
        (BENCH | {"job": BENCH["job"] | {"job_images_per_s": 0}}, "no speed"),
        (BENCH | {"job": BENCH["job"] | {"job_images_per_s": float("nan")}}, "no speed"),
        (BENCH | {"job": BENCH["job"] | {"bytes_per_image": -1}}, "no speed"),
        (BENCH | {"job": BENCH["job"] | {"bytes_per_image": float("inf")}}, "no speed"),
        (BENCH | {"job": BENCH["job"] | {"job_images_per_s": 1e-308}}, "no speed"),
        (BENCH | {"job": BENCH["job"] | {"bytes_per_image": 1e-300}}, "no speed"),
        (BENCH | {"job": BENCH["job"] | {"job_images_per_s": 10**400}}, "not a result"),
        (BENCH | {"machine": BENCH["machine"] | {"cores": float("inf")}}, "not a result"),
    ],
)
def test_what_is_no_result_is_refused_by_name(
    tmp_path: Path, document: object, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        _read(tmp_path, document)
