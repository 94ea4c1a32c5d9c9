"""How the images of a unit are read and decoded."""

from __future__ import annotations

from dataclasses import dataclass

from segcore.images import DecodeOptions
from segcore.sources import SourceOptions
from segcore.storage import Storage
from segcore.worker.prefetch import Prefetcher
from segcore.worker.watchdog import Watchdog


@dataclass(frozen=True)
class ReadOptions:
    """How the images of a unit are read and decoded. Travels to actors.

    Attributes:
        threads: Threads that decode and preprocess.
        max_decoded_bytes: Most bytes of decoded pixels that all threads hold together.
        image_timeout_s: Seconds that one image may take to decode, or to segment.
    """

    storage: Storage
    source: SourceOptions
    decode: DecodeOptions
    threads: int
    max_decoded_bytes: int
    image_timeout_s: float = 300.0

    @property
    def read_timeout_s(self) -> float:
        """Seconds that a read may take with all retries before it counts as hung."""
        options = self.storage.options
        return 2 * (options.retries + 1) * options.timeout_s

    def prefetcher(self, window: int, watchdog: Watchdog) -> Prefetcher:
        """A prefetcher that is ahead of the model by at most `window` images."""
        return Prefetcher(
            self.threads, window, self.max_decoded_bytes, watchdog, self.read_timeout_s
        )
