"""The result of `segcore bench`, as JSON and as text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from segcore.bench.machine import Machine
from segcore.bench.stages import STAGES, StageTimes
from segcore.bench.throughput import Throughput


@dataclass(frozen=True)
class BenchReport:
    """One measurement.

    Attributes:
        masks_by: What turns logits into RLE strings here: ``numpy`` or ``compiled``.
        device_peak_mb: Largest memory that tensors took on the GPU; None on a CPU.
        job: None if only stages were measured.
        price_per_hour: Of the machine, as given.
    """

    machine: Machine
    model: str
    device: str
    batch_size: int
    masks_by: str
    stages: tuple[StageTimes, ...]
    device_peak_mb: float | None = None
    job: Throughput | None = None
    price_per_hour: float | None = None

    @property
    def cost_per_million(self) -> float | None:
        """Price of a million images in steady state; None without a job or a price."""
        if self.job is None or self.price_per_hour is None:
            return None
        return self.job.cost_per_million(self.price_per_hour)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        document = asdict(self)
        for entry, times in zip(document["stages"], self.stages, strict=True):
            entry |= {"total_ms": times.total_ms, "percent": times.percent}
        return document | {"cost_per_million_images": self.cost_per_million}

    def summary(self) -> str:
        """The result for people, as lines of text."""
        versions = self.machine.versions
        device = self.machine.gpu if self.device.startswith("cuda") else self.machine.cpu
        lines = [
            f"{self.model} on {device}, {self.machine.cores} cores, batches of {self.batch_size}",
            f"torch {versions['torch']}, numpy {versions['numpy']}, masks: {self.masks_by}",
            "",
            "Milliseconds per image and their share, stage after stage on one thread:",
            "",
            f"{'':12}" + "".join(f"{times.label[-18:]:>20}" for times in self.stages),
        ]
        for stage in STAGES:
            cells = (f"{t.ms[stage]:11.2f} {t.percent[stage]:6.1f} %" for t in self.stages)
            lines.append(f"{stage:12}" + "".join(cells))
        lines.append(
            f"{'all':12}" + "".join(f"{t.total_ms:11.2f} ms" + 6 * " " for t in self.stages)
        )
        counts = (f"{t.instances_per_image:11.1f}" + 9 * " " for t in self.stages)
        lines.append(f"{'masks/image':12}" + "".join(counts))
        if self.device_peak_mb is not None:
            lines += ["", f"GPU memory: at most {self.device_peak_mb:,.0f} MB"]
        if self.job is not None:
            lines += ["", *self._job_lines(self.job)]
        return "\n".join(line.rstrip() for line in lines)

    def _job_lines(self, job: Throughput) -> list[str]:
        first, second = job.plain_passes
        actor_peak = (
            f"at most {job.actor_peak_mb:,.0f} MB"
            if job.actor_peak_mb
            else "not known on this system"
        )
        lines = [
            f"Whole job    {job.job_images_per_s:8.1f} images/s in steady state, {job.workers}",
            f"Plain loop   {job.plain_images_per_s:8.1f} images/s "
            f"(before {first:.1f}, after {second:.1f})",
            f"Efficiency   {job.efficiency:8.2f} of the plain loop, over {job.images:,} images",
            *self._cpu_line(job),
            f"In total     {job.job_seconds:8.1f} s for the job, starting Ray included",
            f"Memory       of an actor {actor_peak}; "
            f"of a process of the loop {job.plain_peak_mb:,.0f} MB",
        ]
        if self.cost_per_million is not None:
            lines.append(
                f"Cost         {self.cost_per_million:8.2f} for a million images "
                f"at {self.price_per_hour:g} per hour"
            )
        return lines

    def _cpu_line(self, job: Throughput) -> list[str]:
        if not job.job_cpu_ms:
            return []
        return [
            f"CPU time     {job.job_cpu_ms:8.1f} ms per image, {job.plain_cpu_ms:.1f} ms in "
            f"the loop: efficiency {job.cpu_efficiency:.2f}"
        ]
