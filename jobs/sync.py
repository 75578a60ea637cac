"""Sending of what MLflow did not take."""

from precalib_ray.config.jobs import SyncConfig
from precalib_ray.service.cli import main

if __name__ == "__main__":
    main(SyncConfig, "precalib_ray.service.sync:sync")
