"""The first thing to run: an over-confident network brought to chance, trained, compared."""

from precalib_ray.cli import run_script

if __name__ == "__main__":
    run_script(__file__)
