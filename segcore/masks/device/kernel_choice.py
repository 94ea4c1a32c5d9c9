"""Whether a process may use its kernels by Triton: only where they prove their results there."""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Callable

import torch

_LOGGER = logging.getLogger(__name__)


class KernelChoice:
    """Decides once for each device of a process; thread-safe.

    Triton comes with CUDA builds of torch, compiles on first use, and needs a C compiler and a
    folder for that. Where anything is missing or fails, or where a fixed sample has other results
    than with torch, the operations of torch are used instead, and a warning says why.

    Args:
        subject: What the kernels compute, for people: a plural, such as "masks".
        agrees: Whether they give what torch gives, for a sample on this device. Imports them.
    """

    def __init__(self, subject: str, agrees: Callable[[torch.device], bool]) -> None:
        self._subject = subject
        self._agrees = agrees
        self._lock = threading.Lock()
        self._reasons: dict[torch.device, str] = {}  # why not; "" where they are used

    def uses_triton(self, device: torch.device) -> bool:
        """Whether the kernels are used; compiles and checks them when it is first asked.

        Raises:
            torch.OutOfMemoryError: The check had too little memory; the next call tries again.
        """
        if device.type != "cuda":
            return False
        with self._lock:
            if device not in self._reasons:
                self._reasons[device] = reason = self._find_reason(device)
                if reason:
                    _LOGGER.warning(
                        "The slower way is taken for %s on %s: %s.", self._subject, device, reason
                    )
            return not self._reasons[device]

    def describe(self, device: torch.device) -> str:
        """For example "masks by Triton 3.6.0"; "" on other devices than CUDA."""
        if device.type != "cuda":
            return ""
        by_triton = self.uses_triton(device)
        version = importlib.import_module("triton").__version__ if by_triton else ""
        return f"{self._subject} by " + (f"Triton {version}" if by_triton else "torch")

    def _find_reason(self, device: torch.device) -> str:
        """Why the kernels must not be used; "" if nothing speaks against them."""
        try:
            with torch.inference_mode():
                if self._agrees(device):
                    return ""
        except torch.OutOfMemoryError:
            raise
        except ImportError as error:
            return f"Triton cannot be imported ({error})"
        except Exception as error:  # of a compiler, a driver, a file system
            return f"Triton failed ({type(error).__name__}: {str(error)[:300]})"
        return "Triton gave other results than torch for a fixed sample"
