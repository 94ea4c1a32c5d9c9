"""Objects on S3, Google Cloud Storage and Azure through obstore, with readable errors.

S3 is listed by `s3_client`, which also reads what obstore cannot name. `gs://` and `az://` take
their credentials from the environment variables that obstore documents; the tests of this project
do not cover them.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from tempfile import TemporaryFile, gettempdir
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, GenericError, PreconditionError

from segcore.errors import AccessDenied, ObjectNotFound, StorageError
from segcore.storage.local_disk import translate_errors as translate_disk_errors
from segcore.storage.remote_errors import (
    is_throttled,
    is_transient,
    short_reason,
    translate_errors,
)
from segcore.storage.retries import Patience, repeat_while_throttled, sleep_before_retry
from segcore.storage.s3_session import open_session
from segcore.storage.uris import split
from segcore.text import redact

if TYPE_CHECKING:
    from obstore import PutMode
    from obstore.store import ClientConfig, RetryConfig, S3Config

# Objects up to this size are written by one PUT. Larger ones are uploaded in parts and still become
# visible only when they are complete.
_SINGLE_PUT_BYTES = 64 << 20
_LIST_CHUNK_OBJECTS = 1000
_CONNECT_TIMEOUT = timedelta(seconds=10)
# botocore renews credentials 15 minutes before they expire, so this never yields expired ones.
_CREDENTIALS_TTL = timedelta(minutes=5)
_MAX_REPAIRS = 10  # of an object that a server created without its bytes
_NONCE_ATTRIBUTE = "segcore-nonce"
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
    # Each delay lies between the first one and `base` times the previous one. With the defaults of
    # 0.1 s and 2 they hardly grow: eight retries often end before a server has restarted or takes
    # requests again that it throttled. With these eight take 16 s in the median.
    retry: RetryConfig = {
        "max_retries": options.retries,
        "retry_timeout": timedelta(minutes=5),
        "backoff": {"init_backoff": timedelta(seconds=0.3), "base": 3},
    }
    try:
        if scheme == "s3":
            return _connect_s3(bucket, options, client, retry)
        return obstore.store.from_url(
            f"{scheme}://{bucket}", client_options=client, retry_config=retry
        )
    except (BaseError, ValueError) as error:
        raise StorageError(f"Cannot open {scheme}://{bucket}: {short_reason(error)}") from error


def _connect_s3(bucket: str, options: Any, client: ClientConfig, retry: RetryConfig) -> Any:
    from obstore.auth.boto3 import Boto3CredentialProvider

    session = open_session(bucket, options)
    credentials: dict[str, Any] = {"skip_signature": True}
    if not session.anonymous:
        provider = Boto3CredentialProvider(session.session, ttl=_CREDENTIALS_TTL)
        credentials = {"credential_provider": provider}
    config: S3Config = {"region": session.region}
    if options.requester_pays:
        config["request_payer"] = True
    if session.endpoint:
        config["endpoint"] = session.endpoint
        client["allow_http"] = session.endpoint.startswith("http://")
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


def _with_retries(store: Any, action: Callable[[], _Result]) -> _Result:
    """Run an idempotent action, and retry it after transient failures with random backoff.

    obstore itself retries the requests that HTTP calls safe, and GET bodies that break off. It does
    not retry a listing or an error response that breaks off, nor a POST (delete) or a conditional
    PUT whose connection is lost. Those are retried here, at most as often as obstore retries one
    request. Where the store asks for fewer requests, there is more `Patience`.
    """
    retries = _retries(store)

    def retry() -> _Result:
        for attempt in range(retries):
            try:
                return action()
            except GenericError as error:
                if not is_transient(error, retries):
                    raise
            sleep_before_retry(attempt)
        return action()

    return repeat_while_throttled(retry, is_throttled, retries)


def _retries(store: Any) -> int:
    return int((store.retry_config or {}).get("max_retries", 0))


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


def walk(store: Any, uri: str) -> Iterator[tuple[str, int, str, float]]:
    """(uri, size, etag, time of the last change) of all objects below the prefix.

    In the order of the store; times are in seconds since 1970 by its clock.
    """
    scheme, bucket, key = split(uri)
    retries = _retries(store)
    last_key: str | None = None
    attempt, patience = 0, Patience(retries)
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
                    attempt, patience = 0, Patience(retries)
                return
            except GenericError as error:  # a page broke off: continue after the last key
                if is_throttled(error) and patience.wait():
                    continue
                if attempt >= retries or not is_transient(error, retries):
                    raise
            sleep_before_retry(attempt)
            attempt += 1


def files(store: Any, uri: str) -> list[tuple[str, int, str, float]]:
    """The rows of `walk` for the objects directly below the prefix."""
    scheme, bucket, _ = split(uri)
    return [
        (
            f"{scheme}://{bucket}/{meta['path']}",
            int(meta["size"]),
            clean_etag(meta),
            meta["last_modified"].timestamp(),
        )
        for meta in _list_with_delimiter(store, uri)["objects"]
    ]


def folders(store: Any, uri: str) -> list[str]:
    """URIs of the folders directly below the prefix, sorted."""
    scheme, bucket, _ = split(uri)
    result = _list_with_delimiter(store, uri)
    return sorted(f"{scheme}://{bucket}/{prefix}" for prefix in result["common_prefixes"])


def _list_with_delimiter(store: Any, uri: str) -> Any:
    key = split(uri)[2]
    with translate_errors(uri):
        return _with_retries(store, lambda: obstore.list_with_delimiter(store, key or None))


def read(store: Any, uri: str, check_size: Callable[[int], None]) -> tuple[bytes, str]:
    """(the whole object, etag); `check_size` gets its size before the body is fetched."""

    def get() -> tuple[bytes, str]:
        result = obstore.get(store, split(uri)[2])
        check_size(int(result.meta["size"]))
        return bytes(result.bytes()), clean_etag(result.meta)

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


def write(store: Any, uri: str, data: bytes | memoryview) -> str:
    """Create or replace the object; returns the etag of what was written."""
    return _put(store, uri, lambda: data, len(data))


def write_with(store: Any, uri: str, write: Callable[[BinaryIO], None]) -> str:
    """As `write`, with what `write` puts into a file."""
    with TemporaryFile() as file:
        with translate_disk_errors(gettempdir()):
            write(file)
            n_bytes = file.tell()

        def rewind() -> BinaryIO:
            file.seek(0)
            return file

        return _put(store, uri, rewind, n_bytes)


def _put(store: Any, uri: str, content: Callable[[], Any], n_bytes: int) -> str:
    """Write what `content` gives, from its beginning each time; returns the etag."""
    key = split(uri)[2]
    multipart = n_bytes > _SINGLE_PUT_BYTES

    def put() -> Any:
        return obstore.put(store, key, content(), use_multipart=multipart)

    with translate_errors(uri):
        try:
            return clean_etag(_with_retries(store, put))
        except FileNotFoundError:
            if not multipart:
                raise
            # The response to the completing request was lost, and the repeated request found that
            # the upload no longer exists.
            return clean_etag(put())


def write_if_absent(store: Any, uri: str, data: bytes) -> bool:
    """One PUT with `If-None-Match: *`; True if this call created the object.

    A PUT whose response was lost is sent again and then finds the object that it created itself: a
    nonce in the object's metadata tells who created it. SeaweedFS 4.48 creates an empty object if
    the connection breaks off between the head of a PUT and its body. Then the creator, and no one
    else, puts the bytes in its place.

    Raises:
        StorageError: The object was created, but could not be made whole.
    """
    key, nonce = split(uri)[2], secrets.token_hex(16)
    attributes = {_NONCE_ATTRIBUTE: nonce}
    mode: PutMode = "create"

    def put() -> None:
        obstore.put(store, key, data, attributes=attributes, mode=mode, use_multipart=False)

    def get() -> tuple[Any, bytes]:
        result = obstore.get(store, key)
        return result, bytes(result.bytes())

    with translate_errors(uri):
        for _ in range(_MAX_REPAIRS):
            try:
                _with_retries(store, put)
                return True
            except (AlreadyExistsError, PreconditionError):
                try:
                    existing, content = _with_retries(store, get)
                except FileNotFoundError:  # deleted in the meantime
                    return False
            if existing.attributes.get(_NONCE_ATTRIBUTE) != nonce:
                return False
            if content == data:
                return True
            mode = {"e_tag": existing.meta["e_tag"] or ""}
    raise StorageError(f"{uri} was created without its bytes.", "Delete this object.")


def copy(store: Any, source: str, target: str) -> None:
    """Let the store copy an object within a bucket; replaces what had this name."""
    try:
        with translate_errors(source):
            _with_retries(store, lambda: obstore.copy(store, split(source)[2], split(target)[2]))
    except AccessDenied as error:
        if type(error) is not AccessDenied:
            raise
        raise AccessDenied(  # the store does not say which of the two
            f"{error.message} It was to be copied to {redact(target)}, which needs rights to "
            "read the one and write the other.",
            error.hint,
        ) from error


def delete(store: Any, uri: str) -> None:
    """Delete the object if it exists."""
    with translate_errors(uri):
        try:
            _with_retries(store, lambda: obstore.delete(store, split(uri)[2]))
        except FileNotFoundError:
            return


def delete_all(store: Any, uris: Sequence[str]) -> None:
    """Delete these objects of one bucket, those that exist; on S3 up to 1,000 in a request."""
    with translate_errors(uris[0]):
        try:
            _with_retries(store, lambda: obstore.delete(store, [split(uri)[2] for uri in uris]))
        except FileNotFoundError:  # a store without such a request says so of single objects
            for uri in uris:
                delete(store, uri)
