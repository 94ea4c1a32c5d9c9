"""A test that starts a service is marked for it, or it fails."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from segcore.testing.loopback_s3 import LoopbackS3
from tests.support.services import MARK_OF_FIXTURE


def test_a_test_without_the_mark_cannot_start_the_s3_server(tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match="without the mark `s3`"):
        LoopbackS3(tmp_path).start()


@pytest.mark.parametrize("program", ["gcs_server", "raylet"])
def test_a_test_without_the_mark_cannot_start_ray(tmp_path: Path, program: str) -> None:
    with pytest.raises(pytest.fail.Exception, match="without the mark `ray`"):
        subprocess.Popen([str(tmp_path / program)])


def test_tests_that_use_a_service_by_a_fixture_are_marked(request: pytest.FixtureRequest) -> None:
    for item in request.session.items:
        fixtures = set(getattr(item, "fixturenames", ()))
        for fixture, mark in {**MARK_OF_FIXTURE, "s3_prefix": "s3"}.items():
            assert fixture not in fixtures or item.get_closest_marker(mark), item.nodeid
