"""A simulated world in which several contenders want one lease and nothing can be relied on.

One thing happens at a time, and chance decides which: a contender does its next step, time passes,
a request fails before or after its effect, a write that was given up arrives later, a contender is
stopped for minutes or dies. Every clock shows another time. The code under test is the real one;
only the storage, the clocks and the processes are simulated.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from segcore.errors import ObjectNotFound, StorageError
from segcore.lease.acquire import acquire
from segcore.lease.clock import SteadyClock
from segcore.lease.holder import Holder
from segcore.lease.lease import Lease, LeaseHeld, LeaseLost
from segcore.storage import ObjectInfo, Storage

FOLDER = "/edition/lease"
TTL_S = 60.0


class _SimulationEnded(BaseException):
    """Unwinds the threads of the contenders at the end."""


@dataclass
class Contender:
    """A process that wants the lease again and again.

    Attributes:
        clock_offset: Its clock minus that of the world, seconds.
        checked: Whether `Lease.check` has passed since it acquired the lease.
        wakes_at: Nothing happens to it before this time of the world.
        turn: Released when it may do its next step.
        passed_at: When it passed `Lease.check`.
    """

    world: World
    number: int
    clock_offset: float
    lease: Lease | None = None
    checked: bool = False
    dead: bool = False
    wakes_at: float = 0.0
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    passed_at: list[float] = field(default_factory=list)

    def clock(self) -> SteadyClock:
        return SteadyClock(lambda: self.world.now + self.clock_offset, self.sleep)

    def sleep(self, seconds: float) -> None:
        self.wakes_at = self.world.now + seconds
        self.world.end_step(self)

    def believes_to_hold(self) -> bool:
        """Whether it may act on the lease now, as far as it knows."""
        if self.dead or self.lease is None or not self.checked or self.lease.lost:
            return False
        return self.lease._expires_at - self.clock_offset > self.world.now

    def live(self) -> None:
        """Acquire the lease, hold it for a while, and release it or die."""
        chance = self.world.chance
        storage = SimulatedStorage(self.world, self)
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
            self.world.check_is_alone(self)
            self.passed_at.append(self.world.now)
            for _ in range(chance.randint(0, 4)):
                self.sleep(chance.choice([TTL_S / 4, TTL_S / 4, 2 * TTL_S]))
                try:
                    lease.renew()
                except StorageError:
                    continue


class World:
    """Storage, time and contenders; `run` makes a number of things happen.

    Attributes:
        failure: How the guarantee was broken; "" if it was not.
        knows_the_dead: Whether contenders can tell that a dead process is dead.
        delayed_writes: (time, effect) of writes that were given up and still arrive.
        step_done: Released when a contender has done its step.
    """

    def __init__(
        self, seed: int, contenders: int = 3, *, faults: float = 0.05, deaths: bool = True
    ) -> None:
        self.chance = random.Random(seed)
        self.now = 0.0
        self.faults, self.deaths = faults, deaths
        self.knows_the_dead = self.chance.random() < 0.5
        self.storage_clock_offset = self.chance.uniform(-1e5, 1e9)
        self.objects: dict[str, tuple[bytes, int, float]] = {}
        self.delayed_writes: list[tuple[float, Callable[[], None]]] = []
        self.versions = 0
        self.has_ended = False
        self.failure: str = ""
        self.step_done = threading.Semaphore(0)
        self.contenders = [
            Contender(self, n, self.chance.uniform(-1e6, 1e6)) for n in range(contenders)
        ]

    def put(self, uri: str, data: bytes) -> None:
        self.versions += 1
        changed_s = float(int(self.now + self.storage_clock_offset))  # whole seconds, as on S3
        self.objects[uri] = (data, self.versions, changed_s)

    def end_step(self, contender: Contender) -> None:
        """Let the world continue until it is this contender's turn again."""
        if not self.has_ended:
            self.step_done.release()
            contender.turn.acquire()
        if self.has_ended:
            raise _SimulationEnded

    def check_is_alone(self, contender: Contender) -> None:
        """The guarantee: a contender that passed `Lease.check` is the only holder."""
        others = [
            other.number
            for other in self.contenders
            if other is not contender and other.believes_to_hold()
        ]
        if others:
            self.failure = f"at {self.now:.1f} s {contender.number} and {others} believe to hold it"
            raise _SimulationEnded

    def run(self, steps: int) -> None:
        """Make that many things happen; `failure` says whether the guarantee was broken."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Holder, "exists", lambda holder: self._exists(holder))
            self._run(steps)

    @property
    def checks_passed(self) -> int:
        """How often a contender passed `Lease.check`."""
        return sum(len(contender.passed_at) for contender in self.contenders)

    def _exists(self, holder: Holder) -> bool | None:
        """The dead may be known to be dead; nothing is known about the living."""
        dead_ids = {
            contender.lease._holder.id
            for contender in self.contenders
            if contender.dead and contender.lease is not None
        }
        return False if holder.id in dead_ids and self.knows_the_dead else None

    def _run(self, steps: int) -> None:
        threads = {contender.number: self._make_thread(contender) for contender in self.contenders}
        for thread in threads.values():
            thread.start()
        try:
            for _ in range(steps):
                ready = [
                    contender
                    for contender in self.contenders
                    if contender.wakes_at <= self.now and threads[contender.number].is_alive()
                ]
                if self.failure or not any(thread.is_alive() for thread in threads.values()):
                    break
                # Mostly one contender continues; sometimes all are slow, or one is for a long time.
                if not ready or self.chance.random() < 0.1:
                    self._let_time_pass(ready)
                    continue
                self.chance.choice(ready).turn.release()
                self.step_done.acquire()
        finally:
            self.has_ended = True
            for contender in self.contenders:
                contender.turn.release()
            for thread in threads.values():
                thread.join()

    def _let_time_pass(self, ready: list[Contender]) -> None:
        if ready and self.chance.random() < 0.5:  # a process is stopped without notice
            self.chance.choice(ready).wakes_at = self.now + self.chance.choice([5.0, 90.0, 200.0])
        wake_times = [
            contender.wakes_at for contender in self.contenders if contender.wakes_at > self.now
        ]
        until_next_s = min(wake_times, default=self.now) - self.now
        self.now += self.chance.choice([until_next_s, min(until_next_s, 0.5), 0.1])
        due = [write for write in self.delayed_writes if write[0] <= self.now]
        self.delayed_writes = [write for write in self.delayed_writes if write[0] > self.now]
        for _, effect in due:
            effect()

    def _make_thread(self, contender: Contender) -> threading.Thread:
        def live() -> None:
            contender.turn.acquire()
            try:
                if not self.has_ended:
                    contender.live()
            except _SimulationEnded:
                pass
            except BaseException as error:
                self.failure = f"{contender.number}: {error!r}"
            finally:
                self.step_done.release()

        return threading.Thread(target=live, daemon=True)


class SimulatedStorage(Storage):
    """The storage as one contender sees it: time passes before and after each effect."""

    def __init__(self, world: World, contender: Contender) -> None:
        super().__init__()
        self.world, self.contender = world, contender

    def _end_step(self) -> None:
        self.world.end_step(self.contender)

    def _fails(self) -> bool:
        return self.world.chance.random() < self.world.faults

    def _request(self, effect: Callable[[], object]) -> object:
        self._end_step()
        if self._fails():
            raise StorageError("the request was refused")
        result = effect()
        self._end_step()
        if self._fails():
            raise StorageError("the response was lost")
        return result

    def write(self, uri: str, data: bytes) -> None:
        self._end_step()
        if self._fails():
            delay_s = self.world.chance.choice([0.0, 10.0, 100.0])
            arrives_at = self.world.now + delay_s
            self.world.delayed_writes.append((arrives_at, lambda: self.world.put(uri, data)))
            raise StorageError("timed out; the write may arrive later")
        self._request(lambda: self.world.put(uri, data))

    def write_if_absent(self, uri: str, data: bytes) -> bool:
        def create() -> bool:
            if uri in self.world.objects:
                return False
            self.world.put(uri, data)
            return True

        return bool(self._request(create))

    def delete(self, uri: str) -> None:
        self._request(lambda: self.world.objects.pop(uri, None))

    def read(self, uri: str, max_bytes: int | None = None) -> bytes:
        def get() -> bytes:
            if uri not in self.world.objects:
                raise ObjectNotFound(uri)
            return self.world.objects[uri][0]

        data = self._request(get)
        assert isinstance(data, bytes)
        return data

    def list_with_times(self, prefix: str) -> Iterator[tuple[ObjectInfo, float]]:
        objects = self._request(lambda: dict(self.world.objects))
        assert isinstance(objects, dict)
        for uri, (data, version, changed_s) in objects.items():
            yield ObjectInfo(uri, len(data), str(version)), changed_s
