"""Data training: from a pre-calibrated checkpoint, or from one of its baselines."""

from precalib_ray.service.cli import main

if __name__ == "__main__":
    main("train")
