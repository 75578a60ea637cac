"""Registration of a checkpoint directory."""

from precalib_ray.cli import run_script

if __name__ == "__main__":
    run_script(__file__)
