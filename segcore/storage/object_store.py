"""Objects on S3, Google Cloud Storage and Azure through obstore, with readable errors.

S3 credentials come from botocore's chain (environment, profile, container or instance role), so
whatever works for the AWS command line works here. `gs://` and `az://` take their credentials from
the environment variables that obstore documents; the tests of this project do not cover them.
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

_ERROR_CODE = re.compile(r"<Code>([A-Za-z]+)</Code>")
_HTTP_STATUS = re.compile(r"status code: (\d{3})")
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
# Objects up to this size are written by one PUT. Larger ones are uploaded in parts and still become
# visible only when they are complete.
_SINGLE_PUT_BYTES = 64 << 20
_LIST_CHUNK_OBJECTS = 1000
_CONNECT_TIMEOUT = timedelta(seconds=10)
_FIRST_RETRY_DELAY_S, _MAX_RETRY_DELAY_S = 0.1, 15.0
_NONCE_ATTRIBUTE = "segcore-nonce"
_RETRIES_EXHAUSTED = re.compile(r"after (\d+) retries")
_TRANSIENT_CODES = {"IncompleteBody", "NoSuchUpload", "RequestTimeout", "SlowDown"}
_Result = TypeVar("_Result")


def connect(uri: str, options: Any) -> Any:
    """The obstore store of the bucket of `uri`; `options` is a `StorageOptions`.

    Raises:
        AccessDenied: No credentials were found and `options.anonymous` is false.
        StorageError: The store cannot be set up.
    """
    scheme, bucket, _ = split(uri)
    timeout = timedelta(seconds=options.timeout_s)
    client: ClientConfig = {"timeout": timeout, "connect_timeout": min(timeout, _CONNECT_TIMEOUT)}
    # Each delay lies between the first one and `base` times the previous one. With the default of
    # 2 they hardly grow: eight retries often end before a server has restarted.
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
        raise StorageError(f"Cannot open {scheme}://{bucket}: {_short_reason(error)}") from error


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
            # botocore renews credentials 15 minutes before they expire, so caching them for
            # 5 minutes never yields expired ones
            provider = Boto3CredentialProvider(session, ttl=timedelta(minutes=5))
            credentials = {"credential_provider": provider}
    except botocore.exceptions.BotoCoreError as error:
        raise AccessDenied(f"AWS credentials cannot be used: {error}", _CREDENTIALS_HINT) from error
    environment = os.environ
    endpoint = (
        options.endpoint_url
        or environment.get("AWS_ENDPOINT_URL_S3")
        or environment.get("AWS_ENDPOINT_URL")
        or profile.get("endpoint_url")
    )
    config: S3Config = {
        "region": options.region
        or environment.get("AWS_REGION")
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
    """The store of a server whose credentials are known; requests are not retried."""
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
def translate_errors(uri: str) -> Iterator[None]:
    """Turn the errors of obstore into those of segcore, without secrets."""
    try:
        yield
    except SegcoreError:
        raise
    except (BaseError, OSError, ValueError) as error:
        raise _to_segcore_error(error, uri) from error


def _to_segcore_error(error: Exception, uri: str) -> StorageError:
    safe_uri = redact(uri)
    text = str(error)
    code = match.group(1) if (match := _ERROR_CODE.search(text)) else ""
    status = match.group(1) if (match := _HTTP_STATUS.search(text)) else ""
    if code == "NoSuchBucket":
        return ObjectNotFound(f"{safe_uri}: there is no such bucket.")
    is_denied = isinstance(error, PermissionDeniedError | UnauthenticatedError)
    if is_denied or code in _DENIED_CODES or status in ("401", "403"):
        reason = f" ({code})" if code else ""
        return AccessDenied(f"No permission for {safe_uri}{reason}.", _CREDENTIALS_HINT)
    if isinstance(error, FileNotFoundError) or status == "404":
        return ObjectNotFound(f"{safe_uri} does not exist.")
    if status in ("301", "307") or code in ("PermanentRedirect", "AuthorizationHeaderMalformed"):
        return StorageError(
            f"{safe_uri}: the bucket is in another region.", "Set storage.region or AWS_REGION."
        )
    if not status and "sending request" in text:
        return StorageError(
            f"{safe_uri}: the storage server cannot be reached.",
            "Check storage.endpoint_url (or AWS_ENDPOINT_URL) and the network.",
        )
    return StorageError(f"{safe_uri}: {code or _short_reason(error)}")


def _with_retries(store: Any, action: Callable[[], _Result]) -> _Result:
    """Run an idempotent action, and retry it after transient failures with random backoff.

    obstore itself retries the requests that HTTP calls safe, and GET bodies that break off. It does
    not retry a listing or an error response that breaks off, nor a POST (delete) or a conditional
    PUT whose connection is lost. Those are retried here, at most as often as obstore retries one
    request.
    """
    retries = int((store.retry_config or {}).get("max_retries", 0))
    for attempt in range(retries):
        try:
            return action()
        except GenericError as error:
            if not _is_transient(error, retries):
                raise
        sleep_before_retry(attempt)
    return action()


def sleep_before_retry(attempt: int) -> None:
    """Sleep before retry number `attempt` (from 0): exponential backoff with full jitter."""
    time.sleep(random.uniform(0, min(_MAX_RETRY_DELAY_S, _FIRST_RETRY_DELAY_S * 2**attempt)))


def _is_transient(error: BaseError, retries: int) -> bool:
    """Whether the request may succeed if repeated and obstore has not used up its retries."""
    text = str(error).partition("Debug source:")[0]
    exhausted = _RETRIES_EXHAUSTED.search(text)
    if exhausted and int(exhausted.group(1)) >= retries:
        return False
    code, status = _ERROR_CODE.search(text), _HTTP_STATUS.search(text)
    if status is None:
        return "HTTP error" in text or "response body" in text
    return status.group(1)[0] == "5" or bool(code and code.group(1) in _TRANSIENT_CODES)


def _short_reason(error: Exception) -> str:
    line = str(error).partition("\n")[0].partition("<?xml")[0].strip()
    return re.sub(r"https?://\S+", lambda match: redact(match.group()), line)[:300]


def clean_etag(meta: Any) -> str:
    """The ETag without its quotes; "" if the store does not give one."""
    return (meta["e_tag"] or "").strip('"')


def stat(store: Any, uri: str) -> tuple[int, str]:
    """(size in bytes, etag)."""
    if not split(uri)[2]:
        raise ObjectNotFound(f"{uri} is a bucket, not an object.")
    with translate_errors(uri):
        meta = _with_retries(store, lambda: obstore.head(store, split(uri)[2]))
    return int(meta["size"]), clean_etag(meta)


def walk(store: Any, uri: str) -> Iterator[tuple[str, int, str]]:
    """(uri, size, etag) of all objects below the prefix, in the order of the store."""
    for object_uri, size, etag, _ in walk_with_times(store, uri):
        yield object_uri, size, etag


def walk_with_times(store: Any, uri: str) -> Iterator[tuple[str, int, str, float]]:
    """Like `walk`, with the time of the last change in seconds since 1970 by the store's clock."""
    scheme, bucket, key = split(uri)
    retries = int((store.retry_config or {}).get("max_retries", 0))
    last_key: str | None = None
    attempt = 0
    with translate_errors(uri):
        while True:
            try:
                chunks = obstore.list(
                    store, prefix=key or None, offset=last_key, chunk_size=_LIST_CHUNK_OBJECTS
                )
                for chunk in chunks:
                    for meta in chunk:
                        object_uri = f"{scheme}://{bucket}/{meta['path']}"
                        changed_s = meta["last_modified"].timestamp()
                        yield object_uri, int(meta["size"]), clean_etag(meta), changed_s
                        last_key = meta["path"]
                    attempt = 0
                return
            except GenericError as error:  # a page broke off: continue after the last key
                if attempt >= retries or not _is_transient(error, retries):
                    raise
            sleep_before_retry(attempt)
            attempt += 1


def read(store: Any, uri: str, check_size: Callable[[int], None]) -> bytes:
    """The whole object in one request; `check_size` gets its size before the body is fetched."""

    def get() -> bytes:
        result = obstore.get(store, split(uri)[2])
        check_size(int(result.meta["size"]))
        return bytes(result.bytes())

    with translate_errors(uri):
        return _with_retries(store, get)


def read_range(store: Any, uri: str, start: int, length: int) -> bytes:
    """`length` bytes from byte `start` on; fewer at the end of the object."""
    if length <= 0:
        return b""
    try:
        with translate_errors(uri):
            key, end = split(uri)[2], start + length
            return bytes(
                _with_retries(store, lambda: obstore.get_range(store, key, start=start, end=end))
            )
    except StorageError as error:
        if "InvalidRange" in error.message:
            return b""  # starts at or after the end
        raise


def write(store: Any, uri: str, data: bytes) -> None:
    """Create or replace the object."""
    key = split(uri)[2]
    multipart = len(data) > _SINGLE_PUT_BYTES
    with translate_errors(uri):
        try:
            _with_retries(store, lambda: obstore.put(store, key, data, use_multipart=multipart))
        except FileNotFoundError:
            if not multipart:
                raise
            # The response to the completing request was lost, and the repeated request found that
            # the upload no longer exists.
            obstore.put(store, key, data, use_multipart=True)


def write_if_absent(store: Any, uri: str, data: bytes) -> bool:
    """One PUT with `If-None-Match: *`; True if this call created the object.

    A PUT whose response was lost is sent again and then finds the object that it created itself: a
    nonce in the object's metadata tells who created it.
    """
    key, nonce = split(uri)[2], secrets.token_hex(16)
    attributes = {_NONCE_ATTRIBUTE: nonce}

    def put() -> None:
        obstore.put(store, key, data, attributes=attributes, mode="create", use_multipart=False)

    with translate_errors(uri):
        try:
            _with_retries(store, put)
        except AlreadyExistsError:
            try:
                existing = _with_retries(store, lambda: obstore.get(store, key))
            except FileNotFoundError:  # deleted in the meantime
                return False
            return bool(existing.attributes.get(_NONCE_ATTRIBUTE) == nonce)
    return True


def delete(store: Any, uri: str) -> None:
    """Delete the object if it exists."""
    with translate_errors(uri):
        try:
            _with_retries(store, lambda: obstore.delete(store, split(uri)[2]))
        except FileNotFoundError:
            return
