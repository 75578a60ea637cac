"""Sending of what MLflow did not take."""

from precalib_ray.service.cli import main

if __name__ == "__main__":
    main("sync")
