"""Memory that runs out while a good file is decoded is said as that, and never as damage."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

# Decodes a file on stdin with so many more megabytes of memory than the process has, for each of
# the limits, then without one.
_PROGRAM = """
import json, resource, sys
from segcore.errors import ImageError
from segcore.images import decode_image
data = sys.stdin.buffer.read()
small = json.loads(sys.argv[1])
decode_image(bytes.fromhex(small))  # imports what this format needs
def data_bytes():
    return next(int(line.split()[1]) for line in open("/proc/self/status")
                if line.startswith("VmData")) << 10
_, hard = resource.getrlimit(resource.RLIMIT_DATA)
results = []
for n_mb in [int(text) for text in sys.argv[2:]] + [0]:
    limit = data_bytes() + (n_mb << 20) if n_mb else resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        result = list(decode_image(data).shape)
    except ImageError as error:
        result = str(error.code)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
    results.append(result)
print(json.dumps(results))
"""
_LIMITS_MB = (1, 4, 10, 20, 30, 40, 60)
_OPTIONS: dict[str, tuple[str, dict[str, object]]] = {
    "jpeg": ("JPEG", {"quality": 60}),
    "progressive jpeg": ("JPEG", {"quality": 60, "progressive": True}),
    "png": ("PNG", {"compress_level": 1}),
    "webp": ("WEBP", {"quality": 50, "method": 0}),
    "lossless webp": ("WEBP", {"lossless": True, "method": 0}),
    "tiff lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "tiff": ("TIFF", {}),
    "bmp": ("BMP", {}),
    "gif": ("GIF", {}),
    "jp2": ("JPEG2000", {"irreversible": True}),
    "avif": ("AVIF", {"speed": 10}),
}


def _encode(kind: str, side: int) -> bytes:
    rows = np.arange(side, dtype=np.uint8)
    pixels = np.stack(np.broadcast_arrays(rows[:, None], rows[None], rows[::-1, None] ^ rows), 2)
    buffer = io.BytesIO()
    image_format, options = _OPTIONS[kind]
    Image.fromarray(pixels).save(buffer, image_format, **options)
    return buffer.getvalue()


@pytest.mark.faults
@pytest.mark.skipif(sys.platform != "linux", reason="the limit means something else there")
@pytest.mark.parametrize("kind", list(_OPTIONS))
def test_a_good_file_is_never_called_damaged(kind: str) -> None:
    command = [sys.executable, "-c", _PROGRAM, json.dumps(_encode(kind, 16).hex())]
    finished = subprocess.run(
        [*command, *map(str, _LIMITS_MB)], input=_encode(kind, 2500), capture_output=True,
        check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr.decode()[-2000:]
    results = json.loads(finished.stdout)
    for result in results[:-1]:
        assert result in ("out_of_memory", [2500, 2500, 3])
    assert results[0] == "out_of_memory"
    assert results[-1] == [2500, 2500, 3]
