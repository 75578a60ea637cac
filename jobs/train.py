"""Data training: from a pre-calibrated checkpoint, or from one of its baselines."""

from precalib_ray.cli import run_script

if __name__ == "__main__":
    run_script(__file__)
