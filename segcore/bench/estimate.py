"""How long a job will take, by what `segcore bench --json` measured on a machine like its own."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from segcore.errors import DamagedOutput, UsageError
from segcore.output.documents import read_document
from segcore.output.preview import Preview
from segcore.storage import Storage
from segcore.text import format_bytes, format_duration, plural, printable

_HINT = "Make it with `segcore bench INPUT --model MODEL --json > bench.json`, whole job included."
_LEAST, _MOST = 1e-6, 1e12  # images a second, and bytes of an image: others are no measurement


@dataclass(frozen=True)
class MeasuredJob:
    """What a bench measured of a whole job on one machine.

    Attributes:
        source: The file that says so.
        machine: CPU or GPU, and cores, for people.
        workers: As `segcore bench` describes them.
        images_per_s: In steady state.
        bytes_per_image: Mean encoded size of its images.
    """

    source: str
    machine: str
    model: str
    workers: str
    images_per_s: float
    bytes_per_image: float


@dataclass(frozen=True)
class Estimate:
    """What is left of a job, on one machine like the measured one.

    Attributes:
        images: That are left; by their bytes where images are counted as they are read.
        is_counted: Whether the images are known rather than guessed from bytes.
        seconds: Without the start of Ray and of the workers.
    """

    measured: MeasuredJob
    images: int
    is_counted: bool
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def summary(self) -> str:
        """A sentence or two for people."""
        job = self.measured
        images = ("" if self.is_counted else "some ") + plural(self.images, "image")
        size = "" if self.is_counted else f" of {format_bytes(round(job.bytes_per_image))}"
        return (
            f"Expected: {images}{size} in {format_duration(self.seconds)} on one machine like that "
            f"of {job.source} ({job.machine}; {job.workers}), at {job.images_per_s:,.1f} images/s, "
            "starts left out."
        )


def read_bench(storage: Storage, uri: str) -> MeasuredJob:
    """What a JSON document of `segcore bench` says about the whole job.

    Raises:
        UsageError: It is not such a document, or measured stages only.
        SegcoreError: It cannot be read.
    """
    try:
        document = read_document(storage, uri)
        job, machine = document["job"], document["machine"]
        if job is None:
            raise UsageError(f"{uri} measured stages only.", hint=_HINT)
        device = machine["gpu"] if str(document["device"]).startswith("cuda") else machine["cpu"]
        measured = MeasuredJob(
            uri,
            printable(f"{device}, {int(machine['cores'])} cores"),
            str(document["model"]),
            printable(str(job["workers"])),
            float(job["job_images_per_s"]),
            float(job["bytes_per_image"]),
        )
    except (DamagedOutput, KeyError, TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"{uri} is not a result of `segcore bench --json`.", hint=_HINT) from error
    if not all(
        _LEAST <= value <= _MOST for value in (measured.images_per_s, measured.bytes_per_image)
    ):
        raise UsageError(f"{uri} holds no speed: {measured.images_per_s} images/s.", hint=_HINT)
    return measured


def estimate_job(planned: Preview, measured: MeasuredJob) -> Estimate:
    """What is left of a planned job, at the measured speed.

    Raises:
        UsageError: Another model was measured.
    """
    if measured.model != planned.model:
        raise UsageError(
            f"{measured.source} measured {printable(measured.model)}, and this job runs "
            f"{planned.model}.",
            hint=_HINT,
        )
    is_counted = planned.images is not None and planned.images_done is not None
    if is_counted:
        images = planned.images - planned.images_done  # type: ignore[operator]
    else:
        images = round((planned.bytes - planned.bytes_done) / measured.bytes_per_image)
    return Estimate(measured, images, is_counted, images / measured.images_per_s)
