"""Noise pretraining: bring a network to chance confidence, and register it."""

from precalib_ray.config.jobs import PretrainConfig
from precalib_ray.service.cli import main

if __name__ == "__main__":
    main(PretrainConfig, "precalib_ray.service.pretrain:pretrain")
