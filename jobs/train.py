"""Train YOLO11-seg on a COCO data set.

python jobs/train.py configs/train-nuclei.yaml --set device=cuda

Rerun the same command to resume after the last finished epoch.
"""

import argparse
import sys

import segcore


def main() -> int:
    """Train, print the scores and where the checkpoint is; returns the exit code."""
    parser = argparse.ArgumentParser(description="Train YOLO11-seg on a COCO data set.")
    parser.add_argument("config", help="YAML file; `segcore config train` prints one")
    parser.add_argument("--set", dest="sets", metavar="KEY=VALUE", action="append", default=[])
    parser.add_argument("--restart", action="store_true", help="start over")
    args = parser.parse_args()
    try:
        config = segcore.load_config(args.config, args.sets, schema=segcore.TrainConfig)
        report = segcore.train(config, restart=args.restart, config_file=args.config, notify=print)
    except segcore.SegcoreError as error:
        print(f"Error: {error.message}\n{error.hint}".rstrip(), file=sys.stderr)
        return error.exit_code
    print(report.summary())
    return 0


if __name__ == "__main__":
    sys.exit(main())
