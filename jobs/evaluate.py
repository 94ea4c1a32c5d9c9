"""Measure the masks of a run against COCO ground truth.

python jobs/evaluate.py masks/ instances_val.json
"""

import argparse
import sys

import segcore


def main() -> int:
    """Print mask and box AP, per class and over all; returns the exit code."""
    parser = argparse.ArgumentParser(description="Measure the masks of a run.")
    parser.add_argument("output", help="the output of a segment job")
    parser.add_argument("ground_truth", help="COCO instances JSON")
    parser.add_argument("--edition", help="default: the published one")
    args = parser.parse_args()
    try:
        report = segcore.evaluate(args.output, args.ground_truth, edition=args.edition)
    except segcore.SegcoreError as error:
        print(f"Error: {error.message}\n{error.hint}".rstrip(), file=sys.stderr)
        return error.exit_code
    scores = report.scores
    print(f"{report.images:,} images of {report.edition}")
    print(
        f"all: mask AP {scores.mask.ap:.3f}, AP50 {scores.mask.ap50:.3f}, box {scores.box.ap:.3f}"
    )
    for one in scores.per_class:
        print(f"{one.name}: mask AP {one.mask.ap:.3f}, box AP {one.box.ap:.3f}")
    print(*report.edition_notes, *report.notes, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
