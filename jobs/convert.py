"""Conversion of a data set to Parquet."""

from precalib_ray.cli import run_script

if __name__ == "__main__":
    run_script(__file__)
