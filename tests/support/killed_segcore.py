"""`segcore` that kills itself with SIGKILL before it writes an object.

python -m tests.support.killed_segcore PART_OF_ITS_URI ARGUMENTS OF SEGCORE
"""

from __future__ import annotations

import sys

from segcore.cli.main import main
from tests.support.night_process import die_before_writing

if __name__ == "__main__":
    place = sys.argv.pop(1)
    die_before_writing(place)
    main()
