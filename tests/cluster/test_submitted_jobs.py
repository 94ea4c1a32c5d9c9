"""segcore submit against a real job server: ends, refusals, cancelling, reconnecting, dying."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.cluster.ray_head import RayHead
from tests.support.bright_images import bright_pngs
from tests.support.jobs import BRIGHT_MODEL, image_rows, write_files
from tests.support.nights import BLIND_MODEL
from tests.support.paths import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.timeout(1800)]

IMAGES = 40
_PRIVATE = "PRIVATE-d41d8cd9"


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    head = RayHead({"FAKE_MODEL_DELAY": "0.3", "SOME_SECRET": _PRIVATE})
    yield head
    head.stop()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_files(tmp_path_factory.mktemp("archive") / "in", bright_pngs(IMAGES))


def _config(folder: Path, source: object, output: Path, more: str = "") -> str:
    path = folder / f"{output.name}.yaml"
    path.write_text(
        f"input: {source}\noutput: {output}\nplan: {{images: 4}}\n"
        f"model: {{name: '{BRIGHT_MODEL}', device: cpu}}\n{more}"
    )
    return str(path)


def _few(folder: Path, number: int, **others: bytes) -> str:
    files = bright_pngs(number) | {f"{name}.png": data for name, data in others.items()}
    return write_files(folder / "few", files)


def _edition(output: Path) -> str:
    return str(output / json.loads((output / "latest.json").read_text())["edition"])


def test_success_failure_and_refusal_end_with_their_own_codes(
    head: RayHead, tmp_path: Path
) -> None:
    log, output = tmp_path / "log", tmp_path / "out"
    source = _few(tmp_path, 6, broken=b"\x89PNG broken")
    config = _config(tmp_path, source, output)

    code, stdout = head.submit(config, "--json", log=log)
    document = json.loads(stdout)
    assert (code, document["exit_code"], document["status"]) == (3, 3, "FAILED"), log.read_text()
    assert "1 of 7 images failed" in log.read_text()

    code, stdout = head.submit(config, "--set", "run.max_failed_fraction=0.5", log=log)
    assert code == 0, stdout + log.read_text()
    assert "status     success" in stdout
    assert len(image_rows(_edition(output))) == 7

    words = ("--set", f"model.name={BLIND_MODEL}", "--set", "run.max_failed_fraction=0.5")
    code, stdout = head.submit("reprocess", config, *words, log=log)
    assert code == 4, stdout + log.read_text()
    assert "Objects vanished" in stdout


def test_ctrl_c_stops_the_job_and_the_next_one_resumes(
    head: RayHead, archive: str, tmp_path: Path
) -> None:
    log, output = tmp_path / "log", tmp_path / "out"
    config = _config(tmp_path, archive, output)
    process = head.segcore("submit", config, "--address", head.address, log=log)
    _wait_for_parts(output, 2, process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)
    assert process.returncode == 130, log.read_text()
    assert "STOPPED, exit code 130" in log.read_text()
    (record,) = output.glob("*/runs/history/*.json")
    assert json.loads(record.read_text())["status"] == "interrupted"  # cleanly, lease and all
    code, _ = head.submit(config, "--json", log=log)
    assert code == 0, log.read_text()
    assert "done before" in log.read_text()
    assert len(image_rows(_edition(output))) == IMAGES


def test_a_client_that_died_is_followed_by_another(
    head: RayHead, archive: str, tmp_path: Path
) -> None:
    log, output = tmp_path / "log", tmp_path / "out"
    config = _config(tmp_path, archive, output, "run: {max_failed_fraction: 0}\n")
    code, stdout = head.submit(config, "--no-wait", "--json", log=log)
    assert code == 0, log.read_text()
    job = json.loads(stdout)["job"]
    first = head.segcore("submit", "--attach", job, "--address", head.address, log=log)
    _wait_for_parts(output, 1, first)
    first.kill()
    first.wait()
    code, stdout = head.submit("--attach", job, log=log)
    assert code == 0, log.read_text()
    assert stdout.count("Running entrypoint") == 1  # from the beginning, each line once
    code, _ = head.submit("--attach", job, "--json", log=log)  # after its end, too
    assert code == 0
    code, _ = head.submit("--attach", "no-such-job", log=log)
    assert code == 2
    assert "has no job no-such-job" in log.read_text()


def test_the_ports_of_a_running_job_are_those_of_the_page(
    head: RayHead, archive: str, tmp_path: Path
) -> None:
    page = (ROOT / "docs" / "submit.md").read_text()
    table = dict(re.findall(r"^\| ([a-z ]+) \| (loopback|all addresses) \|", page, re.MULTILINE))
    process = head.segcore(
        "submit", _config(tmp_path, archive, tmp_path / "out"), "--address", head.address,
        log=tmp_path / "log",
    )  # fmt: skip
    _wait_for_parts(tmp_path / "out", 1, process)
    listeners = head.listeners()
    process.send_signal(signal.SIGTERM)  # as a scheduler does
    process.communicate(timeout=300)
    assert process.returncode == 130
    found: dict[str, set[str]] = {}
    for role, address, _ in listeners:
        scope = "loopback" if address in ("127.0.0.1", "::1") else "all addresses"
        found.setdefault(role, set()).add(scope)
    summary = {role: min(scopes) for role, scopes in found.items()}  # "all addresses" comes first
    assert summary == table, sorted(listeners)
    port = int(head.address.rpartition(":")[2])
    assert {address for _, address, number in listeners if number == port} == {"127.0.0.1"}


def test_an_image_without_podman_on_the_nodes_is_said(head: RayHead, tmp_path: Path) -> None:
    log = tmp_path / "log"
    words = ("segment", _few(tmp_path, 6), str(tmp_path / "out"), "--model", BRIGHT_MODEL)
    code, _ = head.submit(*words, "--image", "registry.example.com/segcore:1", log=log)
    assert code == 1, log.read_text()
    assert "The job did not come to its end: runtime_env setup failed" in log.read_text()
    assert not (tmp_path / "out").exists()


def test_the_token_is_wanted_and_is_nowhere(head: RayHead, tmp_path: Path) -> None:
    """After the jobs above: neither the token nor the environment is in any file or answer."""
    log = tmp_path / "log"
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(head.environment, "RAY_AUTH_TOKEN")
        code, _ = head.submit("--attach", "x", log=log)
        assert (code, "wants a token" in log.read_text()) == (1, True)
        patch.setitem(head.environment, "RAY_AUTH_TOKEN", "0" * 64)
        code, _ = head.submit("--attach", "x", log=log)
        assert (code, "does not accept the token" in log.read_text()) == (1, True)
    for path in head.logs():
        data = path.read_bytes()
        assert head.token.encode() not in data, path
        assert _PRIVATE.encode() not in data, path


def test_a_head_that_dies_is_said_and_the_next_one_resumes(
    head: RayHead, archive: str, tmp_path: Path
) -> None:
    log, output = tmp_path / "log", tmp_path / "out"
    process = head.segcore(
        "submit", _config(tmp_path, archive, output), "--address", head.address, log=log
    )
    _wait_for_parts(output, 2, process)
    head.kill()
    process.communicate(timeout=300)
    assert process.returncode == 1, log.read_text()
    assert "has not answered for" in log.read_text()
    assert "submit it again to resume" in log.read_text()
    assert head.processes() == []
    assert len(list(output.glob("*/images/*.parquet"))) >= 2


def _wait_for_parts(output: Path, number: int, process: psutil.Popen) -> None:
    """Wait until so many units are committed, which is the middle of the job."""
    give_up_at = time.monotonic() + 400
    while len(list(output.glob("*/images/*.parquet"))) < number:
        assert process.poll() is None
        assert time.monotonic() < give_up_at
        time.sleep(0.1)
