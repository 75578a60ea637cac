"""Model families, one in a file of its name. To add one, write a file with a class."""

from precalib_ray.core.models.base import Model, Snippet
from precalib_ray.core.spec import import_members

__all__ = ["Model", "Snippet"]

import_members(__name__, __path__)
