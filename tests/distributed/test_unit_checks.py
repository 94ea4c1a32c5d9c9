"""`segcore verify` on a Ray cluster: the same problems as in one process."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from segcore.config import Config, RayOptions
from segcore.distributed import cluster
from segcore.distributed.cluster import NodeResources
from segcore.errors import UsageError
from segcore.inspection.verify import verify_output
from segcore.run.verify import verify
from segcore.storage import Storage
from tests.support.finished_output import finish_run

storage = Storage()
_CONFIG = Config(ray=RayOptions(address="auto"))


@pytest.mark.usefixtures("ray_session")
def test_tasks_find_what_threads_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = finish_run(str(tmp_path), n_images=10)
    monkeypatch.setattr("segcore.inspection.verify._UNITS_AT_ONCE", 1)
    steps: list[tuple[int, int, int]] = []

    def check() -> None:
        here = verify_output(storage, out.output).to_dict()
        there = verify(_CONFIG, out.output, progress=lambda *step: steps.append(step)).to_dict()
        for name in ("seconds", "instances_per_second"):
            assert there.pop(name) > 0
            here.pop(name)
        assert there == here

    check()
    assert steps[-1] == (3, 3, 10)
    storage.write(out.part("instances", 1), b"PAR1 no PAR1")
    out.edit(out.part("images"), lambda table: table.slice(1))
    check()


def test_local_paths_are_refused_where_other_machines_would_check_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = NodeResources(cpus=2.0, gpus=0.0, node_id="ab" * 28, address="10.0.0.2", host="other")
    monkeypatch.setattr(cluster, "connected", lambda options: nullcontext(cluster.RayTarget("a:1")))
    monkeypatch.setattr(cluster, "nodes_elsewhere", lambda: [other])
    with pytest.raises(UsageError, match=r"output .* is a local path, but the Ray cluster at a:1"):
        verify(_CONFIG, str(tmp_path), progress=lambda *step: None)
