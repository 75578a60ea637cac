"""Conversion of a data set to Parquet."""

from precalib_ray.service.cli import main

if __name__ == "__main__":
    main("convert")
