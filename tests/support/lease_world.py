"""A world in which several contenders want one lease, and in which nothing may be relied on.

One thing happens at a time, and chance decides which: a contender does its next step, time goes
by, a request fails before or after its effect, a write that was given up arrives later, a
contender is stopped for minutes or dies. Every clock shows another time. The code under test is
the real one; only the storage, the clocks and the processes are played.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from segcore.errors import ObjectNotFound, StorageError
from segcore.lease.holder import Holder
from segcore.lease.lease import Clock, Lease, LeaseHeld, LeaseLost, acquire
from segcore.storage import ObjectInfo, Storage

FOLDER = "/edition/lease"
TTL_S = 60.0


class _Over(BaseException):
    """The world ends; unwinds the threads."""


@dataclass
class Contender:
    """One run that wants the lease again and again."""

    world: World
    number: int
    offset: float
    lease: Lease | None = None
    checked: bool = False
    dead: bool = False
    wakes: float = 0.0
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    wins: list[float] = field(default_factory=list)

    def clock(self) -> Clock:
        return Clock(lambda: self.world.now + self.offset, self.sleep)

    def sleep(self, seconds: float) -> None:
        self.wakes = self.world.now + seconds
        self.world.pause(self)

    def believes(self) -> bool:
        """Whether it may act on the lease at this moment, as far as it knows."""
        if self.dead or self.lease is None or not self.checked or self.lease.lost:
            return False
        return self.lease._until - self.offset > self.world.now

    def live(self) -> None:
        """Want the lease, hold it for a while, let it go or die."""
        chance = self.world.chance
        storage = SimStorage(self.world, self)
        while not self.dead:
            try:
                self.lease = acquire(storage, FOLDER, TTL_S, lambda text: None, self.clock())
                self.hold(self.lease)
            except (LeaseHeld, LeaseLost, StorageError):
                pass
            if self.world.deaths and chance.random() < 0.2:
                self.dead = True
                return
            if self.lease is not None:
                self.checked = False
                self.lease.release()
                self.lease = None
            self.sleep(chance.choice([0.0, 1.0, 20.0]))

    def hold(self, lease: Lease) -> None:
        chance = self.world.chance
        for _ in range(chance.randint(1, 6)):
            lease.check()
            self.checked = True
            self.world.judge(self)
            self.wins.append(self.world.now)
            for _ in range(chance.randint(0, 4)):
                self.sleep(chance.choice([TTL_S / 4, TTL_S / 4, 2 * TTL_S]))
                try:
                    lease.beat()
                except StorageError:
                    continue


class World:
    """Storage, time and contenders; `run` lets `steps` things happen."""

    def __init__(
        self, seed: int, contenders: int = 3, *, faults: float = 0.05, deaths: bool = True
    ) -> None:
        self.chance = random.Random(seed)
        self.now = 0.0
        self.faults, self.deaths = faults, deaths
        self.local = self.chance.random() < 0.5  # whether the dead are known to be dead
        self.store_offset = self.chance.uniform(-1e5, 1e9)
        self.objects: dict[str, tuple[bytes, int, float]] = {}
        self.late: list[tuple[float, Callable[[], None]]] = []
        self.versions = 0
        self.over = False
        self.failure: str = ""
        self.back = threading.Semaphore(0)
        self.contenders = [
            Contender(self, n, self.chance.uniform(-1e6, 1e6)) for n in range(contenders)
        ]

    def put(self, uri: str, data: bytes) -> None:
        self.versions += 1
        dated = float(int(self.now + self.store_offset))  # as S3: whole seconds
        self.objects[uri] = (data, self.versions, dated)

    def pause(self, who: Contender) -> None:
        """Hand over to the world until it is this contender's turn again."""
        if not self.over:
            self.back.release()
            who.go.acquire()
        if self.over:
            raise _Over

    def judge(self, who: Contender) -> None:
        """The promise: whoever `check` let pass is alone."""
        others = [one.number for one in self.contenders if one is not who and one.believes()]
        if others:
            self.failure = f"at {self.now:.1f} s {who.number} and {others} believe to hold it"
            raise _Over

    def run(self, steps: int) -> None:
        """Let that many things happen; `failure` says whether the promise was broken."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Holder, "exists", lambda holder: self._exists(holder))
            self._run(steps)

    @property
    def wins(self) -> int:
        """How often somebody was let pass."""
        return sum(len(one.wins) for one in self.contenders)

    def _exists(self, holder: Holder) -> bool | None:
        """The dead are known to be dead; of the living, nothing is known from elsewhere."""
        held = [one for one in self.contenders if one.dead and one.lease is not None]
        gone = {one.lease._holder.id for one in held if one.lease is not None}
        return False if holder.id in gone and self.local else None

    def _run(self, steps: int) -> None:
        threads = {one.number: self._thread(one) for one in self.contenders}
        for thread in threads.values():
            thread.start()
        try:
            for _ in range(steps):
                ready = [
                    one
                    for one in self.contenders
                    if one.wakes <= self.now and threads[one.number].is_alive()
                ]
                if self.failure or not any(t.is_alive() for t in threads.values()):
                    break
                # Mostly somebody goes on; at times all are slow, or one for a long time.
                if not ready or self.chance.random() < 0.1:
                    self._let_time_pass(ready)
                    continue
                one = self.chance.choice(ready)
                one.go.release()
                self.back.acquire()
        finally:
            self.over = True
            for one in self.contenders:
                one.go.release()
            for thread in threads.values():
                thread.join()

    def _let_time_pass(self, ready: list[Contender]) -> None:
        if ready and self.chance.random() < 0.5:  # stopped, before it knows
            self.chance.choice(ready).wakes = self.now + self.chance.choice([5.0, 90.0, 200.0])
        coming = [one.wakes for one in self.contenders if one.wakes > self.now]
        step = min(coming, default=self.now) - self.now
        self.now += self.chance.choice([step, min(step, 0.5), 0.1])
        due = [late for late in self.late if late[0] <= self.now]
        self.late = [late for late in self.late if late[0] > self.now]
        for _, effect in due:
            effect()

    def _thread(self, one: Contender) -> threading.Thread:
        def work() -> None:
            one.go.acquire()
            try:
                if not self.over:
                    one.live()
            except _Over:
                pass
            except BaseException as error:
                self.failure = f"{one.number}: {error!r}"
            finally:
                self.back.release()

        return threading.Thread(target=work, daemon=True)


class SimStorage(Storage):
    """The storage as one contender meets it: time passes before and after each effect."""

    def __init__(self, world: World, who: Contender) -> None:
        super().__init__()
        self.world, self.who = world, who

    def _step(self) -> None:
        self.world.pause(self.who)

    def _fails(self) -> bool:
        return self.world.chance.random() < self.world.faults

    def _do(self, effect: Callable[[], object]) -> object:
        self._step()
        if self._fails():
            raise StorageError("refused")
        result = effect()
        self._step()
        if self._fails():
            raise StorageError("the answer was lost")
        return result

    def write(self, uri: str, data: bytes) -> None:
        self._step()
        if self._fails():
            delay = self.world.chance.choice([0.0, 10.0, 100.0])
            self.world.late.append((self.world.now + delay, lambda: self.world.put(uri, data)))
            raise StorageError("timed out; it may arrive later")
        self._do(lambda: self.world.put(uri, data))

    def write_if_absent(self, uri: str, data: bytes) -> bool:
        def create() -> bool:
            if uri in self.world.objects:
                return False
            self.world.put(uri, data)
            return True

        return bool(self._do(create))

    def delete(self, uri: str) -> None:
        self._do(lambda: self.world.objects.pop(uri, None))

    def read(self, uri: str, max_bytes: int | None = None) -> bytes:
        def get() -> bytes:
            if uri not in self.world.objects:
                raise ObjectNotFound(uri)
            return self.world.objects[uri][0]

        found = self._do(get)
        assert isinstance(found, bytes)
        return found

    def list_dated(self, prefix: str) -> Iterator[tuple[ObjectInfo, float]]:
        found = self._do(lambda: dict(self.world.objects))
        assert isinstance(found, dict)
        for uri, (data, version, dated) in found.items():
            yield ObjectInfo(uri, len(data), str(version)), dated
