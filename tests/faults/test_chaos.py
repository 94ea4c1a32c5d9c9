"""Whatever dies, the same command again ends with the tables of an undisturbed run.

The short rounds kill each kind of thing once; the long ones (`make chaos`) draw all from a seed.
One round by hand: `python tests/chaos.py --seed N`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import psutil
import pytest

from tests.faults.chaos import Stage, play
from tests.faults.chaos_archives import make_archive
from tests.faults.chaos_command import INTERRUPTED, Command, words_of
from tests.faults.chaos_draw import VICTIMS, Kill, draw

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.timeout(1200)]
ROUNDS = 60

_KILL = Kill(victim="driver", point="parts", parts=3, wait_s=0.1, pause_s=2, orphans=False, pick=0)
_ROUND = replace(
    draw(0), kind="manifest", deadly=False, on_s3=True, local_ray=False, actors=1, variant=0
)


@pytest.fixture(scope="module")
def stage(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Stage]:
    with pytest.MonkeyPatch.context() as patch:
        stage = Stage(tmp_path_factory.mktemp("chaos"), patch.setenv)
        try:
            yield stage
        finally:
            stage.close()
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{stage.figures.summary()}")  # for people, also where all is well


@pytest.mark.parametrize(
    "kills",
    [
        (_KILL, replace(_KILL, victim="s3")),
        (replace(_KILL, victim="node"), replace(_KILL, victim="actor", parts=6)),
    ],
    ids=["driver-then-s3", "node-then-actor"],
)
@pytest.mark.faults
def test_a_killed_job_ends_as_if_nothing_had_been(stage: Stage, kills: tuple[Kill, ...]) -> None:
    figures = play(stage, replace(_ROUND, kills=kills))
    assert set(figures.kills) == {kill.victim for kill in kills}  # none came too late


def _has_workers(command: Command) -> bool:
    """Whether Ray has started its first workers: the driver is just joining it, in C++."""
    return any("default_worker.py" in " ".join(words_of(p)) for p in command.family())


@pytest.mark.parametrize("after_s", [0.1, 0.5, 1.0, None])
@pytest.mark.faults
def test_sigterm_while_ray_starts_is_an_interrupt(stage: Stage, after_s: float | None) -> None:
    """Ray would swallow it, or hang, or abort, or leave processes behind, depending on when."""
    archive = make_archive(stage.storage, "tar", stage.place("in/early", False), 0)
    output = stage.place(f"out/early-{after_s}", False)
    command = stage.command(archive, output, actors=1, local_ray=True)
    try:
        assert command.until(lambda: "Plan:" in command.summary())
        if after_s is None:
            assert command.until(lambda: _has_workers(command))
        time.sleep(after_s or 0.1)
        assert not command.works()
        command.family()
        command.process.terminate()
        assert command.wait() in INTERRUPTED, command.story()
        assert "Traceback" not in command.summary()
        _gone, left = psutil.wait_procs(command.family(), timeout=10)
        assert not left
    finally:
        command.end()


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_a_job_killed_at_random_ends_as_if_nothing_had_been(stage: Stage, seed: int) -> None:
    play(stage, draw(seed))


@pytest.mark.chaos
def test_every_kind_of_kill_was_among_them(stage: Stage) -> None:
    if stage.figures.rounds < ROUNDS:
        pytest.skip("not all rounds were played, or not all passed")
    assert set(stage.figures.kills) == set(VICTIMS)
