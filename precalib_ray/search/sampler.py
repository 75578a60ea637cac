"""Samplers of points of the space: those of Optuna, and the points of a grid."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.study import StudyDirection

from precalib_ray.config import space
from precalib_ray.config.jobs.search import SearchConfig

MEMORY = 200
"""Minimum number of trials kept for TPE, whose time grows with them."""

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Sampler:
    """Optuna's ask and tell, by the keys of trials."""

    def __init__(self, config: SearchConfig, *, num_scores: int, num_known: int) -> None:
        """``num_known`` trials were begun by earlier submissions, reference trials included."""
        self._space = config.recipe
        self._grid = list(space.grid(config.recipe)) if config.algorithm == "grid" else []
        self.num_trials = len(self._grid) or config.num_trials
        self._num_scores = num_scores
        # Replaying known trials draws nothing: with the same seed, the draws would repeat.
        self._sampler = _optuna_sampler(config.algorithm, seed=config.seed + num_known)
        self._forgets = config.algorithm == "tpe" and num_scores == 1
        self._scored: list[optuna.trial.FrozenTrial] = []
        self._study = self._new_study([])
        self._asked: dict[str, optuna.Trial] = {}

    @property
    def scored_study(self) -> optuna.Study:
        """All trials with scores, as Optuna's figures take them."""
        return self._new_study(self._scored)

    def propose(self, key: str, number: int) -> space.Point:
        """The point of the trial with this key, number ``number`` of the search, counted from 0."""
        return self.ask(key, self._grid[number] if self._grid else None)

    def ask(self, key: str, decided: space.Point | None = None) -> space.Point:
        """The point that Optuna proposes, or ``decided``, enqueued as a fixed trial."""
        if self._forgets and len(self._study.trials) >= 2 * MEMORY:
            self._study = self._new_study(self._history_to_keep())
        if decided is not None:
            self._study.enqueue_trial(decided)
        trial = self._asked[key] = self._study.ask()
        point: space.Point = {}

        def choose(path: str, kind: str, arguments: list[Any]) -> Any:
            point[path] = _suggest(trial, path, kind, arguments)
            return point[path]

        with warnings.catch_warnings():  # for a range that is no multiple of its step
            warnings.simplefilter("ignore", UserWarning)
            space.resolve(self._space, choose)
        return point

    def tell(self, key: str, scores: Sequence[float] | None) -> None:
        """Report the scores of a trial; None if it has none."""
        trial = self._asked.pop(key)
        if scores is None:
            trial.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return
        frozen = trial.study.tell(trial, scores)
        if frozen.values is None:  # Optuna fails a trial whose scores are NaN
            return
        self._scored.append(frozen)
        if trial.study is not self._study:  # replaced while the trial ran
            self._study.add_trial(frozen)

    def _new_study(self, trials: Sequence[optuna.trial.FrozenTrial]) -> optuna.Study:
        directions = [StudyDirection.MINIMIZE] * self._num_scores
        study = optuna.create_study(directions=directions, sampler=self._sampler)
        study.add_trials(trials)
        return study

    def _history_to_keep(self) -> list[optuna.trial.FrozenTrial]:
        """The newest trials, and the best of the older ones."""
        half = MEMORY // 2
        older, newest = self._scored[:-half], self._scored[-half:]
        return sorted(older, key=lambda trial: trial.values)[:half] + newest


def _suggest(trial: optuna.Trial, path: str, kind: str, arguments: list[Any]) -> Any:
    """The value of a domain of ``config.space``."""
    if kind == "choice":
        return trial.suggest_categorical(path, arguments)
    low, high = arguments[:2]
    step = arguments[2] if kind == "quniform" else None
    if kind == "randint" or (step is not None and all(isinstance(a, int) for a in arguments)):
        return trial.suggest_int(path, low, high, step=step or 1)
    return trial.suggest_float(path, low, high, step=step, log=kind == "loguniform")


def _optuna_sampler(algorithm: str, *, seed: int) -> optuna.samplers.BaseSampler:
    seed %= 2**32
    if algorithm != "tpe":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            seed=seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=10
        )
