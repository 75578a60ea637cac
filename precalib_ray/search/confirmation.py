"""Confirmation of the best recipes with other seeds: the best score of many is biased."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from precalib_ray.config.jobs.pretrain import PretrainConfig
from precalib_ray.config.jobs.search import SearchConfig
from precalib_ray.core.phases.pretraining import Outcome
from precalib_ray.core.stopping import Duration
from precalib_ray.errors import DivergedError
from precalib_ray.search.best import best_job
from precalib_ray.search.trial import Trial

NUM_CANDIDATES = 3
"""Recipes that may be run with other seeds."""
FULL_LENGTH = 4
"""Maximum samples of a confirmation, as a multiple of a trial's."""

Run = Callable[[Trial, PretrainConfig], Outcome]
"""Runs a trial's recipe with another seed; raises DivergedError."""


@dataclass
class Confirmation:
    """A recipe and its runs with other seeds."""

    trial: Trial
    jobs: list[PretrainConfig]
    outcomes: list[Outcome] = field(default_factory=list)
    """Outcomes of the jobs that have run, in order."""

    @property
    def deviations(self) -> list[float]:
        """Deviations over all probes, held-out ones included."""
        return [outcome.after.deviation for outcome in self.outcomes]

    @property
    def median(self) -> PretrainConfig:
        """The job of the median deviation, the lower one of two."""
        found = self.deviations
        return self.jobs[sorted(range(len(found)), key=found.__getitem__)[(len(found) - 1) // 2]]

    def summary(self) -> str:
        """The deviations in words."""
        found = self.deviations
        return (
            f"deviation over {len(found)} seeds, held-out probes included: mean "
            f"{statistics.mean(found):.5f}, standard deviation {_std(found):.5f}, "
            f"worst {max(found):.5f}"
        )

    def tags(self, search: str, run_id: str | None) -> dict[str, str]:
        """Tags of the version that the median becomes."""
        return {
            "precalib.search": search,
            "precalib.search_run_id": run_id or "",
            "precalib.seeds_mean_deviation": f"{statistics.mean(self.deviations):.6f}",
            "precalib.seeds_std_deviation": f"{_std(self.deviations):.6f}",
        }


def _std(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def at_full_length(duration: Duration) -> Duration:
    """The duration with more samples: other seeds may need more than the search's limit."""
    if duration.until_deviation is None:
        return duration
    return replace(
        duration,
        steps=duration.steps and duration.steps * FULL_LENGTH,
        samples=duration.samples and duration.samples * FULL_LENGTH,
    )


def jobs_of(config: SearchConfig, trial: Trial) -> list[PretrainConfig]:
    """A trial's recipe at full length, once for each seed of the confirmation."""
    jobs = []
    for seed in range(config.seed + 1, config.seed + 1 + config.register_seeds):
        job = best_job(config, trial, name=f"{config.name}-{trial.key}-{seed}", seed=seed)
        jobs.append(replace(job, duration=at_full_length(job.duration)))
    return jobs


def confirm(
    config: SearchConfig,
    candidates: Iterable[Trial],
    *,
    run: Run,
    notify: Callable[[str], None],
) -> Confirmation:
    """The first recipe that reaches its target with every seed; if each misses it with some, the
    first that diverges with none. Held-out probes do not count.

    Args:
        config: the search.
        candidates: its best trials, the best first.
        run: called with one job after another.
        notify: called with warnings.

    Raises:
        DivergedError: every recipe diverged with some seed.
    """
    missed: list[Confirmation] = []
    for trial in candidates:
        tried = Confirmation(trial, jobs_of(config, trial))
        try:
            if _is_steady(tried, run):
                return tried
        except DivergedError as error:
            notify(str(error))
        else:
            missed.append(tried)
    if not missed:
        raise DivergedError("every recipe diverged with another seed; see above")
    notify("no recipe reached its target with every seed; the best is taken")
    best = missed[0]
    best.outcomes += [run(best.trial, job) for job in best.jobs[len(best.outcomes) :]]
    return best


def _is_steady(tried: Confirmation, run: Run) -> bool:
    """Whether every seed reaches the target; the first that misses it ends the attempt."""
    for job in tried.jobs:
        tried.outcomes.append(run(tried.trial, job))
        reached = tried.outcomes[-1].progress.stop_reason == "until_deviation"
        if job.duration.until_deviation and not reached:
            return False
    return True
