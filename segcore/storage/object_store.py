"""Objects on S3, Google Cloud Storage and Azure through obstore, with errors for people.

S3 credentials come from the chain of botocore (environment, profile, container or instance
role), so whatever works for the AWS command line works here. `gs://` and `az://` take their
credentials from the environment variables obstore documents; this project has not exercised them.
"""

from __future__ import annotations

import os
import random
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    GenericError,
    PermissionDeniedError,
    UnauthenticatedError,
)

from segcore.errors import AccessDenied, ObjectNotFound, SegcoreError, StorageError
from segcore.storage.uris import redact, split

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Config

_CODE = re.compile(r"<Code>([A-Za-z]+)</Code>")
_STATUS = re.compile(r"status code: (\d{3})")
_DENIED_CODES = {
    "AccessDenied",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidObjectState",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
_CREDENTIALS_HINT = (
    "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE or the role of this machine."
)
# One PUT up to here; larger objects go up in parts, and still appear only when complete.
_SINGLE_PUT_BYTES = 64 << 20
_LIST_CHUNK = 1000
_CONNECT = timedelta(seconds=10)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 15.0
_NONCE = "segcore-nonce"
_EXHAUSTED = re.compile(r"after (\d+) retries")
_PASSING_CODES = {"IncompleteBody", "NoSuchUpload", "RequestTimeout", "SlowDown"}
_Result = TypeVar("_Result")


def connect(uri: str, options: Any) -> Any:
    """The obstore store of the bucket that `uri` names; `options` is a `StorageOptions`.

    Raises:
        AccessDenied: No credentials were found and `anonymous` is off.
        StorageError: The store cannot be set up.
    """
    scheme, bucket, _ = split(uri)
    timeout = timedelta(seconds=options.timeout_s)
    client: ClientConfig = {"timeout": timeout, "connect_timeout": min(timeout, _CONNECT)}
    # Each pause lies between the first and `base` times the last one. With 2, the default, they
    # hardly grow: eight of them are often over before a server has started again.
    retry: RetryConfig = {
        "max_retries": options.retries,
        "retry_timeout": timedelta(minutes=5),
        "backoff": {"base": 3},
    }
    try:
        if scheme == "s3":
            return _connect_s3(bucket, options, client, retry)
        return obstore.store.from_url(
            f"{scheme}://{bucket}", client_options=client, retry_config=retry
        )
    except (BaseError, ValueError) as error:
        raise StorageError(f"Cannot open {scheme}://{bucket}: {_first_line(error)}") from error


def _connect_s3(bucket: str, options: Any, client: ClientConfig, retry: RetryConfig) -> Any:
    import botocore.exceptions
    import botocore.session
    from obstore.auth.boto3 import Boto3CredentialProvider

    session = botocore.session.Session()
    try:
        profile = session.get_scoped_config()
        credentials: dict[str, Any] = {"skip_signature": True}
        if not options.anonymous:
            if session.get_credentials() is None:
                raise AccessDenied(
                    f"No AWS credentials were found for s3://{bucket}.",
                    _CREDENTIALS_HINT + " For a public bucket set storage.anonymous=true.",
                )
            # botocore renews 15 minutes before the end, so that 5 minutes never serve stale keys
            provider = Boto3CredentialProvider(session, ttl=timedelta(minutes=5))
            credentials = {"credential_provider": provider}
    except botocore.exceptions.BotoCoreError as error:
        raise AccessDenied(f"AWS credentials cannot be used: {error}", _CREDENTIALS_HINT) from error
    env = os.environ
    endpoint = (
        options.endpoint_url
        or env.get("AWS_ENDPOINT_URL_S3")
        or env.get("AWS_ENDPOINT_URL")
        or profile.get("endpoint_url")
    )
    config: S3Config = {
        "region": options.region
        or env.get("AWS_REGION")
        or session.get_config_variable("region")
        or "us-east-1"
    }
    if endpoint:
        config["endpoint"] = endpoint.rstrip("/")
        client["allow_http"] = endpoint.startswith("http://")
    return obstore.store.S3Store(
        bucket, config=config, client_options=client, retry_config=retry, **credentials
    )


def s3_store(bucket: str, endpoint: str, access_key: str, secret_key: str) -> Any:
    """Store of a server with known credentials, asked once without retries."""
    return obstore.store.S3Store(
        bucket,
        config={
            "endpoint": endpoint,
            "region": "us-east-1",
            "access_key_id": access_key,
            "secret_access_key": secret_key,
        },
        client_options={"allow_http": True, "timeout": timedelta(seconds=5)},
        retry_config={"max_retries": 0},
    )


@contextmanager
def translated(uri: str) -> Iterator[None]:
    """Turn errors of obstore into the errors of segcore, without secrets."""
    try:
        yield
    except SegcoreError:
        raise
    except (BaseError, OSError, ValueError) as error:
        raise _translate(error, uri) from error


def _translate(error: Exception, uri: str) -> StorageError:
    shown = redact(uri)
    text = str(error)
    code = match.group(1) if (match := _CODE.search(text)) else ""
    status = match.group(1) if (match := _STATUS.search(text)) else ""
    if code == "NoSuchBucket":
        return ObjectNotFound(f"{shown}: there is no such bucket.")
    denied = isinstance(error, PermissionDeniedError | UnauthenticatedError)
    if denied or code in _DENIED_CODES or status in ("401", "403"):
        reason = f" ({code})" if code else ""
        return AccessDenied(f"No permission for {shown}{reason}.", _CREDENTIALS_HINT)
    if isinstance(error, FileNotFoundError) or status == "404":
        return ObjectNotFound(f"{shown} does not exist.")
    if status in ("301", "307") or code in ("PermanentRedirect", "AuthorizationHeaderMalformed"):
        return StorageError(
            f"{shown}: the bucket is in another region.", "Set storage.region or AWS_REGION."
        )
    if not status and "sending request" in text:
        return StorageError(
            f"{shown}: the storage server cannot be reached.",
            "Check storage.endpoint_url (or AWS_ENDPOINT_URL) and the network.",
        )
    return StorageError(f"{shown}: {code or _first_line(error)}")


def _patiently(store: Any, action: Callable[[], _Result]) -> _Result:
    """Do what may be done twice, again after each passing failure, with growing random pauses.

    obstore retries by itself what HTTP calls safe, and bodies of GET that break off. It does not
    retry when a listing or an error breaks off, nor a POST (delete) or a conditional PUT whose
    connection is lost: those are retried here, at most as often as one of its requests.
    """
    retries = int((store.retry_config or {}).get("max_retries", 0))
    for attempt in range(retries):
        try:
            return action()
        except GenericError as error:
            if not _is_passing(error, retries):
                raise
        pause(attempt)
    return action()


def pause(attempt: int) -> None:
    """Wait before retry number `attempt` (from 0): exponential, full jitter."""
    time.sleep(random.uniform(0, min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**attempt)))


def _is_passing(error: BaseError, retries: int) -> bool:
    """Whether the same request may well succeed now, and obstore has not tried it enough."""
    text = str(error).partition("Debug source:")[0]
    tried = _EXHAUSTED.search(text)
    if tried and int(tried.group(1)) >= retries:
        return False
    code, status = _CODE.search(text), _STATUS.search(text)
    if status is None:
        return "HTTP error" in text or "response body" in text
    return status.group(1)[0] == "5" or bool(code and code.group(1) in _PASSING_CODES)


def _first_line(error: Exception) -> str:
    line = str(error).partition("\n")[0].partition("<?xml")[0].strip()
    return re.sub(r"https?://\S+", lambda found: redact(found.group()), line)[:300]


def clean_etag(meta: Any) -> str:
    """ETag without its quotes; "" when the store gives none."""
    return (meta["e_tag"] or "").strip('"')


def stat(store: Any, uri: str) -> tuple[int, str]:
    """(size in bytes, etag)."""
    if not split(uri)[2]:
        raise ObjectNotFound(f"{uri} is a bucket, not an object.")
    with translated(uri):
        meta = _patiently(store, lambda: obstore.head(store, split(uri)[2]))
    return int(meta["size"]), clean_etag(meta)


def walk(store: Any, uri: str) -> Iterator[tuple[str, int, str]]:
    """(uri, size, etag) of all objects below the prefix, in the order of the store."""
    for found, size, etag, _ in walk_dated(store, uri):
        yield found, size, etag


def walk_dated(store: Any, uri: str) -> Iterator[tuple[str, int, str, float]]:
    """The same with the time of the last change, seconds since 1970 by the store's clock."""
    scheme, bucket, key = split(uri)
    retries = int((store.retry_config or {}).get("max_retries", 0))
    last: str | None = None
    attempt = 0
    with translated(uri):
        while True:
            try:
                chunks = obstore.list(
                    store, prefix=key or None, offset=last, chunk_size=_LIST_CHUNK
                )
                for chunk in chunks:
                    for meta in chunk:
                        place = f"{scheme}://{bucket}/{meta['path']}"
                        changed = meta["last_modified"].timestamp()
                        yield place, int(meta["size"]), clean_etag(meta), changed
                        last = meta["path"]
                    attempt = 0
                return
            except GenericError as error:  # a page broke off: go on behind the last name
                if attempt >= retries or not _is_passing(error, retries):
                    raise
            pause(attempt)
            attempt += 1


def read(store: Any, uri: str, check_size: Callable[[int], None]) -> bytes:
    """The whole object in one request; `check_size` sees its size before the body is fetched."""

    def get() -> bytes:
        result = obstore.get(store, split(uri)[2])
        check_size(int(result.meta["size"]))
        return bytes(result.bytes())

    with translated(uri):
        return _patiently(store, get)


def read_range(store: Any, uri: str, start: int, length: int) -> bytes:
    """`length` bytes from `start`; fewer at the end of the object."""
    if length <= 0:
        return b""
    try:
        with translated(uri):
            key, end = split(uri)[2], start + length
            return bytes(
                _patiently(store, lambda: obstore.get_range(store, key, start=start, end=end))
            )
    except StorageError as error:
        if "InvalidRange" in error.message:
            return b""  # starts at or behind the end
        raise


def write(store: Any, uri: str, data: bytes) -> None:
    """Replace the object."""
    key = split(uri)[2]
    multipart = len(data) > _SINGLE_PUT_BYTES
    with translated(uri):
        try:
            _patiently(store, lambda: obstore.put(store, key, data, use_multipart=multipart))
        except FileNotFoundError:
            if not multipart:
                raise
            # the answer to the last step was lost, and that step, sent again, found no upload
            obstore.put(store, key, data, use_multipart=True)


def write_if_absent(store: Any, uri: str, data: bytes) -> bool:
    """One PUT with `If-None-Match: *`; True when this call created the object.

    A PUT whose answer was lost is sent again, and then finds its own object: a nonce in the
    object's metadata tells whose it is.
    """
    key, nonce = split(uri)[2], secrets.token_hex(16)
    mine = {_NONCE: nonce}

    def put() -> None:
        obstore.put(store, key, data, attributes=mine, mode="create", use_multipart=False)

    with translated(uri):
        try:
            _patiently(store, put)
        except AlreadyExistsError:
            try:
                found = _patiently(store, lambda: obstore.get(store, key))
            except FileNotFoundError:  # deleted since
                return False
            return bool(found.attributes.get(_NONCE) == nonce)
    return True


def delete(store: Any, uri: str) -> None:
    """Remove the object; absent is fine."""
    with translated(uri):
        try:
            _patiently(store, lambda: obstore.delete(store, split(uri)[2]))
        except FileNotFoundError:
            return
