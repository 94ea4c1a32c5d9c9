"""The output of a finished run, for tests that read, check or damage it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from segcore.inspection.problems import Verification
from segcore.inspection.verify import verify_output
from segcore.output.layout import EditionLayout, Table
from segcore.output.report import RunReport
from segcore.output.tables import encode_part
from segcore.storage import Storage
from tests.support import serial_run
from tests.support.bright_images import bright_png
from tests.support.jobs import job_config

storage = Storage()


@dataclass(frozen=True)
class FinishedOutput:
    """A finished run in a folder."""

    report: RunReport
    output: str

    @property
    def layout(self) -> EditionLayout:
        return EditionLayout(self.report.prefix)

    def part(self, table: Table, number: int = 0) -> str:
        """A part by its place in the order of names."""
        infos = storage.list(self.layout.parts_folder(table))
        return sorted(info.uri for info in infos if info.uri.endswith(".parquet"))[number]

    def edit(self, uri: str, change: Callable[[pa.Table], pa.Table]) -> None:
        """Rewrite a part as segcore would, with other rows."""
        table = pq.read_table(pa.BufferReader(storage.read(uri)))
        metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        storage.write(uri, encode_part(change(table), metadata))

    def kinds(self) -> dict[str, int]:
        """Kinds of the problems that are found, and how many of each."""
        return dict(self.verify().counts)

    def verify(self) -> Verification:
        return verify_output(storage, self.output, threads=2)


def finish_run(folder: str, n_images: int = 10, pages: str = "first") -> FinishedOutput:
    """A run of this many good images and a bad one, in units of 4.

    Args:
        pages: Which pages of TIFFs are read.
    """
    for i in range(n_images):
        storage.write(f"{folder}/in/image{i:02d}.png", bright_png(i))
    storage.write(f"{folder}/in/words.png", b"no image at all")
    config = job_config(f"{folder}/in", f"{folder}/out", "plan.images=4", f"decode.pages={pages}")
    return FinishedOutput(serial_run.segment(config), f"{folder}/out")
