"""Errors of object stores as those of segcore: one sentence each, without secrets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from obstore.exceptions import (
    BaseError,
    GenericError,
    PermissionDeniedError,
    UnauthenticatedError,
)

from segcore.errors import (
    AccessDenied,
    CredentialsRejected,
    ObjectNotFound,
    SegcoreError,
    StorageError,
    StorageFull,
    TooManyRequests,
)
from segcore.storage.uris import split
from segcore.text import redact

CREDENTIALS_HINT = (
    "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE or the role of this machine."
)
_DENIED_HINT = (
    CREDENTIALS_HINT + " If the owner of the bucket lets requesters pay, set "
    "storage.requester_pays=true."
)
_EXPIRED_HINT = "They have expired: renew them, then rerun the same command to resume."
_CLOCK_HINT = "The clock of this machine is wrong: set it, then rerun the same command to resume."
# What a store says about the credentials themselves, whatever the object is.
_REJECTED_HINTS = {
    "AccountProblem": CREDENTIALS_HINT,
    "AuthFailure": CREDENTIALS_HINT,
    "ExpiredToken": _EXPIRED_HINT,
    "ExpiredTokenException": _EXPIRED_HINT,
    "InvalidAccessKeyId": CREDENTIALS_HINT,
    "InvalidClientTokenId": CREDENTIALS_HINT,
    "InvalidSecurity": CREDENTIALS_HINT,
    "InvalidToken": CREDENTIALS_HINT,
    "NotSignedUp": CREDENTIALS_HINT,
    "RequestExpired": _CLOCK_HINT,
    "RequestTimeTooSkewed": _CLOCK_HINT,
    "SignatureDoesNotMatch": CREDENTIALS_HINT,
    "TokenRefreshRequired": _EXPIRED_HINT,
    "UnrecognizedClientException": CREDENTIALS_HINT,
}
_FULL_CODES = {"InsufficientStorage", "QuotaExceeded", "XMinioStorageFull", "ServiceQuotaExceeded"}
_FULL_HINT = "Make room there or raise the quota, then rerun the same command to resume."
_TRANSIENT_CODES = {
    "IncompleteBody",
    "InternalError",
    "NoSuchUpload",
    "RequestTimeout",
    "SlowDown",
    "Throttling",
}
_THROTTLED_CODES = {  # of S3 and its like, and of Azure
    "RequestLimitExceeded",
    "ServerBusy",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
}
_THROTTLED_HINT = (
    "Use fewer workers or fewer source.read_threads, or wait; the same command resumes."
)
_UNAVAILABLE_HINT = "Rerun the same command when it answers again, to resume."
_BARE_400_HINT = (
    "Most often the credentials have expired or are wrong, or storage.region (AWS_REGION) is. "
    + CREDENTIALS_HINT
)
_ERROR_CODE = re.compile(r"<Code>([A-Za-z]+)</Code>")
_DELETE_CODE = re.compile(  # of one key among those that are deleted together
    r"^Generic \w+ error: DeleteObjects request failed .*\(code: ([A-Za-z]+)\)$", re.MULTILINE
)
_HTTP_STATUS = re.compile(r"status code: (\d{3})")
_RETRIES_EXHAUSTED = re.compile(r"after (\d+) retries")


class WrongRegion(StorageError):
    """The bucket is in another region than the one that was asked."""


def describe_response(uri: str, status: str, code: str, reason: str) -> StorageError:
    """The error for a response that is not a success.

    Args:
        status: HTTP status; "" if there was no response.
        code: Error code of S3, such as "NoSuchKey"; "" if the response has none, as for HEAD.
        reason: What else is known, for people.
    """
    safe_uri = redact(uri)
    if code == "NoSuchBucket":
        return ObjectNotFound(f"{safe_uri}: there is no such bucket.")
    if status == "507" or code in _FULL_CODES:
        return StorageFull(f"{safe_uri}: the storage is full ({code or status}).", _FULL_HINT)
    if code in _REJECTED_HINTS or status == "401":
        rejected = f"No permission for {safe_uri}: the credentials are not accepted"
        suffix = f" ({code})." if code else "."
        return CredentialsRejected(rejected + suffix, _REJECTED_HINTS.get(code, CREDENTIALS_HINT))
    if code == "InvalidObjectState":
        return AccessDenied(
            f"{safe_uri} is archived (InvalidObjectState).", "Restore it from the archive first."
        )
    if status == "403" or code == "AccessDenied":
        return AccessDenied(
            f"No permission for {safe_uri}{f' ({code})' if code else ''}.", _DENIED_HINT
        )
    if status == "404":
        return ObjectNotFound(f"{safe_uri} does not exist.")
    if status in ("301", "307") or code in ("PermanentRedirect", "AuthorizationHeaderMalformed"):
        return WrongRegion(
            f"{safe_uri}: the bucket is in another region.", "Set storage.region or AWS_REGION."
        )
    if status == "503" and not code:  # of S3, throttling; of a gateway, that it has no server
        return TooManyRequests(
            f"{safe_uri}: the store is unavailable, or refuses requests because there are too many "
            "(503).",
            _THROTTLED_HINT,
        )
    if is_throttled_response(status, code):
        return TooManyRequests(
            f"{safe_uri}: the store goes on refusing requests because there are too many "
            f"({code or status}).",
            _THROTTLED_HINT,
        )
    if status.startswith("5") and not code:
        return StorageError(
            f"{safe_uri}: the store, or a gateway before it, is unavailable ({status}).",
            _UNAVAILABLE_HINT,
        )
    if status == "400" and not code:  # what S3 answers to HEAD, of which it gives no code
        return StorageError(f"{safe_uri}: the store refuses the request (400).", _BARE_400_HINT)
    return StorageError(f"{safe_uri}: {code or reason}")


def unreachable(uri: str) -> StorageError:
    """The error for a server that does not answer."""
    return StorageError(
        f"{redact(uri)}: the storage server cannot be reached.",
        "Check storage.endpoint_url (or AWS_ENDPOINT_URL) and the network.",
    )


def is_transient_response(status: str, code: str) -> bool:
    """Whether a request with this response may succeed when it is sent again."""
    if status == "507" or code in _FULL_CODES:
        return False
    return status.startswith("5") or status == "429" or code in _TRANSIENT_CODES


def is_throttled_response(status: str, code: str) -> bool:
    """Whether a response says that there are too many requests.

    For HEAD there is no code, and S3 says so by 503.
    """
    return code in _THROTTLED_CODES or status == "429" or (status == "503" and not code)


def is_throttled(error: Exception) -> bool:
    """The same of an error of obstore."""
    return isinstance(error, GenericError) and is_throttled_response(
        *_response_of(str(error).partition("Debug source:")[0])
    )


@contextmanager
def translate_errors(uri: str) -> Iterator[None]:
    """Turn the errors of obstore into those of segcore."""
    try:
        yield
    except SegcoreError:
        raise
    except (BaseError, OSError, ValueError) as error:
        raise _to_segcore_error(error, uri) from error


def _to_segcore_error(error: Exception, uri: str) -> StorageError:
    # Keys are text of strangers: one that reads like a response must not count as one.
    key = split(uri)[2]
    text = str(error).replace(f"path {key}", "path").replace(f"location {key}", "location")
    status, code = _response_of(text)
    if not status and "sending request" in str(error):
        return unreachable(uri)
    if not status and isinstance(error, FileNotFoundError):
        status = "404"
    elif not status and "redirect without LOCATION" in text:
        status = "301"
    elif not status and isinstance(error, PermissionDeniedError | UnauthenticatedError):
        status = "403"
    return describe_response(uri, status, code, short_reason(error))


def _response_of(text: str) -> tuple[str, str]:
    """(HTTP status, error code) in the text of an obstore error; "" where there is none."""
    status, code = _HTTP_STATUS.search(text), _ERROR_CODE.search(text) or _DELETE_CODE.search(text)
    return status.group(1) if status else "", code.group(1) if code else ""


def is_transient(error: BaseError, retries: int) -> bool:
    """Whether the request may succeed if repeated and obstore has not used up its retries."""
    text = str(error).partition("Debug source:")[0]
    exhausted = _RETRIES_EXHAUSTED.search(text)
    if exhausted and int(exhausted.group(1)) >= retries:
        return False
    status, code = _response_of(text)
    if not status:
        return "HTTP error" in text or "response body" in text
    return is_transient_response(status, code)


def short_reason(error: Exception) -> str:
    """The first line of an error, without XML and without the secrets of a URL."""
    line = str(error).partition("\n")[0].partition("<?xml")[0].strip()
    return re.sub(r"https?://\S+", lambda match: redact(match.group()), line)[:300]
