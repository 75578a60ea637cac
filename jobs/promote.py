"""The gate: which registered version is champion."""

from precalib_ray.service.cli import main

if __name__ == "__main__":
    main("promote")
