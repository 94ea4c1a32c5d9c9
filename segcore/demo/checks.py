"""Whether the rows of a run are what the synthetic archive must give."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from segcore.testing.synthetic_archive import SyntheticArchive


def check_rows(archive: SyntheticArchive, tables: Iterator[pa.Table]) -> list[str]:
    """Compare the `images` table with what was written: one sentence per difference.

    Args:
        tables: With columns image_id, status, error_code.
    """
    error_codes: dict[str, str | None] = {}
    n_rows = 0
    for table in tables:
        for row in table.to_pylist():
            name = row["image_id"].rpartition("#")[2]
            error_codes[name] = None if row["status"] == "ok" else row["error_code"]
            n_rows += 1
    differences = []
    if n_rows != archive.n_images or len(error_codes) != n_rows:
        differences.append(
            f"the images table has {n_rows:,} rows with {len(error_codes):,} names; "
            f"the archive has {archive.n_images:,} images."
        )
    failed = {name: code for name, code in error_codes.items() if code is not None}
    for name in sorted(set(failed) | set(archive.broken)):
        expected, actual = archive.broken.get(name), failed.get(name)
        if expected is None:
            differences.append(f"{name} is a good image but failed ({actual}).")
        elif actual != expected:
            outcome = f"failed as {actual}" if actual else "was not reported as failed"
            differences.append(f"{name} was broken as {expected.value} but {outcome}.")
    return differences
