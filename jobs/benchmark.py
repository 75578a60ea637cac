"""What drawing noise and running on Ray cost, measured on this machine."""

from precalib_ray.cli import run_script

if __name__ == "__main__":
    run_script(__file__)
