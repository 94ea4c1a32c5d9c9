"""Segment an archive of images.

    python jobs/segment.py photos/ masks/ --set model.conf=0.4
    ray job submit --working-dir jobs -- python segment.py s3://bucket/shards/ s3://bucket/masks/

Rerun the same command to resume. Exit codes are those of `segcore segment`.
"""

import argparse
import sys

import segcore


def main() -> int:
    """Run the job; returns its exit code."""
    parser = argparse.ArgumentParser(description="Segment an archive of images.")
    parser.add_argument("input", help="folder or prefix of images or shards, manifest, COCO json")
    parser.add_argument("output", help="folder or prefix for the tables")
    parser.add_argument("--config", help="YAML file; `segcore config` prints one")
    parser.add_argument("--publish", action="store_true", help="let latest.json name the result")
    parser.add_argument("--set", dest="sets", metavar="KEY=VALUE", action="append", default=[])
    args = parser.parse_args()
    try:
        flags = {
            "INPUT": ("input", args.input),
            "OUTPUT": ("output", args.output),
            "--publish": ("run.publish", args.publish or None),
        }
        config: segcore.Config = segcore.load_config(args.config, args.sets, flags)
        report = segcore.segment(config, notify=print)
    except segcore.SegcoreError as error:
        print(f"Error: {error.message}\n{error.hint}".rstrip(), file=sys.stderr)
        return error.exit_code
    print(report.summary(), *report.advice(), sep="\n")
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
