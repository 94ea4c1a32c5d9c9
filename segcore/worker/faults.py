"""Whose fault an exception is: the image's, the model's, or our own; and its line in the log."""

from __future__ import annotations

import logging
import traceback

from segcore.errors import ErrorCode, ImageError, NotFinite, describe_error
from segcore.logs.faults import fault_key, is_own_fault

_LOGGER = logging.getLogger(__name__)
_OWN_MODELS = "segcore.models."


def is_own_model(model: object) -> bool:
    """Whether the code of a model is ours, not that of a user."""
    return type(model).__module__.startswith(_OWN_MODELS)


def model_failure(model: object, error: Exception, *, in_network: bool = False) -> ImageError:
    """The error of an image on which a model raised; `log_fault` knows its traceback.

    What the model of a user raises is `model_error`. Of our own models that is what comes of the
    weights or from the network's libraries; any other exception is a bug of ours.
    """
    is_ours = is_own_model(model) and not isinstance(error, NotFinite)
    if in_network:
        is_ours = is_ours and is_own_fault(error)
    code = ErrorCode.INTERNAL_ERROR if is_ours else ErrorCode.MODEL_ERROR
    return code_failure(code, error)


def code_failure(code: ErrorCode, error: Exception, message: str = "") -> ImageError:
    """The error of an image that code is to blame for; by default with the exception's message."""
    failure = ImageError(code, message or describe_error(error))
    failure.fault = fault_key(error)
    failure.traceback = "".join(traceback.format_exception(error))
    return failure


def log_fault(failure: ImageError, image: str) -> None:
    """Log the error of an image if code is at fault, once.

    Whoever keeps the log has one traceback of each fault in it, and counts the others.
    """
    if not failure.fault:
        return
    about = {"image": image, "error": failure.fault, "traceback": failure.traceback}
    failure.fault = failure.traceback = ""
    level = logging.ERROR if failure.code is ErrorCode.INTERNAL_ERROR else logging.WARNING
    _LOGGER.log(level, "An image failed (%s): %s", failure.code, failure.message, extra=about)
