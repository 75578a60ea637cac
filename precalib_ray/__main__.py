"""``python -m precalib_ray JOB ...``: the jobs where the package is installed, and no more."""

from __future__ import annotations

import sys

from precalib_ray.config.catalog import JOBS
from precalib_ray.service.cli import main

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in JOBS:
        asked = sys.argv[1:2] in (["-h"], ["--help"])
        print(
            f"usage: python -m precalib_ray {{{','.join(JOBS)}}} ...",
            file=None if asked else sys.stderr,
        )
        sys.exit(0 if asked else 2)
    main(sys.argv[1], sys.argv[2:])
