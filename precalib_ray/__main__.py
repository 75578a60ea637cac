"""``python -m precalib_ray JOB ...``: the jobs where only the package is installed."""

from precalib_ray.cli import main

if __name__ == "__main__":
    main()
