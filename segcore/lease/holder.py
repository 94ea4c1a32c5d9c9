"""Who holds a lease: a process, in words that people and other processes can judge.

Read from storage, such a word is untrusted: its size, types and ranges are checked, and what
people see of it holds no control characters.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import secrets
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from segcore.text import printable

MAX_BYTES = 4096
MAX_TTL_S = 3600.0

_Short = Annotated[str, Field(max_length=255)]


class Holder(BaseModel):
    """A process that holds a lease, or held it. Contains no secret.

    Attributes:
        id: Random; no two leases ever have the same.
        machine: Names the boot of a machine and the process namespace in it; "" where the
            system does not tell (not Linux). Only within one `machine` does `pid` say anything.
        born: When the process began, in the kernel's ticks since boot: a number that came up
            again names another process.
        since: UTC, ISO 8601, by the holder's own clock; for people, never compared.
        beats: Heartbeats so far; each one changes the file.
    """

    model_config = ConfigDict(frozen=True, strict=True, validate_by_name=True)

    id: _Short
    host: _Short
    pid: int = Field(ge=1, lt=2**31)
    user: _Short
    since: _Short
    machine: _Short
    process_start_ticks: int = Field(alias="born", ge=0, lt=2**63)  # its name in lease files
    ttl_s: float = Field(gt=0, le=MAX_TTL_S)
    beats: int = Field(0, ge=0, lt=2**63)
    released: bool = False

    @classmethod
    def here(cls, ttl_s: float) -> Holder:
        """This process, with an id of its own."""
        pid = os.getpid()
        stat = _stat(pid)
        return cls(
            id=secrets.token_hex(16),
            host=_host(),
            pid=pid,
            user=_user(),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=_machine(),
            process_start_ticks=stat[1] if stat else 0,
            ttl_s=ttl_s,
        )

    @classmethod
    def parse(cls, data: bytes) -> Holder | None:
        """What a lease file says; None when it is none of ours."""
        if len(data) > MAX_BYTES:
            return None
        try:
            return cls.model_validate_json(data)
        except ValueError:
            return None

    def to_json(self) -> bytes:
        """The bytes of a lease file."""
        return (self.model_dump_json(indent=2, by_alias=True) + "\n").encode()

    def summary(self) -> str:
        """For people: host, process, user and since when."""
        text = f"host {self.host}, process {self.pid}, user {self.user}, since {self.since}"
        return printable(text)

    def exists(self) -> bool | None:
        """Whether the process still exists; None when that cannot be told from here."""
        if not self.machine or (self.machine, self.host) != (_machine(), _host()):
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            pass  # somebody else's process: it is there
        stat = _stat(self.pid)
        if stat is None:
            return None  # the system hides it
        state, born = stat
        return state not in "ZX" and born == self.process_start_ticks  # zombies are dead


def _stat(pid: int) -> tuple[str, int] | None:
    """State letter and start (ticks since boot) of a process; None when the system does not say."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
        fields = text.rpartition(b")")[2].split()  # the name before it may hold anything
        return fields[0].decode(), int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def _machine() -> str:
    """See `Holder.machine`. Containers on one host share the boot id, but not process numbers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
    return hashlib.sha256(f"{boot} {namespace}".encode()).hexdigest()[:16]


def _host() -> str:
    return socket.gethostname()[:255]


def _user() -> str:
    try:
        return getpass.getuser()[:255]
    except (KeyError, OSError, ImportError):  # a container whose user has no name
        return str(os.getuid()) if hasattr(os, "getuid") else "?"
