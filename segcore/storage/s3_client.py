"""S3 through botocore: for listing, and for the objects whose keys obstore cannot name.

To S3 a key is any text of up to 1,024 bytes. obstore takes it for a path: one key with an empty,
`.` or `..` segment or a control character ends its listing with an error, and slashes at the start
and at the end of a key are dropped without a word, which names another object. botocore takes keys
as they are. It needs more CPU for each object that it reads, so ordinary keys are read by obstore;
in a listing, the server takes longer than the client.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from segcore.errors import ObjectNotFound, StorageError
from segcore.storage import remote_errors
from segcore.storage.retries import repeat_while_throttled, sleep_before_retry
from segcore.storage.s3_pages import read_entries
from segcore.storage.s3_session import open_session
from segcore.storage.uris import split

_CONNECT_TIMEOUT_S = 10.0
_CONNECTIONS = 64
_ODD_KEY = re.compile(r"^/|//|/$|(?:^|/)\.\.?(?:/|$)|[\x00-\x1f\x7f]")
_Result = TypeVar("_Result")


def is_needed(uri: str) -> bool:
    """Whether obstore would refuse the key of this remote URI, or take it for another."""
    scheme, _, key = split(uri)
    return scheme == "s3" and _ODD_KEY.search(key) is not None


@dataclass(frozen=True)
class S3Client:
    """A client for all buckets.

    Attributes:
        client: botocore's; safe for threads. Does not retry.
        retries: How often a request is repeated here.
        payer: Arguments that say who pays.
    """

    client: Any
    retries: int
    payer: dict[str, str]


def connect(uri: str, options: Any) -> S3Client:
    """The client for all buckets, `uri` being the first need; `options` is a `StorageOptions`.

    Raises:
        AccessDenied: No credentials were found and `options.anonymous` is false.
        StorageError: The client cannot be set up.
    """
    import botocore
    import botocore.config
    import botocore.exceptions

    bucket = split(uri)[1]
    session = open_session(bucket, options)
    session.session.register_component("data_loader", _api_description())
    config = botocore.config.Config(
        region_name=session.region,
        connect_timeout=min(options.timeout_s, _CONNECT_TIMEOUT_S),
        read_timeout=options.timeout_s,
        max_pool_connections=_CONNECTIONS,
        retries={"total_max_attempts": 1},
        s3={"addressing_style": "path"},  # as obstore does
        response_checksum_validation="when_required",  # not all servers know the header
        signature_version=botocore.UNSIGNED if session.anonymous else "s3v4",
    )
    try:
        client = session.session.create_client("s3", endpoint_url=session.endpoint, config=config)
    except (botocore.exceptions.BotoCoreError, ValueError) as error:
        raise StorageError(f"Cannot open s3://{bucket}: {error}") from error
    client.meta.events.register_first("needs-retry.s3", _raise_error_response)
    client.meta.events.register_first("before-parse.s3.ListObjectsV2", read_entries)
    payer = {"RequestPayer": "requester"} if options.requester_pays else {}
    return S3Client(client, options.retries, payer)


def _raise_error_response(response: Any, operation: Any, **_: Any) -> None:
    """Keep botocore from following a bucket to another region, which obstore would not do."""
    import botocore.exceptions

    if response is not None and "Error" in response[1]:
        raise botocore.exceptions.ClientError(response[1], operation.name)


@cache
def _api_description() -> Any:
    """What botocore reads from its files, kept: parsing them is most of the work of connecting."""
    import botocore.loaders

    return botocore.loaders.create_loader()


@contextmanager
def translate_errors(uri: str) -> Iterator[None]:
    """Turn the errors of botocore into those of segcore."""
    import botocore.exceptions
    import botocore.parsers

    try:
        yield
    except botocore.exceptions.ClientError as error:
        status, code = _response_of(error)
        raise remote_errors.describe_response(uri, status, code, str(error)) from error
    except botocore.parsers.ResponseParserError as error:
        raise StorageError(
            f"{uri}: the server's answer is not valid XML, perhaps because a key has characters "
            "that XML cannot hold and the server does not encode them."
        ) from error
    except botocore.exceptions.HTTPClientError as error:
        raise remote_errors.unreachable(uri) from error
    except botocore.exceptions.BotoCoreError as error:
        raise StorageError(f"{uri}: {remote_errors.short_reason(error)}") from error


def _response_of(error: Any) -> tuple[str, str]:
    """(HTTP status, error code) of a ClientError; for HEAD the code is ""."""
    status = str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
    code = str(error.response.get("Error", {}).get("Code", ""))
    return status, "" if code.isdigit() else code  # the status stands in for a missing code


def with_retries(client: S3Client, action: Callable[[], _Result]) -> _Result:
    """Run an action that only reads, and retry it after transient failures.

    Where the store asks for fewer requests, there is more `Patience`.
    """
    return repeat_while_throttled(
        lambda: _with_few_retries(client, action), _is_throttled, client.retries
    )


def _with_few_retries(client: S3Client, action: Callable[[], _Result]) -> _Result:
    import botocore.exceptions
    import botocore.parsers

    for attempt in range(client.retries):
        try:
            return action()
        except botocore.exceptions.ClientError as error:
            if not remote_errors.is_transient_response(*_response_of(error)):
                raise
        except (
            botocore.exceptions.HTTPClientError,
            botocore.exceptions.IncompleteReadError,
            botocore.parsers.ResponseParserError,  # the response broke off
        ):
            pass
        sleep_before_retry(attempt)
    return action()


def _is_throttled(error: Exception) -> bool:
    import botocore.exceptions

    return isinstance(
        error, botocore.exceptions.ClientError
    ) and remote_errors.is_throttled_response(*_response_of(error))


def clean_etag(item: dict[str, Any]) -> str:
    """The ETag without its quotes; "" if the store does not give one."""
    return (item.get("ETag") or "").strip('"')


def stat(client: S3Client, uri: str) -> tuple[int, str]:
    """(size in bytes, etag)."""
    with translate_errors(uri):
        found = with_retries(client, lambda: client.client.head_object(**_address(client, uri)))
    return int(found["ContentLength"]), clean_etag(found)


def read(client: S3Client, uri: str, check_size: Callable[[int], None]) -> tuple[bytes, str]:
    """(the whole object, etag); `check_size` gets its size before the body is fetched."""

    def get() -> tuple[bytes, str]:
        found = client.client.get_object(**_address(client, uri))
        with found["Body"] as body:
            check_size(int(found["ContentLength"]))
            return body.read(), clean_etag(found)

    with translate_errors(uri):
        return with_retries(client, get)


def read_range(client: S3Client, uri: str, start: int, length: int) -> bytes:
    """`length` bytes from byte `start` on; fewer at the end of the object."""
    if length <= 0:
        return b""
    bounds = f"bytes={start}-{start + length - 1}"

    def get() -> bytes:
        found = client.client.get_object(**_address(client, uri), Range=bounds)
        with found["Body"] as body:
            return bytes(body.read())

    try:
        with translate_errors(uri):
            return with_retries(client, get)
    except StorageError as error:
        if "InvalidRange" in error.message:
            return b""  # starts at or after the end
        raise


def _address(client: S3Client, uri: str) -> dict[str, str]:
    _, bucket, key = split(uri)
    if not key:
        raise ObjectNotFound(f"{uri} is a bucket, not an object.")
    return {"Bucket": bucket, "Key": key, **client.payer}
