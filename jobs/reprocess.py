"""Bring an output up to date with its archive, and publish it if it passes the gates.

    python jobs/reprocess.py configs/reprocess.yaml --set input=photos/ --set output=out/
    python jobs/reprocess.py nightly.yaml --logical-date 2026-11-01

What a scheduler calls: safe twice, late, and beside another call. Exit codes are those of
`segcore reprocess`.
"""

import argparse
import sys

import segcore


def main() -> int:
    """Run the job; returns its exit code."""
    parser = argparse.ArgumentParser(description="Reprocess an archive and publish the result.")
    parser.add_argument("config", help="YAML file; `segcore config reprocess` prints one")
    parser.add_argument("--set", dest="sets", metavar="KEY=VALUE", action="append", default=[])
    parser.add_argument("--logical-date", default="", help="the date that the scheduler means")
    args = parser.parse_args()
    try:
        config = segcore.load_config(args.config, args.sets, schema=segcore.ReprocessConfig)
        report = segcore.reprocess(config, logical_date=args.logical_date, notify=print)
    except segcore.SegcoreError as error:
        print(f"Error: {error.message}\n{error.hint}".rstrip(), file=sys.stderr)
        return error.exit_code
    print("\n".join([report.summary(), *report.notes]))
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
