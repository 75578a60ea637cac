"""Registration of a checkpoint directory."""

from precalib_ray.config.jobs import RegisterConfig
from precalib_ray.service.cli import main

if __name__ == "__main__":
    main(RegisterConfig, "precalib_ray.service.register:register")
