"""The compiled masks against the NumPy ones, byte for byte."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segcore import masks
from segcore.masks import Window, from_logits
from tests.masks.test_from_logits import KINDS, draw_boxes, draw_logits

pytest.importorskip("numba", reason="numba (extra `fast`) is not installed")

f32 = np.float32


def encode_with_both(planes, boxes, canvas, window=None):
    """The compiled result, after checking that it equals NumPy's."""
    expected = masks.encode_logits(planes, boxes, canvas, window, backend="numpy")
    compiled = masks.encode_logits(planes, boxes, canvas, window, backend="compiled")
    assert compiled.counts == expected.counts
    assert compiled.areas.tolist() == expected.areas.tolist()
    assert compiled.keep.tolist() == expected.keep.tolist()
    assert compiled.areas.dtype == expected.areas.dtype == np.int64
    return compiled


def test_the_compiled_kernel_is_chosen_where_numba_is_installed():
    assert masks.default_backend() == "compiled"


@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(KINDS),
    source=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    canvas=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    upsample=st.sampled_from([1, 1, 2, 4]),
    n=st.integers(0, 8),
)
def test_equals_numpy(seed, kind, source, canvas, upsample, n):
    rng = np.random.default_rng(seed)
    h, w = source
    top, left = (int(rng.integers(0, side * upsample)) for side in source)
    bottom = int(rng.integers(top + 1, h * upsample + 1))
    right = int(rng.integers(left + 1, w * upsample + 1))
    window = Window(top, left, bottom, right, upsample)
    encode_with_both(draw_logits(rng, kind, n, h, w), draw_boxes(rng, n, canvas), canvas, window)
    encode_with_both(draw_logits(rng, kind, n, h, w), draw_boxes(rng, n, canvas), canvas)


@pytest.mark.parametrize("canvas", [(3000, 4000), (1, 5000), (5000, 1), (70_000, 3), (1, 1)])
def test_equals_numpy_on_uncommon_canvases(canvas):
    rng = np.random.default_rng(1)
    planes = np.concatenate([draw_logits(rng, kind, 2, 120, 160) for kind in KINDS])
    boxes = draw_boxes(rng, 8, canvas)
    boxes[::2] = (0, 0, canvas[1], canvas[0])
    assert encode_with_both(planes, boxes, canvas).counts


def test_equals_numpy_on_extreme_numbers():
    values = np.array([0, -0.0, 1e-45, -1e-45, 1e-38, -1e-38, 1, -1, 3e38, -3e38], f32)
    rng = np.random.default_rng(2)
    planes = rng.choice(values, (40, 12, 9))
    encode_with_both(planes, draw_boxes(rng, 40, (100, 150)), (100, 150))


def test_strings_longer_than_the_memory_taken_first():
    rng = np.random.default_rng(3)
    planes = draw_logits(rng, "noise", 3, 160, 160)
    encoded = encode_with_both(planes, np.full((3, 4), (0, 0, 640, 640), f32), (640, 640))
    assert min(map(len, encoded.counts)) > 3 * 1024


def test_logits_that_are_views_or_read_only():
    rng = np.random.default_rng(4)
    planes = draw_logits(rng, "smooth", 6, 40, 40)
    boxes = draw_boxes(rng, 6, (90, 80))
    expected = encode_with_both(planes, boxes, (90, 80))
    read_only = planes.copy()
    read_only.setflags(write=False)
    assert encode_with_both(read_only, boxes, (90, 80)).counts == expected.counts
    transposed = np.ascontiguousarray(planes.transpose(2, 1, 0)).transpose(2, 1, 0)
    assert encode_with_both(transposed, boxes, (90, 80)).counts == expected.counts


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("upsample", [1, 4])
def test_logits_that_are_not_finite_are_refused(value, upsample):
    planes = np.ones((3, 8, 8), f32)
    planes[1, 4, 4] = value
    boxes = np.full((3, 4), (0, 0, 20, 20), f32)
    window = Window(0, 0, 8 * upsample, 8 * upsample, upsample)
    for backend in ("numpy", "compiled"):
        with pytest.raises(ValueError, match="not finite"):
            masks.encode_logits(planes, boxes, (20, 20), window, backend=backend)


def test_threads_do_not_disturb_each_other():
    rng = np.random.default_rng(5)
    jobs = []
    for kind in KINDS * 8:
        canvas = tuple(int(side) for side in rng.integers(50, 400, 2))
        jobs.append((draw_logits(rng, kind, 5, 40, 40), draw_boxes(rng, 5, canvas), canvas))
    expected = [masks.encode_logits(*job, backend="numpy").counts for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        results = pool.map(lambda job: masks.encode_logits(*job, backend="compiled").counts, jobs)
    assert list(results) == expected


def test_numpy_is_used_without_numba(monkeypatch):
    monkeypatch.setattr(from_logits, "_compiled_kernel", lambda: None)
    planes, boxes = np.ones((1, 4, 4), f32), np.array([[0, 0, 4, 4]], f32)
    assert masks.default_backend() == "numpy"
    assert masks.encode_logits(planes, boxes, (4, 4)).areas.tolist() == [16]
    with pytest.raises(RuntimeError, match="need numba"):
        masks.encode_logits(planes, boxes, (4, 4), backend="compiled")


def test_a_numba_that_does_not_work_causes_a_warning(monkeypatch):
    monkeypatch.setitem(sys.modules, "segcore.masks.numba_kernel", None)
    monkeypatch.delattr("segcore.masks.numba_kernel")
    with pytest.warns(RuntimeWarning, match="does not work"):
        assert from_logits._compiled_kernel.__wrapped__() is None


@pytest.mark.faults  # compiles twice
def test_a_damaged_cache_is_not_used(tmp_path):
    """Data of another version of numba, too, which a process finds while another writes anew."""
    program = "import segcore.masks as m; print(m.default_backend())"
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}

    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)

    assert run().stdout == "compiled\n"
    files = list(tmp_path.rglob("*.nbc"))
    assert files
    for file in files:
        file.write_bytes(pickle.dumps("of another version"))
    end = run()
    assert end.stdout == "compiled\n"
    assert end.stderr == ""
