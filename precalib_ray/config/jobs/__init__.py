"""The registry of jobs: one module for each config, named like the job."""

from __future__ import annotations

import importlib
import pkgutil

from precalib_ray.config.sections import JobConfig

NAMES = sorted(module.name for module in pkgutil.iter_modules(__path__))


def config_class(name: str) -> type[JobConfig]:
    """The config of a job; its class is called ``NameConfig``."""
    module = importlib.import_module(f"{__name__}.{name}")
    cls: type[JobConfig] = getattr(module, f"{name.capitalize()}Config")
    return cls


def name_of(config: JobConfig) -> str:
    """The job of a config; raises ValueError if it belongs to none."""
    package, _, name = type(config).__module__.rpartition(".")
    if package != __name__ or type(config) is not config_class(name):
        raise ValueError(f"{type(config).__name__} is the config of no job")
    return name
