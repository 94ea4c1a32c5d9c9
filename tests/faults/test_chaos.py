"""Whatever is killed, the same command again ends with the tables of an undisturbed run.

The short rounds kill each kind of thing once; the long ones (`make chaos`) draw all from a seed.
One round by hand: `python -m tests.faults.chaos --seed N`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import psutil
import pytest

from tests.faults.chaos import ChaosEnvironment, run_scenario
from tests.faults.chaos_archives import make_archive
from tests.faults.chaos_scenarios import VICTIMS, Kill, draw_scenario
from tests.support.commands import INTERRUPTED, SegmentCommand, command_line

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.timeout(1200)]
ROUNDS = 60

_KILL = Kill(victim="driver", point="parts", parts=3, wait_s=0.1, pause_s=2, orphans=False, pick=0)
_SCENARIO = replace(
    draw_scenario(0),
    kind="manifest",
    deadly=False,
    on_s3=True,
    local_ray=False,
    actors=1,
    variant=0,
)


@pytest.fixture(scope="module")
def environment(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[ChaosEnvironment]:
    with pytest.MonkeyPatch.context() as patch:
        environment = ChaosEnvironment(tmp_path_factory.mktemp("chaos"), patch.setenv)
        try:
            yield environment
        finally:
            environment.close()
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{environment.stats.summary()}")  # for people, also where all is well


@pytest.mark.parametrize(
    "kills",
    [
        (_KILL, replace(_KILL, victim="s3")),
        (replace(_KILL, victim="node"), replace(_KILL, victim="actor", parts=6)),
    ],
    ids=["driver-then-s3", "node-then-actor"],
)
@pytest.mark.faults
def test_a_killed_job_ends_with_the_tables_of_an_undisturbed_run(
    environment: ChaosEnvironment, kills: tuple[Kill, ...]
) -> None:
    stats = run_scenario(environment, replace(_SCENARIO, kills=kills))
    assert set(stats.kills) == {kill.victim for kill in kills}  # none came too late


def _has_ray_workers(command: SegmentCommand) -> bool:
    """Whether Ray has started its first workers: the driver is just joining it, in C++."""
    return any("default_worker.py" in " ".join(command_line(p)) for p in command.descendants())


@pytest.mark.parametrize("after_s", [0.1, 0.5, 1.0, None])
@pytest.mark.faults
def test_sigterm_while_ray_starts_is_an_interrupt(
    environment: ChaosEnvironment, after_s: float | None
) -> None:
    """Ray would swallow it, or hang, or abort, or leave processes behind, depending on when."""
    folder = environment.folder_for("in/early", on_s3=False)
    archive = make_archive(environment.storage, "tar", folder, variant=0)
    output = environment.folder_for(f"out/early-{after_s}", on_s3=False)
    command = environment.start_command(archive, output, actors=1, local_ray=True)
    try:
        assert command.wait_until(lambda: "Plan:" in command.stderr())
        if after_s is None:
            assert command.wait_until(lambda: _has_ray_workers(command))
        time.sleep(after_s or 0.1)
        assert not command.is_segmenting()
        command.descendants()
        command.process.terminate()
        assert command.wait() in INTERRUPTED, command.describe()
        assert "Traceback" not in command.stderr()
        _, alive = psutil.wait_procs(command.descendants(), timeout=60)
        assert not alive
    finally:
        command.kill_all()


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_a_job_killed_at_random_ends_with_the_tables_of_an_undisturbed_run(
    environment: ChaosEnvironment, seed: int
) -> None:
    run_scenario(environment, draw_scenario(seed))


@pytest.mark.chaos
def test_every_kind_of_kill_occurred(environment: ChaosEnvironment) -> None:
    if environment.stats.rounds < ROUNDS:
        pytest.skip("not all rounds were run, or not all passed")
    assert set(environment.stats.kills) == set(VICTIMS)
