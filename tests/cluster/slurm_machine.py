"""Slurm with several nodes on this machine, as root: munged, slurmctld, a slurmd for each node."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from tests.support.commands import kill_trees

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "squeue", "srun")
_GIVE_UP_S = 60
_CONF = """
ClusterName=emulated
FirstJobId={first_job}
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
SlurmctldPort={ports[0]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
KillWait=5
GresTypes=gpu
SchedulerParameters=sched_interval=2,bf_interval=2
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/completed.txt
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing_programs() -> list[str]:
    """The programs of Slurm that this machine lacks."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


class SlurmMachine:
    """A Slurm cluster for a `with` block.

    Attributes:
        folder: Its files and logs.
        environment: What its commands need.
    """

    def __init__(self, n_nodes: int = 3) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm"))
        self._nodes = [f"n{number}" for number in range(1, n_nodes + 1)]
        self._ports = _free_ports(n_nodes + 1)
        self._processes: list[subprocess.Popen[bytes]] = []
        self.environment = {
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": f"{os.environ['PATH']}:/usr/sbin",
        }

    def __enter__(self) -> SlurmMachine:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        kill_trees(self._orphans())
        shutil.rmtree(self.folder, ignore_errors=True)

    def _orphans(self) -> list[psutil.Process]:
        """What jobs left behind: without cgroups, Slurm ends only what it can still find."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("SLURM_CONF") == self.environment["SLURM_CONF"]:
                    found.append(process)
        return found

    def _start(self) -> None:
        folder, host = self.folder, socket.gethostname()
        nodes = [
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1"
            " RealMemory=1000 Gres=gpu:2 State=UNKNOWN"
            for name, port in zip(self._nodes, self._ports[1:], strict=True)
        ]
        conf = _CONF.format(
            first_job=os.getpid(),  # jobs of two such machines have files in /tmp
            host=host,
            folder=folder,
            ports=self._ports,
            nodes="\n".join(nodes),
        )
        (folder / "slurm.conf").write_text(conf)
        # Devices that exist; nothing opens them.
        (folder / "gres.conf").write_text("Name=gpu File=/dev/null,/dev/zero\n")
        (folder / "state").mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        folder.chmod(0o755)
        munge = [f"--{name}={folder}/munge.{suffix}" for name, suffix in (
            ("key-file", "key"), ("socket", "sock"), ("pid-file", "pid"),
            ("log-file", "log"), ("seed-file", "seed"),
        )]  # fmt: skip
        self._run("munged", "--foreground", "--force", *munge)
        wait_for(lambda: (folder / "munge.sock").exists(), "munged")
        self._run("slurmctld", "-D")
        for name in self._nodes:
            (folder / f"spool-{name}").mkdir()
            self._run("slurmd", "-D", "-N", name)
        wait_for(lambda: self.call("sinfo", "-h", "-t", "idle", "-o", "%D").strip()
                 == str(len(self._nodes)), "idle nodes", self.logs)  # fmt: skip

    def _run(self, program: str, *arguments: str) -> None:
        log = (self.folder / f"{program}{len(self._processes)}.out").open("wb")
        with log:
            self._processes.append(
                subprocess.Popen(
                    [program, *arguments],
                    env={**os.environ, **self.environment},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            )

    def call(self, *words: str, environment: Mapping[str, str] | None = None) -> str:
        """What a command of Slurm prints; its errors are part of it."""
        done = subprocess.run(
            words,
            env={**os.environ, **self.environment, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
            check=False,
        )
        return done.stdout

    def submit(self, *words: str, environment: Mapping[str, str] | None = None) -> str:
        """Submit a script; returns the id of the job."""
        answer = self.call("sbatch", "--parsable", *words, environment=environment)
        assert answer.strip().isdigit(), answer
        return answer.strip()

    def job(self, job: str) -> dict[str, str]:
        """What scontrol says of a job."""
        words = self.call("scontrol", "-o", "show", "job", job).split()
        return dict(word.partition("=")[::2] for word in words if "=" in word)

    def logs(self) -> str:
        """The ends of all logs, for a person who must find out what went wrong."""
        files = [path for path in sorted(self.folder.glob("*")) if path.suffix in (".log", ".out")]
        return "".join(f"--- {path.name}\n{path.read_text()[-3000:]}\n" for path in files)


def wait_for(
    condition: Callable[[], object],
    what: str,
    describe: Callable[[], str] = str,
    limit_s: float = _GIVE_UP_S,
) -> None:
    """Wait until something holds.

    Raises:
        AssertionError: It does not.
    """
    give_up_at = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < give_up_at, f"no {what} after {limit_s:.0f} s\n{describe()}"
        time.sleep(0.5)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
