"""Search for the recipe that brings a network to chance at the least cost."""

from precalib_ray.cli import run_script

if __name__ == "__main__":
    run_script(__file__)
