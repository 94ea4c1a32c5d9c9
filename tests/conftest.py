"""Fixtures shared by all tests, and marks by what a test starts."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from segcore.testing.loopback_s3 import LoopbackS3
from tests.support import services
from tests.support.paths import PYTHONPATH, SHARED

# Small tensors: more threads only wait for each other, and badly so on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No deadlines: how long an example takes says something about the machine, not about the code.
settings.register_profile("segcore", deadline=None, max_examples=50)
# CI tries the same examples each time: what it says is about the change. People find new ones.
settings.register_profile("ci", settings.get_profile("segcore"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "segcore")

# A shell that starts the tests in the background has SIGINT ignored, in all that they start, too.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure() -> None:
    """Watch what tests start."""
    services.watch_started_processes()


@pytest.hookimpl(tryfirst=True)  # before pytest applies `-m`
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that start Ray or the S3 server by a fixture."""
    services.mark_by_fixtures(items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let a test start only the services that it is marked with."""
    with services.only_marked_services(item):
        return (yield)


@pytest.fixture(autouse=True)
def _the_logger_is_as_before() -> Iterator[None]:
    """A command that shows its log on stderr would hide the records of later tests."""
    yield
    if stderr_log := sys.modules.get("segcore.cli.stderr_log"):
        stderr_log.hide_log()
    logging.getLogger("segcore").setLevel(logging.NOTSET)  # an actor without Ray sets it


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The labelled images beside the checkout; they are never part of the repository."""
    path = SHARED / "data"
    if not path.is_dir():
        pytest.skip("the labelled images (../shared/data) are not on this machine")
    return path


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackS3]:
    """A real S3 server with one bucket; from first use on, the AWS_ variables point to it."""
    server = LoopbackS3(tmp_path_factory.mktemp("s3"), bucket="tests")
    with server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="module")
def ray_session(s3: LoopbackS3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One local Ray for all tests of a file; its workers know the S3 server and the fake models."""
    from segcore.config import RayOptions
    from segcore.distributed.cluster import connected

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PYTHONPATH)
        patch.setenv("FAKE_MODEL_MENDED", str(tmp_path_factory.mktemp("fake_model") / "mended"))
        with connected(RayOptions()):
            yield


_prefix_numbers = itertools.count()


@pytest.fixture
def s3_prefix(s3: LoopbackS3) -> str:
    """An empty prefix of its own for each test, such as `s3://tests/t3`."""
    return f"s3://{s3.bucket}/t{next(_prefix_numbers)}"


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.s3)])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder: once on disk, once on S3."""
    if request.param == "disk":
        return str(tmp_path / "folder")
    return str(request.getfixturevalue("s3_prefix"))
