"""Segment an archive and write the masks as files that an annotation tool imports.

    python jobs/prelabel.py photos/ tasks/ --set export.format=label-studio --set model.conf=0.4
    ray job submit --working-dir jobs -- python prelabel.py s3://bucket/shards s3://bucket/tasks

Rerun the same command to resume. Exit codes are those of `segcore prelabel`.
"""

import argparse
import sys

import segcore


def main() -> int:
    """Run the job; returns its exit code."""
    parser = argparse.ArgumentParser(description="From images to the files of an annotation tool.")
    parser.add_argument("input", help="folder or prefix of images or shards, manifest, COCO json")
    parser.add_argument("dest", help="folder or prefix for the files of the tool")
    parser.add_argument("--output", help="folder or prefix for the tables; default: DEST-masks")
    parser.add_argument("--config", help="YAML file; `segcore config prelabel` prints one")
    parser.add_argument("--set", dest="sets", metavar="KEY=VALUE", action="append", default=[])
    args = parser.parse_args()
    try:
        flags = {
            "INPUT": ("input", args.input),
            "DEST": ("dest", args.dest),
            "--output": ("output", args.output),
        }
        config = segcore.load_config(args.config, args.sets, flags, schema=segcore.PrelabelConfig)
        report = segcore.prelabel(config, notify=print)
    except segcore.SegcoreError as error:
        print(f"Error: {error.message}\n{error.hint}".rstrip(), file=sys.stderr)
        return error.exit_code
    print(report.text())
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
