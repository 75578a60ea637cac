"""The jobs by name: what their YAML may say, and the function that runs them."""

from __future__ import annotations

from precalib_ray.config import jobs
from precalib_ray.config.base import Strict
from precalib_ray.config.search import SearchConfig

JOBS: dict[str, tuple[type[Strict], str]] = {
    "benchmark": (jobs.BenchmarkConfig, "precalib_ray.service.benchmark:benchmark"),
    "convert": (jobs.ConvertConfig, "precalib_ray.service.convert:convert"),
    "pretrain": (jobs.PretrainConfig, "precalib_ray.service.pretrain:pretrain"),
    "promote": (jobs.PromoteConfig, "precalib_ray.service.promote:promote"),
    "quickstart": (jobs.QuickstartConfig, "precalib_ray.service.quickstart:quickstart"),
    "register": (jobs.RegisterConfig, "precalib_ray.service.register:register"),
    "search": (SearchConfig, "precalib_ray.service.search:search"),
    "sync": (jobs.SyncConfig, "precalib_ray.service.sync:sync"),
    "train": (jobs.TrainConfig, "precalib_ray.service.train:train"),
}
"""The function is named ``module:function``: with it come Ray and MLflow, and a config that is
refused shall not wait for them.
"""


def name_of(config: Strict) -> str:
    """The job that a config is of; raises ValueError if of none."""
    for name, (cls, _) in JOBS.items():
        if type(config) is cls:
            return name
    raise ValueError(f"{type(config).__name__} is the config of no job")
