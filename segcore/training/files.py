"""What a training run keeps in its output folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segcore.errors import StorageError
from segcore.text import parse_json


@dataclass
class EpochResult:
    """One line of `log.jsonl`."""

    epoch: int
    step: int
    minutes: float
    lr: float
    losses: dict[str, float]
    scores: dict[str, float] = field(default_factory=dict)


class RunFiles:
    """The files of a training run.

    State and weights are replaced atomically: a stop at any moment leaves complete files.

    Attributes:
        state: `last.pt`: all that is needed to resume after the last complete epoch.
        best: `best.pt`: averaged weights of the best epoch so far.
        log: `log.jsonl`: one `EpochResult` a line.
        messages: `logs/`: what each execution said, in pieces.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.state = folder / "last.pt"
        self.best = folder / "best.pt"
        self.log = folder / "log.jsonl"
        self.messages = folder / "logs"

    def write_messages(self, execution: str, form: str, number: int, piece: bytes) -> None:
        """Write a piece of what an execution said; the form is ``text`` or ``json``."""
        suffix = "jsonl" if form == "json" else "log"
        try:
            self.messages.mkdir(exist_ok=True)
            (self.messages / f"{execution}-{number:05d}.{suffix}").write_bytes(piece)
        except OSError as error:
            raise StorageError(f"{self.messages} cannot be written: {error}.") from None

    def save_state(self, state: dict[str, Any]) -> None:
        """Replace the state."""
        _replace(self.state, partial(torch.save, state))

    def load_state(self, device: torch.device) -> dict[str, Any] | None:
        """The state, with its tensors on `device`; None where there is none."""
        if not self.state.exists():
            return None
        return torch.load(self.state, map_location=device, weights_only=True)

    def save_best(self, weights: dict[str, Tensor]) -> None:
        """Replace the best weights."""
        _replace(self.best, partial(torch.save, weights))

    def load_best(self) -> dict[str, Tensor]:
        """The best weights, on the CPU."""
        return torch.load(self.best, map_location="cpu", weights_only=True)

    def append_log(self, result: EpochResult) -> None:
        """Add a line to the log."""
        with self.log.open("a") as log:
            log.write(json.dumps(asdict(result)) + "\n")

    @property
    def n_epochs(self) -> int:
        """Epochs in the log."""
        return len(self.log.read_bytes().splitlines()) if self.log.exists() else 0

    def remove(self) -> None:
        """Remove all of them but the messages."""
        for path in (self.state, self.best, self.log):
            path.unlink(missing_ok=True)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of the log in a run's folder."""
    return [parse_json(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    """Write beside `path`, then move into place."""
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    os.replace(temporary, path)
