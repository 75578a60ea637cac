"""What drawing noise and running on Ray cost, measured on this machine."""

from precalib_ray.service.cli import main

if __name__ == "__main__":
    main("benchmark")
