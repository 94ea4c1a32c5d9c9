"""Reading and preparing images ahead of the model: one reader, some decoders, bounded memory."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from segcore.errors import ErrorCode, ImageError
from segcore.images import DecodeOptions
from segcore.sources import Sample
from segcore.worker.faults import code_failure, log_fault
from segcore.worker.measures import MEASURES
from segcore.worker.pages import image_bytes
from segcore.worker.preprocessing import PreparedSample, Preprocessor
from segcore.worker.watchdog import Watchdog

DEFAULT_READ_TIMEOUT_S = 3600.0  # of one read, where the storage options say nothing else


class ByteBudget:
    """Keeps what decoding takes under a limit.

    An image that is larger than the limit is let in when nothing else is held.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._held_bytes = 0
        self._released = threading.Condition()

    @contextmanager
    def hold(self, n_bytes: int) -> Iterator[None]:
        """Wait until `n_bytes` fit, and hold them for the block."""
        n_bytes = min(n_bytes, self._limit_bytes)
        with self._released:
            with MEASURES.wait("memory"):
                self._released.wait_for(lambda: self._held_bytes + n_bytes <= self._limit_bytes)
            self._held_bytes += n_bytes
        try:
            yield
        finally:
            with self._released:
                self._held_bytes -= n_bytes
                self._released.notify_all()


@dataclass(frozen=True)
class Prefetcher:
    """Reads and prepares images ahead of the model.

    Attributes:
        threads: Threads that decode and preprocess.
        window: Most samples that are read and not yet taken by the model.
        max_decoded_bytes: Most bytes that decoding takes in all threads together; an image that
            takes more is decoded alone.
        watchdog: Ends the process when decoding one image takes too long.
        read_timeout_s: Seconds that one read may take on top of the watchdog's limit, with all
            retries of the storage.
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
    ) -> Generator[PreparedSample]:
        """Yield one `PreparedSample` for each sample, in order; `preprocess` is the model's.

        Whatever is wrong with a single image is in its `PreparedSample.error`. An exception raised
        by `samples` itself (storage gone) is raised here, after the samples before it.

        Raises:
            UsageError: See `Preprocessor`.
        """
        preprocessor = Preprocessor(preprocess, options)
        budget = ByteBudget(self.max_decoded_bytes)
        free_slots = threading.Semaphore(self.window)
        stop = threading.Event()
        # In the order of the samples; None ends it, an exception is the reader's.
        pending: queue.SimpleQueue[Future[PreparedSample] | BaseException | None]
        pending = queue.SimpleQueue()
        with ThreadPoolExecutor(self.threads, thread_name_prefix="decode") as pool:

            def read_samples() -> None:
                remaining_samples = iter(samples)
                try:
                    while True:
                        with (
                            MEASURES.stage("read"),
                            self.watchdog.guard(extra_s=self.read_timeout_s),
                        ):
                            sample = next(remaining_samples, None)
                        if sample is None:
                            break
                        with MEASURES.wait("window"):
                            free_slots.acquire()
                        if stop.is_set():
                            return
                        pending.put(
                            pool.submit(prepare_sample, sample, preprocessor, budget, self.watchdog)
                        )
                    pending.put(None)
                except BaseException as error:
                    pending.put(error)

            reader = threading.Thread(target=read_samples, name="reader", daemon=True)
            reader.start()
            try:
                while (prepared := _next_prepared(pending)) is not None:
                    free_slots.release()
                    yield prepared
            finally:
                stop.set()
                free_slots.release()
                reader.join()

    def prepare(
        self, sample: Sample, preprocess: Callable[[Any], Any], options: DecodeOptions
    ) -> PreparedSample:
        """Decode and preprocess one sample; every failure becomes an error of this image.

        Raises:
            UsageError: See `Preprocessor`.
        """
        budget = ByteBudget(self.max_decoded_bytes)
        return prepare_sample(sample, Preprocessor(preprocess, options), budget, self.watchdog)


def _next_prepared(
    pending: queue.SimpleQueue[Future[PreparedSample] | BaseException | None],
) -> PreparedSample | None:
    """Wait for the next prepared sample; None at the end. Raises what the reader raised."""
    with MEASURES.wait("images"):
        entry = pending.get()
        if isinstance(entry, BaseException):
            raise entry
        return None if entry is None else entry.result()


def prepare_sample(
    sample: Sample, preprocessor: Preprocessor, budget: ByteBudget, watchdog: Watchdog
) -> PreparedSample:
    """Decode and preprocess one sample; every failure becomes an error of this image."""
    if sample.error is not None or sample.data is None:
        error = sample.error or ImageError(ErrorCode.READ_ERROR, "no bytes were read")
        return PreparedSample(sample, error=error)
    bare_sample = replace(sample, data=None)  # so that the encoded bytes can be freed
    try:
        data = image_bytes(sample)
        with (
            budget.hold(preprocessor.memory_bytes(data)),
            watchdog.guard(),
            MEASURES.stage("decode"),
        ):
            image = preprocessor.decode(data)
            value = preprocessor.preprocess(image)
            warnings = preprocessor.warnings(image, value)
    except ImageError as error:
        log_fault(error, sample.image_id)
        return PreparedSample(bare_sample, error=error)
    except MemoryError:
        message = "memory ran out while decoding this image"
        return PreparedSample(bare_sample, error=ImageError(ErrorCode.OUT_OF_MEMORY, message))
    except Exception as error:  # not the image's fault: decoders raise ImageError
        failure = code_failure(ErrorCode.INTERNAL_ERROR, error)
        log_fault(failure, sample.image_id)
        return PreparedSample(bare_sample, error=failure)
    return PreparedSample(bare_sample, value, image.width, image.height, warnings=warnings)
