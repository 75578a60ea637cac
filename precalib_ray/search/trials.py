"""The durable log of a search's trials, which also proposes the next.

A trial is a JSON file in the search's folder, written when the trial begins and when it ends. A
resubmitted search reads them: trials that have ended are kept and replayed to the
sampler, and those that were running are run again, under their keys.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import optuna

from precalib_ray.config import load, space
from precalib_ray.config.jobs.pretrain import PretrainConfig
from precalib_ray.config.jobs.search import Reference, SearchConfig
from precalib_ray.core.spec import plain
from precalib_ray.errors import ConfigError, StorageError
from precalib_ray.search import references
from precalib_ray.search.objective import Objective
from precalib_ray.search.report import TrialReport
from precalib_ray.search.sampler import Sampler
from precalib_ray.search.trial import Trial
from precalib_ray.storage.folder import Folder

_FOLDER = "trials"


class TrialLog:
    """The trials of a search; a ``cluster.tuning.Proposer``."""

    def __init__(
        self,
        config: SearchConfig,
        folder: Folder,
        *,
        seconds: float = 0.0,
        on_seconds: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """Read the trials of earlier submissions.

        Args:
            config: the search.
            folder: folder of the run.
            seconds: wall-clock seconds in which trials of earlier submissions ran.
            on_seconds: called with the seconds of all submissions when a trial has ended.
        """
        self._config, self._on_seconds = config, on_seconds
        self.on_end: Callable[[Trial], None] = lambda trial: None
        """Called with a trial that has ended, after it is saved."""
        self._files = folder / _FOLDER
        self.records: dict[str, Trial] = {}
        """All trials that have begun, by key, reference trials included."""
        for name in self._files.names(".json"):
            try:
                trial = Trial.from_json(self._files.read_json(name) or {})
            except (TypeError, AttributeError) as error:
                reason = f"{self._files}/{name}: not the record of a trial: {error}"
                raise StorageError(reason) from error
            self.records[trial.key] = trial
        self._interrupted = [t.key for t in self.records.values() if not t.ended]
        self.objective = Objective.members[config.objective](config)
        self.sampler = Sampler(
            config, num_scores=self.objective.num_scores, num_known=len(self.records)
        )
        self.seconds = self._seconds_before = seconds
        """Wall-clock seconds in which trials ran, over all submissions."""
        self._started = time.monotonic()
        for trial in self.trials:
            self.sampler.ask(trial.key, trial.point)
            if trial.ended:
                self._tell(trial)

    @property
    def num_trials(self) -> int:
        """Number of trials of the whole search, without the reference trials."""
        return self.sampler.num_trials

    @property
    def num_total(self) -> int:
        """Number of trials of the whole search, reference trials included."""
        return self.num_trials + len(self._config.references)

    @property
    def num_left(self) -> int:
        """Number of trials, reference trials included, that have yet to end."""
        return self.num_total - sum(trial.ended for trial in list(self.records.values()))

    @property
    def trials(self) -> list[Trial]:
        """All but the reference trials, in order."""
        return [t for _, t in sorted(self.records.items()) if t.reference is None]

    @property
    def references(self) -> list[Trial]:
        """The reference trials that have started."""
        return [t for _, t in sorted(self.records.items()) if t.reference is not None]

    @property
    def scored(self) -> list[Trial]:
        """Trials that have ended with a deviation, without the reference trials."""
        return [trial for trial in self.trials if trial.scored]

    @property
    def scored_study(self) -> optuna.Study:
        """All trials with scores, as Optuna's figures take them."""
        return self.sampler.scored_study

    @property
    def comparable_references(self) -> list[Trial]:
        """Reference trials whose scores are comparable with those of trials."""
        return references.comparable(self.objective, self.references)

    def best(self, num: int = 1) -> list[Trial]:
        """The trials with the best scores; in a Pareto search, those with the fewest samples to the
        target.
        """
        control = self._control
        return sorted(self.scored, key=lambda t: self.objective.rank(t, control=control))[:num]

    def scores(self, trial: Trial) -> list[float]:
        """The values that the sampler minimizes, for a trial with a deviation."""
        return self.objective.scores(trial, control=self._control)

    def propose(self) -> tuple[str, dict[str, Any]] | None:
        """Key and job of the next trial; None if all have been proposed."""
        while self._interrupted:
            trial = self.records[self._interrupted.pop(0)]
            if trial.recipe is None:  # killed after it began and before it was refused
                self.finish(trial.key, None, "its settings contradict each other")
                continue
            return self._proposal(trial)
        for name in self._config.references:
            key = references.key(name)
            if key not in self.records:
                return self._proposal(
                    self._begin(key, recipe=references.recipe(self._config, name), reference=name)
                )
        while (number := len(self.trials)) < self.num_trials:
            key = f"{number:05d}"
            point = self.sampler.propose(key, number)
            try:
                recipe = self._config.pretraining(space.at(self._config.recipe, point))
            except ConfigError as error:  # each setting is valid alone, but not combined
                self._begin(key, point=point)
                self.finish(key, None, str(error))
                continue
            return self._proposal(self._begin(key, point=point, recipe=recipe))
        return None

    def note(self, key: str, report: TrialReport) -> None:
        """Keep the last report of a running trial, in memory."""
        self.records[key] = self.records[key].updated(report)

    def finish(self, key: str, report: TrialReport | None, error: str) -> None:
        """Record how a trial has ended: its last report, or why there is none."""
        report = report or TrialReport()
        trial = self.records[key].updated(report)
        failed = error or report.failed
        if failed:
            trial = replace(trial, state="failed", reason=failed)
        elif report.stop_reason is not None:
            trial = replace(trial, state="finished", reason=report.stop_reason)
        else:
            trial = replace(trial, state="stopped", reason="successive halving")
        self._save(trial)
        self.seconds = self._seconds_before + time.monotonic() - self._started
        self._on_seconds(self.seconds)
        if trial.reference is None:
            self._tell(trial)
        self.on_end(trial)

    @property
    def _control(self) -> Trial | None:
        return self.records.get(references.key(references.CONTROL))

    def _begin(
        self,
        key: str,
        *,
        point: space.Point | None = None,
        recipe: PretrainConfig | None = None,
        reference: Reference | None = None,
    ) -> Trial:
        trial = Trial(
            key=key,
            state="running",
            reference=reference,
            point=point,
            recipe=plain(recipe),
            max_samples=recipe.max_samples if recipe else None,
        )
        self._save(trial)
        return trial

    def _proposal(self, trial: Trial) -> tuple[str, dict[str, Any]]:
        """Key and job; read from the record, so that a repeated trial has the same recipe."""
        recipe = load.validate(PretrainConfig, trial.recipe or {})
        training = None
        if self._config.downstream is not None:
            training = self._config.data_training(recipe)
        return trial.key, {
            "reference": trial.reference is not None,
            "recipe": replace(recipe, name=f"{self._config.name}/nested/{trial.key}"),
            "data_training": training,
        }

    def _tell(self, trial: Trial) -> None:
        self.sampler.tell(trial.key, self.scores(trial) if trial.scored else None)

    def _save(self, trial: Trial) -> None:
        self.records[trial.key] = trial
        self._files.write(f"{trial.key}.json", json.dumps(trial.to_json(), indent=2))
