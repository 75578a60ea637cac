"""Sends what was buffered while MLflow was unreachable."""

from precalib_ray.cli import run_script

if __name__ == "__main__":
    run_script(__file__)
