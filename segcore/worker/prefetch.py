"""Bytes to prepared images, ahead of the model: one reader, some decoders, bounded in flight."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from segcore.errors import ErrorCode, ImageError, UsageError, describe_error
from segcore.images import DecodedImage, DecodeOptions, decode_image, decode_image_reduced, probe
from segcore.models.base import ReducedPreprocess
from segcore.sources import Sample
from segcore.worker.watchdog import Watchdog

DEFAULT_READ_TIMEOUT_S = 3600.0  # for one read where the storage says nothing else


@dataclass(frozen=True)
class PreparedSample:
    """A sample after decoding: either `value` (what the model prepared) or `error` is set.

    Attributes:
        width, height: Pixels of the image in full, after EXIF orientation; None when not decoded.
    """

    sample: Sample
    value: Any = None
    width: int | None = None
    height: int | None = None
    error: ImageError | None = None


class Preprocessor:
    """What happens to the bytes of an image before the model, in two steps.

    Args:
        preprocess: Of the model.
        options: With the scale ``reduced``, images are decoded at no more than what the model sees.

    Raises:
        UsageError: The model cannot take reduced images.
    """

    def __init__(self, preprocess: Callable[[np.ndarray], Any], options: DecodeOptions) -> None:
        self._preprocess = preprocess
        self._options = options
        if options.scale == "reduced" and not isinstance(preprocess, ReducedPreprocess):
            raise UsageError(
                "decode.scale is `reduced`, but this model takes images in full only.",
                hint="Leave decode.scale out. YOLO11-seg takes reduced images; a model of your own "
                "can, too (docs/models.md).",
            )

    def decode(self, data: bytes) -> DecodedImage:
        """Bytes -> pixels.

        Raises:
            ImageError: See `segcore.images.decode`; or the model failed.
        """
        if self._options.scale == "full":
            pixels = decode_image(data, self._options)
            return DecodedImage(pixels, *pixels.shape[:2])
        return decode_image_reduced(data, self._content_size, self._options)

    def finish(self, image: DecodedImage) -> Any:
        """Pixels -> what the model prepared.

        Raises:
            ImageError: The model failed.
        """
        if self._options.scale == "full":
            return _of_the_model(self._preprocess, image.pixels)
        return _of_the_model(self._preprocess, image.pixels, size=(image.height, image.width))

    def _content_size(self, height: int, width: int) -> tuple[int, int]:
        assert isinstance(self._preprocess, ReducedPreprocess)
        size: tuple[int, int] = _of_the_model(self._preprocess.content_size, height, width)
        return size


def _of_the_model(work: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """A call of the model's code, whose failure is one of the image that it was for."""
    try:
        return work(*args, **named)
    except MemoryError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise MemoryError from error
        raise ImageError(ErrorCode.MODEL_ERROR, describe_error(error)) from error


class ByteBudget:
    """Keeps decoded pixels in flight under a limit; one image over it is let in alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Wait until `size` bytes fit, and hold them."""
        size = min(size, self._limit)
        with self._changed:
            self._changed.wait_for(lambda: self._used + size <= self._limit)
            self._used += size
        try:
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()


@dataclass(frozen=True)
class Prefetcher:
    """How far ahead of the model images are read and decoded.

    Attributes:
        threads: Decoders.
        window: Samples between reading and the model, at most.
        max_decoded_bytes: Decoded pixels held by all decoders together, at most.
        watchdog: Ends the process when one image is decoded for too long.
        patience_s: Seconds that one read may take besides, with all retries of the storage.
    """

    threads: int
    window: int
    max_decoded_bytes: int
    watchdog: Watchdog = field(default_factory=lambda: Watchdog(DEFAULT_READ_TIMEOUT_S))
    read_timeout_s: float = DEFAULT_READ_TIMEOUT_S

    def stream(
        self,
        samples: Iterable[Sample],
        preprocess: Callable[[Any], Any],
        options: DecodeOptions,
    ) -> Iterator[PreparedSample]:
        """Yield one `PreparedSample` for each sample, in order; `preprocess` is the model's.

        Whatever a single image does wrong is in its `PreparedSample.error`. An exception raised by
        `samples` itself (storage gone) is raised here, after the samples before it.

        Raises:
            UsageError: See `Preprocessor`.
        """
        preparation = Preprocessor(preprocess, options)
        budget = ByteBudget(self.max_decoded_bytes)
        slots = threading.Semaphore(self.window)
        stop = threading.Event()
        line: queue.SimpleQueue[Future[PreparedSample] | BaseException | None] = queue.SimpleQueue()
        with ThreadPoolExecutor(self.threads, thread_name_prefix="decode") as pool:

            def read() -> None:
                coming = iter(samples)
                try:
                    while True:
                        with self.watchdog.working(extra_s=self.read_timeout_s):
                            sample = next(coming, None)
                        if sample is None:
                            break
                        slots.acquire()
                        if stop.is_set():
                            return
                        line.put(
                            pool.submit(prepare_sample, sample, preparation, budget, self.watchdog)
                        )
                    line.put(None)
                except BaseException as error:
                    line.put(error)

            reader = threading.Thread(target=read, name="reader", daemon=True)
            reader.start()
            try:
                while (item := line.get()) is not None:
                    if isinstance(item, BaseException):
                        raise item
                    prepared = item.result()
                    slots.release()
                    yield prepared
            finally:
                stop.set()
                slots.release()
                reader.join()

    def prepare(
        self, sample: Sample, preprocess: Callable[[Any], Any], options: DecodeOptions
    ) -> PreparedSample:
        """Decode and prepare one sample; every failure becomes an error of this image.

        Raises:
            UsageError: See `Preprocessor`.
        """
        budget = ByteBudget(self.max_decoded_bytes)
        return prepare_sample(sample, Preprocessor(preprocess, options), budget, self.watchdog)


def prepare_sample(
    sample: Sample, preparation: Preprocessor, budget: ByteBudget, watchdog: Watchdog
) -> PreparedSample:
    if sample.error is not None or sample.data is None:
        error = sample.error or ImageError(ErrorCode.READ_ERROR, "no bytes were read")
        return PreparedSample(sample, error=error)
    bare = replace(sample, data=None)  # lets the bytes go
    try:
        header = probe(sample.data)
        with budget.hold(header.width * header.height * 3), watchdog.working():
            image = preparation.decode(sample.data)
            value = preparation.finish(image)
    except ImageError as error:
        return PreparedSample(bare, error=error)
    except MemoryError:
        message = "memory ran out while decoding this image"
        return PreparedSample(bare, error=ImageError(ErrorCode.OUT_OF_MEMORY, message))
    except Exception as error:
        return PreparedSample(bare, error=ImageError(ErrorCode.CORRUPT, describe_error(error)))
    return PreparedSample(bare, value=value, width=image.width, height=image.height)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of a library says that memory, of host or device, ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    said = ("out of memory", "can't allocate memory", "cannot allocate memory")
    return any(words in text for words in (*said, "not enough memory", "insufficient memory"))
