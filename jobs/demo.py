"""From images to measured masks in one script: draw an archive, segment it, read, evaluate.

python jobs/demo.py demo-job/ --images 100
"""

import argparse
import sys

import segcore
from segcore.testing.synthetic_archive import write_archive


def main() -> int:
    """Run the demo on a folder or an s3:// prefix; returns the exit code."""
    parser = argparse.ArgumentParser(description="Draw an archive, segment it, evaluate.")
    parser.add_argument("folder", help="for archive and tables, local or s3://")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--model", default="nuclei-yolo11n")
    args = parser.parse_args()
    storage = segcore.Storage()
    try:
        archive = write_archive(storage, args.folder, n_images=args.images, n_broken=0)
        output = f"{args.folder.rstrip('/')}/masks"
        values = {"input": archive.shards, "output": output, "model": {"name": args.model}}
        report = segcore.segment(segcore.Config.model_validate(values), notify=print)
        print(report.summary())
        for table in segcore.open_results(output).instances(["category", "area"]):
            print(table.slice(0, 3).to_pylist(), f"and so on, {table.num_rows} masks of one unit")
        scores = segcore.evaluate(output, archive.ground_truth).scores
        print(f"{archive.n_instances:,} nuclei drawn, mask AP50 {scores.mask.ap50:.3f}")
    except segcore.SegcoreError as error:
        print(f"Error: {error.message}\n{error.hint}".rstrip(), file=sys.stderr)
        return error.exit_code
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
