"""What tests of rights share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.policy import POLICY, is_allowed
from tests.support.bright_images import bright_pngs
from tests.support.fake_s3 import FakeS3


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeS3]:
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    files = {f"shards/{name}": data for name, data in bright_pngs(6).items()}
    with FakeS3({**files, "private/x.png": b"x"}) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        yield server


@pytest.fixture
def rights(server: FakeS3) -> list[tuple[str, str]]:
    """(action, key) of each request that the policy refuses."""
    refused: list[tuple[str, str]] = []

    def decide(action: str, key: str) -> bool:
        if is_allowed(POLICY, action, key):
            return True
        refused.append((action, key))
        return False

    server.allows = decide
    return refused
