"""The best recipe of a search, as the config of a job ``pretrain``."""

from __future__ import annotations

from typing import Any

from precalib_ray.config import load, space
from precalib_ray.config.jobs.pretrain import PretrainConfig
from precalib_ray.config.jobs.search import SearchConfig
from precalib_ray.search.trial import Trial
from precalib_ray.search.trials import TrialLog
from precalib_ray.storage.folder import Folder

BEST_FILE = "best.yaml"


def best_job(config: SearchConfig, trial: Trial, **fields: Any) -> PretrainConfig:
    """The job ``pretrain`` of a trial's recipe."""
    recipe = space.at(config.recipe, trial.point or {})
    return config.pretraining(recipe, **{"name": f"{config.name}-best", **fields})


def best_yaml(config: SearchConfig, trial: Trial) -> str:
    """A trial's recipe as the config of a job ``pretrain``."""
    cost = f"{trial.samples:,} samples, deviation {trial.deviation:.5f}"
    heading = f"# Trial {trial.key} of the search {config.name}: {cost}.\n"
    return heading + load.to_yaml(best_job(config, trial), exclude={"tracking"})


def write_best(config: SearchConfig, log: TrialLog, folder: Folder) -> None:
    """Write the recipe of the best trial to the search's folder, once, if there is a best one."""
    best = log.best()
    if best and folder.read(BEST_FILE) is None:
        folder.write(BEST_FILE, best_yaml(config, best[0]))
