"""Noise distributions, one in a file of its name. To add one, write a file with a class."""

from precalib_ray.core.noise.base import Noise, Sampler, Statistics, draw, statistics
from precalib_ray.core.spec import import_members

__all__ = ["Noise", "Sampler", "Statistics", "draw", "statistics"]

import_members(__name__, __path__)
