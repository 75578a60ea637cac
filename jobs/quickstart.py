"""The first thing to run: an over-confident network brought to chance, trained, compared."""

from precalib_ray.service.cli import main

if __name__ == "__main__":
    main("quickstart")
