"""The former name of ``drain``, which manifests that are deployed still call."""

from __future__ import annotations

import sys

from precalib_ray.cluster.drain import main

if __name__ == "__main__":
    main(float(sys.argv[1]))
