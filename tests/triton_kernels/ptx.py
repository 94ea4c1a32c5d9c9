"""Compiles all kernels for a GPU that need not be there, and looks at how they round.

    python -m tests.triton_kernels.ptx

Prints JSON: for each kernel the floating-point instructions of its PTX. Exit code 1 if one of them
joins a product and a sum, flushes small numbers to zero or does not round to nearest.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from segcore.masks.device import triton_kernels as masks
from segcore.masks.device.triton_encode import EXACT, Tiles
from segcore.masks.rle import MAX_CHARS
from segcore.models import triton_nms

COMPUTE_CAPABILITY = 90  # of an H100
TYPES = {
    "*fp32": "logits block weight_low weight_high boxes",
    "*i64": "is_finite fields tiles low high first_pixel line_ends keys kept_keys numbers columns",
    "*i32": "line_counts edge_crop edge_x edge_border counts",
    "*i8": "alive",
    "*u8": "chars",
    "i32": "n_crops n_edges halvings max_chars n_boxes row_length",
    "fp32": "iou",
}
TYPE_OF = {name: kind for kind, names in TYPES.items() for name in names.split()}
TILES = Tiles()
CONSTANTS = {
    "UPSAMPLED": True, "SAMPLES": TILES.samples, "LINES": TILES.lines, "BORDERS": TILES.borders,
    "EDGES": TILES.edges, "MAX_CHARS": MAX_CHARS, "BOXES": triton_nms.BOXES,
}  # fmt: skip
KERNELS = {
    masks.gather_samples: {},
    masks.count_edges: {},
    masks.list_edges: {},
    masks.place_edges: {},
    masks.cancel_edges: {"kept_counts": "*i32"},
    masks.write_strings: {"kept_counts": "*i32"},
    triton_nms.keep_best: {"kept_counts": "*i64"},
}
FLOAT_INSTRUCTION = re.compile(
    r"\b(?:add|sub|mul|mad|fma|div|rcp|sqrt|cvt)(?:\.\w+)*\.f(?:32|64)(?:\.\w+)*"
)
INEXACT = re.compile(r"^(?:fma|mad)|\.ftz|\.approx|\.full|\.r[zmp]\b")


def float_instructions(kernel: Any, types: dict[str, str]) -> list[str]:
    """Which floating-point instructions the compiled kernel has."""
    signature = {
        name: (types | TYPE_OF | types).get(name, "constexpr") for name in kernel.arg_names
    }
    constants = {(i,): CONSTANTS[n] for i, n in enumerate(kernel.arg_names) if n in CONSTANTS}
    compiled = triton.compile(
        ASTSource(kernel, signature=signature, constexprs=constants),
        target=GPUTarget("cuda", COMPUTE_CAPABILITY, 32),
        options=EXACT,
    )
    return sorted(set(FLOAT_INSTRUCTION.findall(compiled.asm["ptx"])))


def main() -> int:
    """Compile, print and judge."""
    found = {
        kernel.fn.__name__: float_instructions(kernel, types) for kernel, types in KERNELS.items()
    }
    print(json.dumps(found, indent=1))
    wrong = [name for names in found.values() for name in names if INEXACT.search(name)]
    if not any(found.values()):
        wrong.append("no instruction was recognized")
    print(*wrong, sep="\n", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
