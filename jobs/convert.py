"""Conversion of a data set to Parquet."""

from precalib_ray.config.jobs import ConvertConfig
from precalib_ray.service.cli import main

if __name__ == "__main__":
    main(ConvertConfig, "precalib_ray.service.convert:convert")
