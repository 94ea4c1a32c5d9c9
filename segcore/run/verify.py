"""The check of an output in this process, or on a Ray cluster."""

from __future__ import annotations

from segcore.config import Config
from segcore.distributed import cluster
from segcore.distributed.unit_checks import check_on_ray
from segcore.inspection.problems import Verification
from segcore.inspection.verify import Progress, verify_output
from segcore.storage import Storage, normalize


def verify(
    config: Config,
    output: str,
    edition: str | None = None,
    *,
    threads: int = 8,
    include_unlisted: bool = False,
    check_input: bool = False,
    progress: Progress,
) -> Verification:
    """Check an output; on Ray if `config` names an address, see `verify_output`.

    Raises:
        UsageError: There is no output of segcore, or the machines of the cluster cannot see it.
        SegcoreError: The storage cannot be listed, or the cluster cannot be used.
    """
    storage = Storage(config.storage)

    def check(**how: object) -> Verification:
        return verify_output(
            storage,
            output,
            edition,
            threads=threads,
            include_unlisted=include_unlisted,
            check_input=check_input,
            progress=progress,
            **how,  # type: ignore[arg-type]
        )

    if config.ray.address is None:
        return check()
    cluster.check_paths_shared(config.ray, [("output", normalize(output))])
    with cluster.connected(config.ray):
        return check(check_batches=check_on_ray(threads))
