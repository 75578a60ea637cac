"""Search for the recipe that brings a network to chance at the least cost."""

from precalib_ray.service.cli import main

if __name__ == "__main__":
    main("search")
