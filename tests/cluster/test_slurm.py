"""cluster/slurm/segcore.sbatch on a real Slurm of three nodes on this machine."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import segcore
from tests.cluster.slurm_machine import SlurmMachine, missing_programs, wait_for
from tests.support.bright_images import bright_pngs
from tests.support.jobs import BRIGHT_MODEL, image_rows, job_config, part_bytes, write_files
from tests.support.paths import PYTHONPATH, ROOT
from tests.support.run_without_ray import without_ray

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.timeout(1800)]

SCRIPT = str(ROOT / "cluster" / "slurm" / "segcore.sbatch")
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
IMAGES = 60
_SLOW = {"FAKE_MODEL_DELAY": "0.4"}  # seconds for an image, so that there is a middle of the job
_JOB_S = 900


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmMachine]:
    if missing := missing_programs():
        pytest.skip(f"{missing[0]} is not installed (Debian: slurm-wlm and munge)")
    if os.geteuid() != 0:
        pytest.skip("several slurmd on one machine need root")
    with SlurmMachine() as machine:
        yield machine


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_files(tmp_path_factory.mktemp("archive") / "in", bright_pngs(IMAGES))


def submit(
    slurm: SlurmMachine,
    log: Path,
    *words: str,
    nodes: int = 3,
    environment: dict[str, str] | None = None,
) -> str:
    """Submit the script for nodes with two GPUs each, which nothing uses."""
    path = f"{Path(sys.executable).parent}:{slurm.environment['PATH']}"
    variables = {"PYTHONPATH": PYTHONPATH, "PATH": path, **(environment or {})}
    options = (f"--nodes={nodes}", "--gpus-per-node=2", f"--chdir={log.parent}", f"--output={log}")
    return slurm.submit(*options, SCRIPT, *words, environment=variables)


def segment(source: str, output: Path, *more: str) -> tuple[str, ...]:
    sets = ("plan.images=2", "ray.shared_paths=true", "model.device=cpu", "log.quiet=false")
    words = [word for one in sets for word in ("--set", one)]
    return ("segment", source, str(output), "--model", BRIGHT_MODEL, *words, *more)


def wait_for_the_end(slurm: SlurmMachine, job: str, log: Path) -> dict[str, str]:
    hastened: set[str] = set()  # by their counts of restarts

    def ended() -> bool:
        state = slurm.job(job)
        restarts = state["Restarts"]
        if state["JobState"] == "PENDING" and restarts != "0" and restarts not in hastened:
            # Slurm would wait two minutes. A start in the very second of the requeue is refused as
            # "Job credential revoked": that of the start before ended then.
            slurm.call("scontrol", "update", f"JobId={job}", "StartTime=now+5")
            hastened.add(restarts)
        return state["JobState"] in ENDED

    wait_for(ended, f"end of job {job}", lambda: describe(slurm, job, log), _JOB_S)
    return slurm.job(job)


def describe(slurm: SlurmMachine, job: str, log: Path) -> str:
    files = sorted(log.parent.glob("*.log"))
    text = "".join(f"--- {path.name}\n{path.read_text()[-4000:]}\n" for path in files)
    return f"{slurm.job(job)}\n{text}{slurm.logs()}"


@pytest.fixture(scope="module")
def expected(archive: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The parts of a run without Slurm and without Ray."""
    output = tmp_path_factory.mktemp("expected") / "out"
    config = job_config(archive, output, "plan.images=2", "model.device=cpu")
    with without_ray():
        assert segcore.segment(config).exit_code == 0
    return part_bytes(prefix_of(output))


def prefix_of(output: Path) -> str:
    (edition,) = (path.parent for path in output.glob("*/edition.json"))
    return str(edition)


def parts(output: Path) -> list[Path]:
    return list(output.glob("*/images/*.parquet"))


def executions(output: Path) -> list[dict[str, object]]:
    files = sorted(output.glob("*/runs/history/*.json"))
    return [json.loads(path.read_text()) for path in files]


@pytest.fixture(scope="module")
def whole(slurm: SlurmMachine, archive: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an undisturbed job on three nodes."""
    folder = tmp_path_factory.mktemp("whole")
    log = folder / "job.log"
    job = submit(slurm, log, *segment(archive, folder / "out"))
    state = wait_for_the_end(slurm, job, log)
    assert (state["JobState"], state["ExitCode"]) == ("COMPLETED", "0:0"), describe(slurm, job, log)
    return folder


def test_a_job_runs_to_its_end_on_all_nodes(whole: Path, expected: dict[str, bytes]) -> None:
    assert part_bytes(prefix_of(whole / "out")) == expected
    rows = image_rows(prefix_of(whole / "out"))
    assert len(rows) == IMAGES
    assert all(row["status"] == "ok" and row["n_instances"] == 1 for row in rows.values())
    log = (whole / "job.log").read_text()
    assert ": 3 of 3 nodes" in log
    assert "3 nodes with 3 CPUs and 6 GPUs" in log


def test_ports_are_below_10000_and_the_token_is_nowhere(whole: Path) -> None:
    log = (whole / "job.log").read_text()
    assert re.search(r"Ray at [\d.]+:6\d{3}: ", log)
    texts = [path.read_text() for path in whole.rglob("*") if path.suffix in (".log", ".json")]
    edition = next((whole / "out").glob("*/edition.json")).read_text()
    digits = re.compile(r"\b[0-9a-f]{64}\b")  # as a token has them, and hashes of weights
    assert set(digits.findall("".join(texts))) <= set(digits.findall(edition))


def test_term_stops_the_job_and_the_next_start_goes_on(
    slurm: SlurmMachine, archive: str, expected: dict[str, bytes], tmp_path: Path
) -> None:
    log, output = tmp_path / "job.log", tmp_path / "out"
    job = submit(slurm, log, *segment(archive, output), environment=_SLOW)
    wait_for(lambda: len(parts(output)) >= 3, "parts", lambda: describe(slurm, job, log), _JOB_S)
    slurm.call("scancel", "--batch", "--signal=TERM", job)
    wait_for(
        lambda: slurm.job(job)["Restarts"] == "1", "requeue", lambda: describe(slurm, job, log), 120
    )
    before = {path.name: path.stat().st_mtime_ns for path in parts(output)}
    assert 3 <= len(before) < len(expected) // 2, describe(slurm, job, log)
    assert "exit code 130; back into the queue" in log.read_text()
    state = wait_for_the_end(slurm, job, log)
    assert (state["JobState"], state["ExitCode"]) == ("COMPLETED", "0:0"), describe(slurm, job, log)
    after = {path.name: path.stat().st_mtime_ns for path in parts(output)}
    assert before.items() <= after.items()  # not one unit was done twice
    assert part_bytes(prefix_of(output)) == expected
    assert [run["status"] for run in executions(output)] == ["interrupted", "success"]
    assert "Traceback" not in log.read_text()


def test_term_to_the_steps_takes_ray_away_and_loses_nothing(
    slurm: SlurmMachine, archive: str, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """Without --batch, Slurm signals the steps alone: Ray, and not segcore."""
    log, output = tmp_path / "job.log", tmp_path / "out"
    job = submit(slurm, log, *segment(archive, output), nodes=2, environment=_SLOW)
    wait_for(lambda: len(parts(output)) >= 3, "parts", lambda: describe(slurm, job, log), _JOB_S)
    slurm.call("scancel", "--signal=TERM", job)
    wait_for(
        lambda: slurm.job(job)["Restarts"] == "1", "requeue", lambda: describe(slurm, job, log), 240
    )
    state = wait_for_the_end(slurm, job, log)
    assert (state["JobState"], state["ExitCode"]) == ("COMPLETED", "0:0"), describe(slurm, job, log)
    assert part_bytes(prefix_of(output)) == expected
    # Which of segcore and the step of Ray ends first is not ours to say.
    assert "back into the queue (start 2 of 11)" in log.read_text()


def test_a_cancelled_job_stays_cancelled(slurm: SlurmMachine, archive: str, tmp_path: Path) -> None:
    log, output = tmp_path / "job.log", tmp_path / "out"
    job = submit(slurm, log, *segment(archive, output), nodes=1, environment=_SLOW)
    wait_for(lambda: "nodes" in log.read_text() if log.exists() else False, "Ray",
             lambda: describe(slurm, job, log), _JOB_S)  # fmt: skip
    slurm.call("scancel", job)
    state = wait_for_the_end(slurm, job, log)
    assert (state["JobState"], state["Restarts"]) == ("CANCELLED", "0"), describe(slurm, job, log)


@pytest.mark.parametrize("code", [1, 2, 3, 4])
def test_exit_codes_reach_slurm(slurm: SlurmMachine, tmp_path: Path, code: int) -> None:
    log, output = tmp_path / "job.log", tmp_path / "out"
    broken = write_files(tmp_path / "in", {**bright_pngs(3), "broken.png": b"\x89PNG\r\n\x1a\n"})
    words = segment(broken, output)
    if code == 1:  # no image at all
        (tmp_path / "empty").mkdir()
        words = segment(str(tmp_path / "empty"), output)
    elif code == 2:
        words = segment(broken, output, "--set", "model.conf=2")
    elif code == 4:  # a gate refuses the share of failed images
        config = tmp_path / "nightly.yaml"
        config.write_text(
            f"input: {broken}\noutput: {output}\nmodel: {{name: {BRIGHT_MODEL}, device: cpu}}\n"
            "ray: {shared_paths: true}\n"
        )
        words = ("reprocess", str(config))
    job = submit(slurm, log, *words, nodes=1, environment={"SEGCORE_MAX_RESTARTS": "0"})
    state = wait_for_the_end(slurm, job, log)
    assert state["ExitCode"] == f"{code}:0", describe(slurm, job, log)
    assert state["JobState"] == "FAILED"
    assert f"JobId={job} " in (slurm.folder / "completed.txt").read_text()
    assert f"ExitCode={code}:0" in _completed(slurm, job)


def _completed(slurm: SlurmMachine, job: str) -> str:
    """What Slurm recorded of a job that ended."""
    lines = (slurm.folder / "completed.txt").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"JobId={job} "))
    return line


def test_work_that_is_left_goes_back_into_the_queue_so_many_times(
    slurm: SlurmMachine, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    log = tmp_path / "job.log"
    words = segment(str(tmp_path / "empty"), tmp_path / "out")
    job = submit(slurm, log, *words, nodes=1, environment={"SEGCORE_MAX_RESTARTS": "1"})
    state = wait_for_the_end(slurm, job, log)
    assert (state["ExitCode"], state["Restarts"]) == ("1:0", "1"), describe(slurm, job, log)
