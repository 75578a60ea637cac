"""Objectives of a search. To add one, write a class, and add its name to ``SearchConfig``."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

from precalib_ray.config.jobs.search import SearchConfig
from precalib_ray.search.trial import Trial


class Objective(ABC):
    """Scores and ranks trials; a subclass registers itself when it is defined."""

    name: ClassVar[str]
    axis: ClassVar[str] = "worst deviation from chance"
    """Label of the score's axis in figures."""
    num_scores: ClassVar[int] = 1
    scores_references: ClassVar[bool] = False
    """Whether scores of reference trials are comparable with those of trials: samples are not."""
    columns: ClassVar[tuple[str, ...]] = ()
    """Columns of the table of the best trials, beyond those of every search."""
    members: ClassVar[dict[str, type[Objective]]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        Objective.members[cls.name] = cls

    def __init__(self, config: SearchConfig) -> None:
        self._config = config

    @abstractmethod
    def scores(self, trial: Trial, *, control: Trial | None) -> list[float]:
        """The values that the sampler minimizes, for a trial with a deviation.

        Args:
            trial: the trial to score.
            control: the reference trial ``untrained``, once it has started.
        """

    def rank(self, trial: Trial, *, control: Trial | None) -> tuple[float, ...]:
        """Sort key of trials, the best first."""
        deviation, _ = _measured(trial)
        unfinished = float(trial.state != "finished")
        return (unfinished, *self.scores(trial, control=control), deviation)

    def cells(self, trial: Trial) -> list[str]:
        """The values of ``columns``."""
        return []


class Deviation(Objective):
    """The worst deviation."""

    name = "deviation"
    scores_references = True

    def scores(self, trial: Trial, *, control: Trial | None) -> list[float]:
        deviation, _ = _measured(trial)
        return [deviation]


class CostToTarget(Objective):
    """Samples to ``duration.until_deviation``; a trial that misses it costs its maximum number of
    samples, and more with its distance from the target.
    """

    name = "cost_to_target"
    axis = "samples to the target, more where it was missed"

    def scores(self, trial: Trial, *, control: Trial | None) -> list[float]:
        deviation, samples = _measured(trial)
        if trial.reached:
            return [float(samples)]
        assert trial.recipe is not None, "it has run"
        assert trial.max_samples is not None, "required by the config"
        target = trial.recipe["duration"]["until_deviation"]
        return [trial.max_samples * (1 + max(0.0, math.log10(deviation / target)))]


class Pareto(Objective):
    """Deviation and samples; of the front, the best reach the target first."""

    name = "pareto"
    num_scores = 2

    def scores(self, trial: Trial, *, control: Trial | None) -> list[float]:
        deviation, samples = _measured(trial)
        return [deviation, float(samples)]

    def rank(self, trial: Trial, *, control: Trial | None) -> tuple[float, ...]:
        deviation, samples = _measured(trial)
        return (float(not trial.reached), samples, deviation)


class Downstream(Objective):
    """Mean gap of confidence and accuracy in the data training that follows; accuracy lost beyond
    ``accuracy_loss`` counts tenfold.
    """

    name = "downstream"
    axis = "gap of confidence and accuracy"
    scores_references = True
    columns = ("gap", "accuracy")

    def scores(self, trial: Trial, *, control: Trial | None) -> list[float]:
        if trial.downstream is None:  # stopped before data training: worse than any gap
            deviation, _ = _measured(trial)
            return [1.0 + deviation]
        assert self._config.downstream is not None, "checked by the config"
        untrained = control.downstream if control else None
        loss = self._config.downstream.accuracy_loss
        least = untrained["accuracy"] - loss if untrained else 0.0
        lost = max(0.0, least - trial.downstream["accuracy"])
        return [trial.downstream["gap"] + 10 * lost]

    def cells(self, trial: Trial) -> list[str]:
        found = trial.downstream
        return [f"{found[name]:.4f}" if found else "" for name in self.columns]


def _measured(trial: Trial) -> tuple[float, int]:
    """Deviation and samples."""
    assert trial.deviation is not None, "only trials with a deviation are scored"
    assert trial.samples is not None, "reported with the deviation"
    return trial.deviation, trial.samples
