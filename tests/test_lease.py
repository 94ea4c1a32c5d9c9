"""The lease: one run at a time, whoever races, dies, sleeps or has the wrong time."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import lease_world
import numpy as np
import pytest
import serial_run
from hypothesis import given, settings
from hypothesis import strategies as st

from segcore import run
from segcore.config import Config, load_config
from segcore.errors import AccessDenied, StorageError
from segcore.holder import MAX_BYTES, Holder
from segcore.job import prepare, refresh
from segcore.lease import FOLDER, Clock, Lease, LeaseHeld, LeaseLost, acquire, held
from segcore.report import Report
from segcore.sighting import EXPIRED, GONE, HELD, RELEASED, look
from segcore.status import status
from segcore.storage import Storage, StorageOptions, join
from segcore.verify import verify

TESTS = Path(__file__).resolve().parent
PATHS = os.pathsep.join([str(TESTS), str(TESTS.parent)])
storage = Storage()


def _elsewhere(ttl_s: float = 1.0, **changes: object) -> Holder:
    """A holder on a machine of which nothing is known here."""
    there = {"machine": "f" * 16, "host": "far-away", "pid": 4711, **changes}
    return Holder.here(ttl_s).model_copy(update=there)


def _put(folder: str, holder: Holder, generation: int = 3) -> str:
    uri = join(folder, FOLDER, f"{generation:08d}.json")
    storage.write(uri, holder.to_json())
    return uri


def _take(folder: str, ttl_s: float = 1.0, clock: Clock | None = None) -> Lease:
    args = (storage, join(folder, FOLDER), ttl_s, lambda text: None)
    return acquire(*args) if clock is None else acquire(*args, clock)


def _at_once() -> Clock:
    """A clock with which nobody can wait."""
    return Clock(time.monotonic, lambda seconds: pytest.fail("it waited"))


class Hands:
    """A clock that is moved by hand; waiting moves it, too."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.clock = Clock(lambda: self.now, self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.now += seconds


# --- every order of events


@given(st.integers(0, 2**32), st.integers(2, 4), st.sampled_from([0.0, 0.03, 0.1]))
@settings(max_examples=150)
def test_never_are_two_let_pass(seed: int, contenders: int, faults: float) -> None:
    world = lease_world.World(seed, contenders, faults=faults)
    world.run(800)
    assert world.failure == ""


def test_in_these_worlds_the_lease_is_taken_again_and_again() -> None:
    worlds = [lease_world.World(seed, deaths=False) for seed in range(20)]
    for world in worlds:
        world.run(600)
    assert all(world.wins for world in worlds)
    assert sum(world.wins for world in worlds) > 100


def _blind(lease: Lease) -> None:
    """A holder that does not look for others."""


def _hurried(lease: Lease, *args: object) -> bool:
    """One who takes over and does not look back."""
    return True


def _generous(lease: Lease) -> None:
    """A holder that counts its time from the end of a heartbeat."""
    with lease._lock:
        if not (lease._ended or lease.lost):
            beats = lease._holder.beats + 1
            lease._holder = lease._holder.model_copy(update={"beats": beats})
            lease.storage.write(lease._uri(), lease._holder.to_json())
            lease._look_up()
            lease._until = lease._clock.now() + lease.ttl_s


@pytest.mark.parametrize(
    ("method", "wrong"), [("_look_up", _blind), ("_outlast", _hurried), ("beat", _generous)]
)
def test_these_worlds_find_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, method: str, wrong: Callable[..., object]
) -> None:
    monkeypatch.setattr(Lease, method, wrong)
    for seed in range(400):
        world = lease_world.World(seed, 2 + seed % 3, faults=(0.0, 0.03, 0.1)[seed % 3])
        world.run(800)
        if "believe to hold it" in world.failure:
            return
    pytest.fail("400 worlds found nothing")


# --- real storage


def test_of_32_racers_one_wins(folder: str) -> None:
    start = threading.Barrier(32)

    def race(number: int) -> Lease | str:
        start.wait()
        try:
            return _take(folder, 60)
        except LeaseHeld as error:
            return error.message

    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(race, range(32)))
    winners = [one for one in found if isinstance(one, Lease)]
    assert len(winners) == 1
    winners[0].check()
    reasons = {one for one in found if isinstance(one, str)}
    assert all(f"process {os.getpid()}" in reason for reason in reasons)


def test_of_8_racers_for_a_dead_ones_lease_one_wins(folder: str) -> None:
    _put(folder, _elsewhere(ttl_s=1.0))
    start = threading.Barrier(8)

    def race(number: int) -> Lease | None:
        start.wait()
        try:
            return _take(folder, 60)
        except LeaseHeld:
            return None

    with ThreadPoolExecutor(8) as pool:
        winners = [one for one in pool.map(race, range(8)) if one is not None]
    assert len(winners) == 1
    winners[0].check()


def test_released_it_is_free_at_once_and_its_file_stays_the_only_one(folder: str) -> None:
    for generation in range(1, 4):
        lease = _take(folder, 60, _at_once())
        lease.check()
        lease.release()
        uris = [info.uri for info in storage.list(folder)]
        assert uris == [join(folder, FOLDER, f"{generation:08d}.json")]
        assert look(join(folder, FOLDER), storage, 60).state == RELEASED


def test_who_finds_it_held_is_told_by_whom(folder: str) -> None:
    with held(storage, folder, 60):
        with pytest.raises(LeaseHeld) as caught:
            _take(folder, 60, _at_once())
        before = {info.uri for info in storage.list(folder)}
    message = caught.value.message
    assert socket.gethostname() in message
    assert f"process {os.getpid()}, user " in message
    assert "last sign of life" in message
    assert "run the same command again" in caught.value.hint
    assert before == {join(folder, FOLDER, "00000001.json")}  # no traces of looking


def test_a_live_one_elsewhere_is_recognized_by_its_heartbeat(folder: str) -> None:
    alive, over = _elsewhere(ttl_s=600.0), threading.Event()
    _put(folder, alive)

    def beat() -> None:
        beats = 0
        while not over.wait(0.05):
            beats += 1
            _put(folder, alive.model_copy(update={"beats": beats}))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(LeaseHeld, match="host far-away, process 4711"):
            _take(folder)
    finally:
        over.set()
        thread.join()


def test_a_silent_one_elsewhere_is_waited_for_by_its_own_ttl(folder: str) -> None:
    _put(folder, _elsewhere(ttl_s=40.0))
    hands, said = Hands(), []
    acquire(storage, join(folder, FOLDER), 5.0, said.append, hands.clock)
    assert 1038 < hands.now < 1044
    assert "host far-away" in said[0]
    assert "its lease has ended" in said[1]


def test_one_that_is_old_by_the_storage_is_not_waited_for(tmp_path: Path) -> None:
    uri = _put(str(tmp_path), _elsewhere(ttl_s=40.0))
    for ago, state in ((30, HELD), (50, EXPIRED)):
        os.utime(uri, (time.time() - ago,) * 2)
        assert look(join(str(tmp_path), FOLDER), storage, 60).state == state
    _take(str(tmp_path), 60, _at_once())


def test_nothing_asks_what_time_it_is_here(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong() -> float:
        raise AssertionError("looked at the wall clock")

    _put(folder, _elsewhere(ttl_s=2.0, since="2199-01-01T00:00:00+00:00"))
    storage.stat(_put(folder, _elsewhere(ttl_s=2.0)))  # connected, which may take the time
    monkeypatch.setattr("segcore.sighting.time.time", wrong)
    hands = Hands()
    lease = acquire(storage, join(folder, FOLDER), 2.0, lambda text: None, hands.clock)
    lease.check()
    with pytest.raises(LeaseHeld):
        _take(folder)
    lease.release()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\x00" * 20,
        b"[" * 4000,
        b" " * (MAX_BYTES + 1),
        b"null",
        _elsewhere().model_copy(update={"pid": -1}).to_json(),
        _elsewhere().model_copy(update={"pid": 2**70}).to_json(),
        _elsewhere().model_copy(update={"ttl_s": 1e300}).to_json(),
        _elsewhere().model_copy(update={"host": "h" * 300}).to_json(),
        _elsewhere().to_json().replace(b"false", b'"yes"'),
    ],
)
def test_a_file_that_is_none_of_ours_is_waited_for(tmp_path: Path, data: bytes) -> None:
    storage.write(str(tmp_path / FOLDER / "00000003.json"), data)
    hands, said = Hands(), []
    lease = acquire(storage, str(tmp_path / FOLDER), 20.0, said.append, hands.clock)
    assert 1019 < hands.now < 1023
    assert "an unknown holder" in said[0]
    lease.check()


def test_other_files_do_not_count(tmp_path: Path) -> None:
    lease = tmp_path / FOLDER
    for name in (
        "1.json",
        "0000000000009.json",
        "99999999.txt",
        "00000099.json.bak",
        "x/00000099.json",
    ):
        (lease / name).parent.mkdir(parents=True, exist_ok=True)
        (lease / name).write_bytes(_elsewhere().to_json())
    (lease / "now-0123456789abcdef").write_bytes(b"left by one that died")
    _take(str(tmp_path), 60, _at_once()).check()
    names = {path.name for path in lease.iterdir()}
    assert "00000001.json" in names
    assert "99999999.txt" in names
    assert "now-0123456789abcdef" not in names


def test_what_a_file_says_cannot_move_the_cursor() -> None:
    assert "\x1b" not in _elsewhere(host="evil\x1b[2J\nhost").words()
    assert "evil?[2J?host" in _elsewhere(host="evil\x1b[2J\nhost").words()


@pytest.mark.s3
def test_the_file_holds_no_secret(s3_prefix: str) -> None:
    with held(storage, s3_prefix, 60):
        data = storage.read(f"{s3_prefix}/{FOLDER}/00000001.json")
    assert set(json.loads(data)) == set(Holder.model_fields)
    for name, value in os.environ.items():
        if "SECRET" in name or "ACCESS_KEY" in name:
            assert value.encode() not in data


# --- storage that fails for a while


class Frail(Storage):
    """Refuses while `broken`."""

    def __init__(self, options: StorageOptions | None = None) -> None:
        super().__init__(options)
        self.broken = False
        self.block: threading.Event | None = None

    def write(self, uri: str, data: bytes) -> None:
        if self.block is not None:
            self.block.wait()
        if self.broken:
            raise StorageError("SlowDown")
        super().write(uri, data)


def test_a_short_outage_is_survived_and_a_long_one_is_not(tmp_path: Path) -> None:
    hands, frail = Hands(), Frail()
    lease = _take(str(tmp_path), 60.0, hands.clock)
    lease.storage = frail
    frail.broken = True
    hands.now += 50
    with pytest.raises(StorageError):
        lease.beat()
    assert not lease.is_stale
    frail.broken = False
    lease.check()

    frail.broken = True
    with pytest.raises(LeaseLost, match=r"for 60 s, .* taken over: SlowDown"):
        lease.check()
    assert hands.now >= 1110
    frail.broken = False
    with pytest.raises(LeaseLost):  # once lost, never again
        lease.check()


def test_one_that_slept_long_goes_on_if_nobody_wanted_it(tmp_path: Path) -> None:
    hands = Hands()
    lease = _take(str(tmp_path), 60.0, hands.clock)
    hands.now += 10_000
    assert lease.is_stale
    lease.check()
    assert not lease.is_stale


def test_check_leaves_time_to_act(tmp_path: Path) -> None:
    hands = Hands()
    lease = _take(str(tmp_path), 60.0, hands.clock)
    slow = iter([40.0, 40.0, 5.0])

    class Slow(Storage):
        def write(self, uri: str, data: bytes) -> None:
            super().write(uri, data)
            hands.now += next(slow)

    lease.storage = Slow()
    lease.check()
    assert list(slow) == []


@pytest.mark.parametrize("how", ["fails", "hangs"])
def test_when_it_is_lost_the_block_is_interrupted(tmp_path: Path, how: str) -> None:
    frail = Frail()

    def work() -> None:
        with held(storage, str(tmp_path), 0.8, heartbeats=frail):
            if how == "fails":
                frail.broken = True
            else:
                frail.block = threading.Event()
            threading.Event().wait(120)
            pytest.fail("nobody interrupted")

    with pytest.raises(LeaseLost, match="No heartbeat could be written"):
        work()
    if frail.block:
        frail.block.set()


def test_an_interrupt_by_a_person_stays_one(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), held(storage, str(tmp_path), 60):
        signal.raise_signal(signal.SIGINT)
    _take(str(tmp_path), 60, _at_once())


def test_in_a_thread_check_tells(tmp_path: Path) -> None:
    def work() -> None:
        with held(storage, str(tmp_path), 60) as lease:
            _put(str(tmp_path), _elsewhere(), 2)
            lease.check()

    with ThreadPoolExecutor(1) as pool:
        error = pool.submit(work).exception()
    assert isinstance(error, LeaseLost)
    assert "host far-away, process 4711" in error.message


def test_no_permission_is_said_and_nothing_is_held(tmp_path: Path) -> None:
    class ReadOnly(Storage):
        def write_if_absent(self, uri: str, data: bytes) -> bool:
            raise AccessDenied(f"No permission for {uri}.")

    with pytest.raises(AccessDenied), held(ReadOnly(), str(tmp_path), 60):
        pytest.fail("held")


# --- real processes

HOLD = """
    import signal, sys, threading
    {before}
    from segcore.errors import SegcoreError
    from segcore.lease import held
    from segcore.storage import Storage
    try:
        with held(Storage(), sys.argv[1], float(sys.argv[2])) as lease:
            print("held", flush=True)
            {work}
            print("acted", flush=True)
    except SegcoreError as error:
        print(type(error).__name__, error.message, flush=True)
"""
WAIT_TO_CHECK = "sys.stdin.readline(); lease.check()"


class Child:
    """A process that holds a lease and does some work."""

    def __init__(self, folder: str, ttl_s: float, work: str, before: str = "") -> None:
        script = textwrap.dedent(HOLD).format(work=work, before=before)
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, folder, str(ttl_s)],
            env=os.environ | {"PYTHONPATH": PATHS},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.line() == "held"

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def send(self, number: int) -> None:
        self.process.send_signal(number)


@pytest.fixture
def child(folder: str) -> Iterator[Callable[..., Child]]:
    started: list[Child] = []

    def start(*args: object, **options: object) -> Child:
        started.append(Child(folder, *args, **options))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


def test_a_killed_one_on_this_machine_is_free_at_once(folder: str, child) -> None:
    holder = child(600, WAIT_TO_CHECK)
    with pytest.raises(LeaseHeld, match=f"process {holder.process.pid}"):
        _take(folder, 600, _at_once())
    holder.send(signal.SIGKILL)
    os.waitid(os.P_PID, holder.process.pid, os.WEXITED | os.WNOWAIT)  # dead, and a zombie
    assert look(join(folder, FOLDER), storage, 600).state == GONE
    _take(folder, 600, _at_once()).check()


def test_another_process_with_its_number_is_not_the_holder(tmp_path: Path) -> None:
    me = Holder.here(60)
    assert me.exists() is True
    assert me.model_copy(update={"born": me.born + 1}).exists() is False
    assert me.model_copy(update={"machine": ""}).exists() is None
    assert me.model_copy(update={"host": "other"}).exists() is None
    _put(str(tmp_path), me.model_copy(update={"born": me.born + 1}))
    _take(str(tmp_path), 60, _at_once())


def _take_when_free(folder: str) -> Lease:
    while True:
        try:
            return _take(folder, 60)
        except LeaseHeld:
            time.sleep(0.1)


def test_a_stopped_one_that_wakes_up_notices_before_it_acts(folder: str, child) -> None:
    holder = child(1.0, WAIT_TO_CHECK)
    holder.send(signal.SIGSTOP)
    mine = _take_when_free(folder)
    holder.go_on()
    holder.send(signal.SIGCONT)
    said = holder.line()
    assert said.startswith("LeaseLost Another run took over")
    assert f"process {os.getpid()}" in said
    holder.process.wait()
    mine.check()


def test_a_stopped_one_at_work_is_interrupted_when_it_wakes_up(folder: str, child) -> None:
    ignored = "signal.signal(signal.SIGINT, signal.SIG_IGN)"  # as in a job in the background
    holder = child(1.0, "threading.Event().wait()", before=ignored)
    holder.send(signal.SIGINT)
    holder.send(signal.SIGSTOP)
    mine = _take_when_free(folder)
    holder.send(signal.SIGCONT)
    assert holder.line().startswith("LeaseLost Another run took over")
    mine.check()


@pytest.mark.parametrize("hours", [-9, 9])
def test_a_holder_with_the_wrong_time_is_judged_all_the_same(
    folder: str, child, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    wrong = f"import time; real = time.time; time.time = lambda: real() + {hours * 3600}"
    holder = child(2.0, WAIT_TO_CHECK, before=wrong)
    monkeypatch.setattr("segcore.holder._machine", lambda: "another")
    with pytest.raises(LeaseHeld, match=f"process {holder.process.pid}"):
        _take(folder)
    holder.send(signal.SIGKILL)
    _take(folder).check()  # after its time, as that it is dead cannot be told from "another"


# --- runs


def _images(folder: str, n: int) -> str:
    rng = np.random.default_rng(1)
    for i in range(n):
        pixels = np.zeros((24, 32, 3), np.uint8)
        y, x = rng.integers(1, 12, 2)
        pixels[y : y + 9, x : x + 12, 1] = 220
        storage.write(f"{folder}/{i:03d}.png", cv2.imencode(".png", pixels)[1].tobytes())
    return folder


def _config(folder: Path, *sets: str) -> Config:
    flags = {
        "input": ("input", str(folder / "in")),
        "output": ("output", str(folder / "out")),
        "model": ("model.name", "fake_models:BrightModel"),
    }
    return load_config(sets=["plan.images=4", *sets], flags=flags)


@pytest.fixture
def finished(tmp_path: Path) -> Report:
    """A run of 10 images that ended, and whose input has changed since."""
    _images(str(tmp_path / "in"), 10)
    report = serial_run.segment(_config(tmp_path))
    storage.write(join(report.prefix, "runs", f"{report.run}.json"), report.to_json())
    (tmp_path / "in" / "000.png").rename(tmp_path / "in" / "new.png")
    return report


def _files(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*.*") if p.parent.name != FOLDER}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_second_run_changes_nothing(tmp_path: Path, finished: Report, overwrite: bool) -> None:
    before = _files(tmp_path)
    with held(storage, finished.prefix, 60):
        with pytest.raises(LeaseHeld) as caught:
            run.segment(_config(tmp_path), overwrite=overwrite)
        assert run.preview(_config(tmp_path), overwrite=overwrite).units  # asks nobody
    assert caught.value.exit_code == 1
    assert _files(tmp_path) == before


def test_a_dry_run_takes_no_lease(tmp_path: Path) -> None:
    _images(str(tmp_path / "in"), 3)
    run.preview(_config(tmp_path))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["carry", "work"])
def test_a_run_that_lost_its_lease_deletes_and_publishes_nothing(
    tmp_path: Path, finished: Report, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    parts = {path for path in _files(tmp_path) if "/images/" in path}
    latest = (tmp_path / "out" / "latest.json").read_bytes()

    def overtaken(*args: object) -> set[str]:
        _put(finished.prefix, _elsewhere(60.0), 99)
        return set()

    monkeypatch.setattr(run, place, overtaken)
    with pytest.raises(LeaseLost, match="host far-away"):
        run.segment(_config(tmp_path))
    if place == "carry":
        assert parts <= set(_files(tmp_path))
    assert (tmp_path / "out" / "latest.json").read_bytes() == latest
    records = Path(finished.prefix, "runs").iterdir()
    statuses = {json.loads(path.read_bytes())["status"] for path in records}
    assert statuses == {"success", "running"}


def test_after_waiting_a_run_sees_what_the_other_one_did(tmp_path: Path) -> None:
    _images(str(tmp_path / "in"), 10)
    config = _config(tmp_path)
    job = prepare(config)
    assert job.committed == frozenset()

    report = serial_run.segment(config)
    storage.write(join(report.prefix, "runs", f"{report.run}.json"), report.to_json())
    job = refresh(job)
    assert job.committed == set(job.planned)
    assert job.last["run"] == report.run
    assert refresh(job, overwrite=True).committed == frozenset()

    other = replace(report, run="0" * 16, sequence=2)
    storage.write(join(report.prefix, "runs", f"{other.run}.json"), other.to_json())
    assert refresh(job).sequence == 3


class Command:
    """`segcore segment` as a terminal would start it."""

    def __init__(self, folder: Path, log: str, delay: float = 0.0) -> None:
        self.log, self.folder = folder / log, folder
        words = ["segment", str(folder / "in"), str(folder / "out"), "--actors", "1", "--json"]
        words += ["--model", "fake_models:BrightModel", "--set", "plan.images=2"]
        with self.log.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jobs.cli", *words],
                env=os.environ | {"PYTHONPATH": PATHS, "FAKE_MODEL_DELAY": str(delay)},
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
            )

    def end(self) -> tuple[int, str, str]:
        stdout, _ = self.process.communicate()
        return self.process.returncode, stdout, self.log.read_text()

    def work(self) -> None:
        while not list(self.folder.glob("out/*/images/*.parquet")):
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_of_two_commands_one_goes_on_and_after_kill_9_the_next_does(tmp_path: Path) -> None:
    _images(str(tmp_path / "in"), 40)
    output = str(tmp_path / "out")
    first = Command(tmp_path, "1.log", delay=2.0)  # 80 s of work, cut short
    first.work()

    code, stdout, stderr = Command(tmp_path, "2.log").end()
    assert (code, stdout) == (1, "")
    assert f"host {socket.gethostname()}, process {first.process.pid}" in stderr
    assert "Traceback" not in stderr
    assert first.process.poll() is None
    seen = status(storage, output)
    assert seen.lease is not None
    assert (seen.state, seen.lease.state) == ("running", "held")
    assert seen.lease.pid == first.process.pid

    os.killpg(first.process.pid, signal.SIGKILL)
    first.end()
    dead = status(storage, output)
    assert dead.lease is not None
    assert (dead.state, dead.lease.state, dead.pace) == ("died", "gone", None)

    code, stdout, stderr = Command(tmp_path, "3.log").end()
    assert code == 0, stderr
    assert "Waiting" not in stderr
    report = json.loads(stdout)
    assert (report["images"], report["ok"], report["units"]) == (40, 40, 20)
    assert report["units_done_before"] > 0
    ended = status(storage, output)
    assert ended.lease is not None
    assert (ended.state, ended.lease.state) == ("success", "released")
    assert verify(storage, output).exit_code == 0
