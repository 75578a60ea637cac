"""Noise pretraining: bring a network to chance confidence, and register it."""

from precalib_ray.service.cli import main

if __name__ == "__main__":
    main("pretrain")
