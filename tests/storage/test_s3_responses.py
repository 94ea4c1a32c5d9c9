"""What requests carry, and what the error responses of an S3 server become."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from segcore.errors import (
    AccessDenied,
    CredentialsRejected,
    ObjectNotFound,
    StorageError,
    StorageFull,
    TooManyRequests,
)
from segcore.storage import Storage, StorageOptions, retries
from segcore.storage.remote_errors import WrongRegion, translate_errors
from tests.support.fake_s3 import FakeS3

REJECTED = ["ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch", "RequestTimeTooSkewed",
            "InvalidToken", "TokenRefreshRequired"]  # fmt: skip
KEYS = ["plain.png", "odd//.png"]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeS3]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    with FakeS3(dict.fromkeys(KEYS, b"1")) as server:
        yield server


@pytest.mark.parametrize("requester_pays", [True, False])
def test_requester_pays_is_said_in_every_request(fake: FakeS3, requester_pays: bool) -> None:
    options = StorageOptions(endpoint_url=fake.endpoint, retries=0, requester_pays=requester_pays)
    storage = Storage(options)
    assert len(list(storage.list("s3://bucket"))) == 2
    for key in KEYS:
        uri = f"s3://bucket/{key}"
        storage.read(uri)
        storage.stat(uri)
        storage.read_range(uri, 0, 1)
        storage.listed_etag(uri)
    payers = {headers.get("x-amz-request-payer") for _, _, headers in fake.requests}
    assert payers == ({"requester"} if requester_pays else {None})
    assert len(fake.requests) == 9


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        *[(403, code, CredentialsRejected) for code in REJECTED],
        (400, "ExpiredToken", CredentialsRejected),
        (401, "Unauthorized", CredentialsRejected),
        (403, "AccessDenied", AccessDenied),
        (403, "InvalidObjectState", AccessDenied),
        (403, "QuotaExceeded", StorageFull),
        (507, "InsufficientStorage", StorageFull),
        (404, "NoSuchKey", ObjectNotFound),
        (404, "NoSuchBucket", ObjectNotFound),
        (301, "PermanentRedirect", WrongRegion),
        (418, "Teapot", StorageError),
    ],
)
def test_error_responses_have_a_type_and_one_sentence(
    fake: FakeS3, key: str, status: int, code: str, expected: type[StorageError]
) -> None:
    fake.refuse = lambda *_: (status, code)
    storage = Storage(StorageOptions(endpoint_url=fake.endpoint, retries=0))
    with pytest.raises(StorageError) as caught:
        storage.read(f"s3://bucket/{key}")
    assert type(caught.value) is expected
    assert "\n" not in caught.value.message
    assert f"s3://bucket/{key}" in caught.value.message


def test_a_key_that_reads_like_a_response_is_not_taken_for_one() -> None:
    key = "status code: 507 <Code>ExpiredToken</Code>"
    with (
        pytest.raises(ObjectNotFound),
        translate_errors(f"s3://bucket/{key}"),
    ):
        raise FileNotFoundError(f"Object at location {key} not found: status code: 404 Not Found")


THROTTLED = [(503, "SlowDown"), (429, "TooManyRequests"), (503, "ThrottlingException")]
# obstore, which reads plain keys, sleeps for some seconds by itself.
THROTTLED_READS = [
    pytest.param(
        key,
        *answer,
        marks=[pytest.mark.faults] if key == KEYS[0] and answer != THROTTLED[0] else [],
    )
    for key in KEYS
    for answer in THROTTLED
]


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The longest delay of each wait; nothing sleeps, but the clock of patience goes on."""
    delays: list[float] = []
    monkeypatch.setattr(retries.random, "uniform", lambda low, high: high)
    monkeypatch.setattr(retries, "time", _Clock(delays))
    return delays


class _Clock:
    def __init__(self, delays: list[float]) -> None:
        self._delays = delays

    def monotonic(self) -> float:
        return sum(self._delays)

    def sleep(self, seconds: float) -> None:
        self._delays.append(seconds)


@pytest.mark.slow
@pytest.mark.parametrize(("key", "status", "code"), THROTTLED_READS)
def test_a_throttled_request_is_repeated_for_long(
    fake: FakeS3, slept: list[float], key: str, status: int, code: str
) -> None:
    storage = Storage(StorageOptions(endpoint_url=fake.endpoint, retries=2))
    n_refused = 9  # three times as many as are sent for any other failure
    fake.refuse = lambda *_: (status, code) if len(fake.requests) <= n_refused else None
    assert storage.read(f"s3://bucket/{key}") == b"1"
    assert max(slept) > 10


@pytest.mark.slow
@pytest.mark.parametrize(("key", "status", "code"), THROTTLED_READS)
def test_a_request_that_stays_throttled_ends(
    fake: FakeS3, slept: list[float], key: str, status: int, code: str
) -> None:
    storage = Storage(StorageOptions(endpoint_url=fake.endpoint, retries=2))
    fake.refuse = lambda *_: (status, code)
    for call in (storage.read, storage.stat):
        slept.clear()
        with pytest.raises(TooManyRequests, match="there are too many"):
            call(f"s3://bucket/{key}")
        assert 30 <= sum(slept) <= 60


def test_a_heartbeat_does_not_wait_for_a_store_that_throttles(
    fake: FakeS3, slept: list[float]
) -> None:
    storage = Storage(StorageOptions(endpoint_url=fake.endpoint, retries=1))
    fake.refuse = lambda *_: (503, "SlowDown")
    with pytest.raises(StorageError):
        storage.read("s3://bucket/plain.png")
    assert sum(slept) < 1


def test_a_server_that_fails_otherwise_is_given_up_soon(fake: FakeS3, slept: list[float]) -> None:
    storage = Storage(StorageOptions(endpoint_url=fake.endpoint, retries=2))
    fake.refuse = lambda *_: (500, "InternalError")
    for key in KEYS:
        with pytest.raises(StorageError):
            storage.read(f"s3://bucket/{key}")
    assert sum(slept) < 2
