"""The exceptions of segcore, and the closed lists of reasons why an image can fail or needs a look.

A `SegcoreError` ends the command with its message, its hint and its exit code (in brackets, where
it is not that of its base)::

    SegcoreError (1)            shown to a person without a traceback
      UsageError (2)            the command, the configuration or the input is wrong
        NothingFound (1)        the input holds no image at all
        ListingShrank (1)       the input lacks much of what the last listing had
        DamagedOutput (1)       a file of an output is not what a run wrote there
        CheckpointError         a model file is missing, damaged, unsafe or of the wrong kind
      StorageError              storage failed, after retries
        ObjectNotFound (2)      there is no object at this URI
        AccessDenied            credentials are missing or do not allow this
          CredentialsRejected   the store does not accept the credentials at all, or no longer
        ObjectChanged           another version than the one that was planned
        StorageFull             there is no room left, or no quota
        ObjectTooLarge          more than may be held in memory (segcore.storage.storage)
        WrongRegion             the bucket is elsewhere (segcore.storage.remote_errors)
        SpecialFile             a pipe, a socket or a device (segcore.storage.local_disk)
      ClusterError              Ray cannot be reached or has too few resources
      LeaseHeld                 another run works on this edition (segcore.lease.lease)
      LeaseLost                 this run may no longer delete or publish (segcore.lease.lease)
      Interrupted (130)         somebody stopped the run

An `ImageError` ends nothing: it becomes a `failed` row of the `images` table, with an `ErrorCode`.
An `ImageWarning` is no exception: it stands in the row of its image, whatever became of that.

Others are signals between two places of the code and reach nobody else::

    DeviceLost                  this process must be replaced (segcore.worker.batching)
    HostOutOfMemory             try the unit image by image (segcore.worker.unit_worker)
    ProcessDied                 the process of an isolator is gone (segcore.distributed.isolation)
    NoWorkingProcess            not even a plain image can be segmented (the same)
    PickleRefused               a checkpoint is not read (segcore.models.pickles)
    NotFinite                   a network gave NaN or infinity (here): its image fails
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple, Self

from segcore.exit_codes import ExitCode
from segcore.text import printable


class SegcoreError(Exception):
    """Base of all errors that are shown to a person without a traceback.

    Args:
        message: What is wrong, with the value and the file; several lines if it is a sequence. It
            may quote names from archives, so what could steer a terminal or begin a line of its own
            becomes "?".
        hint: What to do about it, on a line of its own; the same holds for it.

    Attributes:
        details: What else went wrong before, such as errors of single units; for programs.
    """

    exit_code: ExitCode = ExitCode.INCOMPLETE
    details: tuple[str, ...] = ()

    def __init__(self, message: str | Sequence[str], hint: str = "") -> None:
        lines = [message] if isinstance(message, str) else message
        self.message = "\n".join(map(printable, lines))
        self.hint = printable(hint)
        super().__init__(self.message)

    @property
    def code(self) -> str:
        """The kind of error for programs, such as ``usage_error``."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()

    def __reduce__(self) -> tuple[type[SegcoreError], tuple[list[str], str]]:
        # survives Ray's pickling with its hint
        return type(self), (self.message.split("\n"), self.hint)


class Interrupted(SegcoreError):
    """Somebody stopped the run; what is done stays."""

    exit_code = ExitCode.INTERRUPTED

    @classmethod
    def after(cls, n_done: int, total: str) -> Self:
        """The error of a run that the same command resumes.

        Args:
            total: All there was to do, such as ``12 units``.
        """
        if n_done == 0:
            return cls(f"Stopped. 0 of {total} are done.", "The same command begins again.")
        verb = "is" if n_done == 1 else "are"
        return cls(
            f"Stopped. {n_done:,} of {total} {verb} done and kept.",
            "Run the same command again to resume.",
        )


class UsageError(SegcoreError):
    """The command, its configuration or its input is wrong; nothing was started."""

    exit_code = ExitCode.USAGE


class ListingShrank(UsageError):
    """The input lacks much of the last listing; `source.allow_shrunk_listing` allows it."""

    exit_code = ExitCode.INCOMPLETE


class DamagedOutput(UsageError):
    """A file of an output is not what a run wrote there, or is gone."""

    exit_code = ExitCode.INCOMPLETE


class CheckpointError(UsageError):
    """A model file is missing, damaged, unsafe or of the wrong kind."""


class NothingFound(UsageError):
    """The input holds no image at all; `source.allow_empty` allows that."""

    exit_code = ExitCode.INCOMPLETE


class StorageError(SegcoreError):
    """Storage failed, after retries."""


class ObjectNotFound(StorageError):
    """There is no object at this URI."""

    exit_code = ExitCode.USAGE


class AccessDenied(StorageError):
    """Credentials are missing or do not allow this."""


class CredentialsRejected(AccessDenied):
    """The store does not accept the credentials: expired, unknown, wrong, or a clock is off.

    Unlike a plain `AccessDenied`, this says nothing about the object that was asked for.
    """


class ObjectChanged(StorageError):
    """An object is no longer the version that was planned; the next run plans it again."""

    def __init__(self, message: str | Sequence[str], hint: str = "") -> None:
        super().__init__(message, hint or "Rerun the same command to plan it again.")


class TooManyRequests(StorageError):
    """The store went on refusing a request because there are too many; no object is to blame."""


class StorageFull(StorageError):
    """There is no room left, or no quota; trying again does not help."""


class ClusterError(SegcoreError):
    """Ray cannot be reached or does not have the resources that were asked for."""


class ErrorCode(StrEnum):
    """Why an image failed (`images.error_code`). The values are a contract: only add new ones."""

    EMPTY = "empty"  # zero bytes
    NOT_AN_IMAGE = "not_an_image"  # no known image signature
    UNSUPPORTED_FORMAT = "unsupported_format"  # an image of a kind that is not decoded
    CORRUPT = "corrupt"  # signature known, pixels cannot be decoded exactly
    TRUNCATED = "truncated"  # the data ends before the image does
    TOO_MANY_PIXELS = "too_many_pixels"  # width x height over limits.max_pixels
    TOO_MANY_BYTES = "too_many_bytes"  # object or member over limits.max_image_bytes
    TOO_MANY_PAGES = "too_many_pages"  # a TIFF has more pages than decode.max_pages
    NOT_FOUND = "not_found"  # the URI names no object
    ACCESS_DENIED = "access_denied"  # the object may not be read
    READ_ERROR = "read_error"  # storage failed after retries
    UNSAFE_URI = "unsafe_uri"  # scheme or path outside what the manifest may name
    UNSAFE_MEMBER = "unsafe_member"  # tar member: link, device, absolute or parent path
    SHARD_TRUNCATED = "shard_truncated"  # the archive ends inside this member
    SHARD_CORRUPT = "shard_corrupt"  # the archive cannot be read past this point
    MODEL_ERROR = "model_error"  # the model raised on this image
    OUT_OF_MEMORY = "out_of_memory"  # memory ran out for this image alone
    CRASHED = "crashed"  # the worker process died on this image
    TIMED_OUT = "timed_out"  # the image took longer than the limit
    INTERNAL_ERROR = "internal_error"  # a bug in segcore, not in the image


class ImageError(Exception):
    """One image cannot be processed; becomes its `failed` row.

    Args:
        code: The reason, from the closed list.
        message: One sentence for people, without secrets or temporary paths; as in `SegcoreError`,
            "?" for what could steer a terminal.

    Attributes:
        fault: Where code is at fault: the kind and the place of the exception; "" elsewhere.
        traceback: That of the exception. Both are for the log of this process, and stay in it.
    """

    fault: str = ""
    traceback: str = ""

    def __init__(self, code: ErrorCode, message: str) -> None:
        self.code = code
        self.message = printable(message)
        super().__init__(self.message)

    def __reduce__(self) -> tuple[type[ImageError], tuple[ErrorCode, str]]:
        return type(self), (self.code, self.message)


class NotFinite(ValueError):
    """A network gave NaN or infinity where only a number makes sense: its weights are to blame."""


class WarningCode(StrEnum):
    """What a person should know of an image (`images.warnings`). Values are a contract, too."""

    PAGES_LEFT_OUT = "pages_left_out"  # a TIFF has more pages than were read
    FRAMES_LEFT_OUT = "frames_left_out"  # an animation has more frames than the first
    NARROW_RANGE = "narrow_range"  # samples of more than 8 bits use a small part of their range
    STRONGLY_REDUCED = "strongly_reduced"  # the model sees it at less than a quarter of its size
    REPAIRED = "repaired"  # the decoder warned of damage, and its pixels were taken
    UNCHECKED = "unchecked"  # damage would have gone unnoticed
    DUPLICATE_NAME = "duplicate_name"  # its key occurred before in the shard, so it got another


class ImageWarning(NamedTuple):
    """What a person should know of one image; in its row it is the text `<code>: <message>`.

    Attributes:
        message: One sentence for people; where something was left out, it begins with how many.
    """

    code: WarningCode
    message: str

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"

    @classmethod
    def parse(cls, text: str) -> ImageWarning:
        """Inverse of `str`.

        Raises:
            ValueError: The text does not begin with a known code.
        """
        code, _, message = text.partition(": ")
        return cls(WarningCode(code), message)

    @property
    def n_left_out(self) -> int:
        """How many pages or frames were left out."""
        number = self.message.partition(" ")[0].replace(",", "")
        is_count = self.code in (WarningCode.PAGES_LEFT_OUT, WarningCode.FRAMES_LEFT_OUT)
        return int(number) if is_count and number.isdecimal() else 0


def describe_error(error: BaseException, limit: int = 300) -> str:
    """An exception as one line of at most `limit` characters, for the `error_message` column."""
    message = str(error)
    name = type(error).__name__
    text = " ".join(f"{name}: {message}".split() if message else (name,))
    return text if len(text) <= limit else text[: limit - 1] + "…"
