"""Registration of a checkpoint directory."""

from precalib_ray.service.cli import main

if __name__ == "__main__":
    main("register")
