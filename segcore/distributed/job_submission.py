"""A command of segcore as a job of a cluster: what is sent, and what of it Ray shows to others."""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segcore.distributed import quiet
from segcore.distributed.code_version import code_to_ship
from segcore.distributed.job_server import JobServer
from segcore.errors import ClusterError, UsageError
from segcore.text import format_bytes, one_line
from segcore.version import __version__

STOP_WAIT_S = 120  # for the unit in progress and the lease; by default Ray kills after 3 s
MAX_SENT_BYTES = 500 << 20  # Ray refuses packages over 512 MiB
_ENTRYPOINT = "exec python -m segcore"  # `exec`: its signals and its exit code are the command's


@dataclass(frozen=True)
class JobRequest:
    """What is submitted.

    Attributes:
        words: The command line behind `segcore`, as it is run on the cluster.
        files: Path in the job's working directory -> local file that is sent.
        working_dir: A folder whose content is sent, too.
        image: Container image in which the job runs; nothing is sent then.
        ship_code: Send segcore's own code.
        driver_cpus, driver_gpus: What the process that runs the command takes.
        job_id: "" for a new one.
    """

    words: Sequence[str]
    files: Mapping[str, Path] = field(default_factory=dict)
    working_dir: Path | None = None
    image: str = ""
    ship_code: bool = False
    driver_cpus: float = 0.0
    driver_gpus: float = 0.0
    job_id: str = ""

    @property
    def entrypoint(self) -> str:
        """The command of the job."""
        return shlex.join(_ENTRYPOINT.split() + list(self.words))


def new_job_id(command: str) -> str:
    """An id that tells people what it is, and that no other job has."""
    return f"segcore-{command}-{secrets.token_hex(4)}"


def submit(server: JobServer, request: JobRequest) -> str:
    """Send the job and start it; returns its id.

    Raises:
        UsageError: There is a job with this id, or too much to send.
        ClusterError: The server does not take it.
    """
    job_id = request.job_id or new_job_id(request.words[0])
    with ExitStack() as stack:
        stack.enter_context(quiet.no_ray_output())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="segcore-job-")))
        try:
            server.client.submit_job(
                entrypoint=request.entrypoint,
                submission_id=job_id,
                runtime_env=_runtime_env(request, folder),
                metadata={"segcore": __version__, "command": request.words[0]},
                entrypoint_num_cpus=request.driver_cpus or None,
                entrypoint_num_gpus=request.driver_gpus or None,
            )
        except UsageError:
            raise
        except Exception as error:  # Ray raises bare ones
            raise _refusal(error, job_id, server) from None
    return job_id


def _runtime_env(request: JobRequest, folder: Path) -> dict[str, Any]:
    """Ray's runtime environment; anybody who reads the dashboard sees it."""
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}
    if request.image:
        return {"image_uri": request.image, "env_vars": variables}
    environment: dict[str, Any] = {"env_vars": variables}
    if request.working_dir is not None:
        shutil.copytree(request.working_dir, folder, dirs_exist_ok=True, ignore=_not_sent)
    for name, source in request.files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > MAX_SENT_BYTES:
        raise UsageError(
            f"The job's files take {format_bytes(size)}; Ray takes {format_bytes(MAX_SENT_BYTES)}.",
            hint="Put large files into a bucket or the image, and name them there.",
        )
    if request.files or request.working_dir is not None:
        environment["working_dir"] = str(folder)
    if request.ship_code:
        environment |= code_to_ship()
    return environment


def _not_sent(folder: str, names: list[str]) -> list[str]:
    """Names of a working directory that stay here: those that begin with a dot, and caches.

    A `.env` or `.aws` holds secrets, and everyone on the cluster can read what is sent. Links are
    not followed out of the folder.
    """
    return [
        name
        for name in names
        if name.startswith(".")
        or name == "__pycache__"
        or os.path.islink(os.path.join(folder, name))
    ]


def _refusal(error: Exception, job_id: str, server: JobServer) -> UsageError | ClusterError:
    text = one_line(error, 400)
    if "already exists" in text:
        return UsageError(
            f"There is a job {job_id} on the cluster already.",
            hint=f"To follow it: segcore submit --attach {job_id} --address {server.address}",
        )
    return ClusterError(f"The job server at {server.address} did not take the job: {text}")
