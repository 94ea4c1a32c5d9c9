"""The images of an edition that failed, and why."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from segcore.errors import ErrorCode, UsageError
from segcore.output.results import Results

COLUMNS = ("image_id", "error_code", "error_message", "uri", "shard")


def read_failures(results: Results, codes: Collection[str] = ()) -> Iterator[pa.Table]:
    """The failed images, unit by unit; units without one are left out.

    Args:
        codes: Only failures with one of these codes; all if empty.

    Yields:
        Tables with `COLUMNS`.

    Raises:
        UsageError: There is no such code; or see `Results.images`.
    """
    known = [str(code) for code in ErrorCode]
    for code in codes:
        if code not in known:
            raise UsageError(
                f"There is no error code {code!r}.", f"The codes are {', '.join(known)}."
            )
    for table in results.images([*COLUMNS, "status"]):
        is_wanted = pc.equal(table["status"], "failed")
        if codes:
            is_wanted = pc.and_(is_wanted, pc.is_in(table["error_code"], pa.array(sorted(codes))))
        failed = table.filter(is_wanted).select(COLUMNS)
        if failed.num_rows:
            yield failed
