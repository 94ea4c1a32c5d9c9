"""Who holds a lease: a process, described so that people and other processes can check on it.

A description read from storage is untrusted: its size, types and ranges are checked, and the text
shown to people has no control characters.
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

MAX_BYTES = 4096  # of a lease file
MAX_TTL_S = 3600.0

_ShortText = Annotated[str, Field(max_length=255)]


class Holder(BaseModel):
    """A process that holds or held a lease. Contains no secret.

    Attributes:
        id: Random; no two leases ever have the same one.
        machine: Identifies the boot of a machine and the process namespace in it; "" if the system
            does not tell (not Linux). `pid` means something only within one `machine`.
        process_start_ticks: When the process started, in the kernel's ticks since boot. A pid that
            was reused has another one. Called "born" in lease files.
        since: UTC, ISO 8601, by the holder's own clock; for people, never compared.
        ttl_s: Seconds without a heartbeat after which others may take over.
        beats: Number of heartbeats so far; each one changes the file.
        released: Whether the holder has given the lease up.
    """

    model_config = ConfigDict(frozen=True, strict=True, validate_by_name=True)

    id: _ShortText
    host: _ShortText
    pid: int = Field(ge=1, lt=2**31)
    user: _ShortText
    since: _ShortText
    machine: _ShortText
    process_start_ticks: int = Field(alias="born", ge=0, lt=2**63)
    ttl_s: float = Field(gt=0, le=MAX_TTL_S)
    beats: int = Field(0, ge=0, lt=2**63)
    released: bool = False

    @classmethod
    def of_current_process(cls, ttl_s: float) -> Holder:
        """This process, with a new id."""
        pid = os.getpid()
        state_and_start = _read_process_stat(pid)
        return cls(
            id=secrets.token_hex(16),
            host=_host_name(),
            pid=pid,
            user=_user_name(),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=_machine_id(),
            process_start_ticks=state_and_start[1] if state_and_start else 0,
            ttl_s=ttl_s,
        )

    @classmethod
    def parse(cls, data: bytes) -> Holder | None:
        """The holder that a lease file describes; None if segcore did not write the file."""
        if len(data) > MAX_BYTES:
            return None
        try:
            return cls.model_validate_json(data)
        except ValueError:
            return None

    def to_json(self) -> bytes:
        """The content of a lease file."""
        return (self.model_dump_json(indent=2, by_alias=True) + "\n").encode()

    def summary(self) -> str:
        """Host, process, user and start, for people."""
        text = f"host {self.host}, process {self.pid}, user {self.user}, since {self.since}"
        return printable(text)

    def exists(self) -> bool | None:
        """Whether the process still exists; None if that cannot be told from this process."""
        if not self.machine or (self.machine, self.host) != (_machine_id(), _host_name()):
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            pass  # the process of another user: it exists
        state_and_start = _read_process_stat(self.pid)
        if state_and_start is None:
            return None  # the system hides it
        state, start_ticks = state_and_start
        return state not in "ZX" and start_ticks == self.process_start_ticks  # zombies are dead


def _read_process_stat(pid: int) -> tuple[str, int] | None:
    """State letter and start (ticks since boot) of a process; None if the system does not tell."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
        fields = text.rpartition(b")")[2].split()  # the command name before it may contain anything
        return fields[0].decode(), int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def _machine_id() -> str:
    """See `Holder.machine`. The containers of a host share the boot id, but not process ids."""
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
    return hashlib.sha256(f"{boot_id} {namespace}".encode()).hexdigest()[:16]


def _host_name() -> str:
    return socket.gethostname()[:255]


def _user_name() -> str:
    try:
        return getpass.getuser()[:255]
    except (KeyError, OSError, ImportError):  # a container whose user has no name
        return str(os.getuid()) if hasattr(os, "getuid") else "?"
