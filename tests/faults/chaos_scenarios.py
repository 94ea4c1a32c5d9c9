"""What happens in a round of chaos, drawn from its seed, and what rounds add up to."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from tests.faults.chaos_archives import KINDS

VICTIMS = ("driver", "node", "actor", "s3", "sigterm", "ctrl-c")
POINTS = ("parts", "commit", "end", "start")


@dataclass(frozen=True)
class Kill:
    """What is killed, and when.

    Attributes:
        victim: One of VICTIMS; "sigterm" and "ctrl-c" are signals to the driver.
        point: "start": `wait_s` after the command was started; "parts": `wait_s` after it has
            committed `parts` units; "commit": as soon as a unit has its `instances` part and not
            yet its `images` part; "end": as soon as the last unit is committed.
        pause_s: How long a node or the S3 server stays away.
        orphans: Whether a killed driver's own Ray outlives it until the round ends.
        pick: Which of several actors or nodes.
    """

    victim: str
    point: str
    parts: int
    wait_s: float
    pause_s: float
    orphans: bool
    pick: int


@dataclass(frozen=True)
class Scenario:
    """The job of one round and what is killed in it.

    Attributes:
        kind: Kind of the archive; one of KINDS.
        variant: Which archive of that kind.
        deadly: Whether an image of the archive kills the process that segments it.
        on_s3: Whether archive and output lie on S3, or on disk.
        local_ray: Whether the job starts a Ray of its own, or joins the cluster.
        actors: Size of the pool.
    """

    seed: int
    kind: str
    variant: int
    deadly: bool
    on_s3: bool
    local_ray: bool
    actors: int
    kills: tuple[Kill, ...]


@dataclass
class ChaosStats:
    """Counts over one or more rounds."""

    rounds: int = 0
    kills: Counter[str] = field(default_factory=Counter)  # by victim
    points: Counter[str] = field(default_factory=Counter)
    missed: int = 0  # kills whose moment had passed: the job was done before
    resumes: int = 0
    images: int = 0
    seconds: float = 0.0

    def add(self, other: ChaosStats) -> None:
        """Add the counts of other rounds."""
        self.rounds += other.rounds
        self.kills += other.kills
        self.points += other.points
        self.missed += other.missed
        self.resumes += other.resumes
        self.images += other.images
        self.seconds += other.seconds

    def summary(self) -> str:
        """One line."""
        kills = ", ".join(f"{name} {n}" for name, n in sorted(self.kills.items()))
        points = ", ".join(f"{name} {n}" for name, n in sorted(self.points.items()))
        return (
            f"chaos: {self.rounds} rounds, {self.kills.total()} kills ({kills}; at {points}), "
            f"{self.missed} came too late, {self.resumes} resumes, {self.images:,} images, "
            f"{self.seconds:.0f} s"
        )


def draw_scenario(seed: int) -> Scenario:
    """The scenario of a seed; victims take turns, so that a few seeds meet all of them."""
    rng = random.Random(seed)
    victims = [VICTIMS[seed % len(VICTIMS)]]
    if rng.random() < 0.35:
        victims.append(rng.choice(VICTIMS))
    return Scenario(
        seed=seed,
        kind=KINDS[seed // len(VICTIMS) % len(KINDS)],
        variant=rng.randrange(2),
        deadly=seed % 5 == 3,
        on_s3="s3" in victims or rng.random() < 0.5,
        local_ray="node" not in victims and rng.random() < 0.3,
        actors=rng.choice((1, 2)),
        kills=tuple(_draw_kill(rng, victim) for victim in victims),
    )


def _draw_kill(rng: random.Random, victim: str) -> Kill:
    point = rng.choices(POINTS, (45, 25, 15, 15))[0]
    return Kill(
        victim=victim,
        point=point,
        parts=rng.randrange(0, 9),
        wait_s=rng.uniform(0.5, 10) if point == "start" else rng.uniform(0, 0.4),
        pause_s=rng.choice((0.0, rng.uniform(0.2, 3), rng.uniform(3, 12))),
        orphans=rng.random() < 0.5,
        pick=rng.randrange(100),
    )
