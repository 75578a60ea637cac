"""The record of a search: its trials, what became of them, and which is to be tried next.

Every trial is a JSON file in the search's folder, written when it is proposed and when it has
ended. A search that is submitted again reads them: what has ended is kept and told to the
algorithm, what was running is run again, under its key.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.study import StudyDirection

from precalib_ray.config import space
from precalib_ray.config.jobs import PretrainConfig
from precalib_ray.config.search import SearchConfig
from precalib_ray.errors import ConfigError
from precalib_ray.service.identity import Identity

RUNNING, FINISHED, STOPPED, FAILED = "running", "finished", "stopped", "failed"
"""States of a trial; stopped is by successive halving."""

_FOLDER = "trials"
_LOOKS_AT = 200
Record = dict[str, Any]

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Study:
    """Proposes trials, and keeps what is reported of them."""

    def __init__(
        self,
        config: SearchConfig,
        identity: Identity,
        on_end: Callable[[Record], None] = lambda record: None,
    ) -> None:
        """Read what an earlier submission has left; ``on_end`` is called with ended trials."""
        self._config, self._identity, self._on_end = config, identity, on_end
        self.records: dict[str, Record] = {}
        self._files = identity.folder / _FOLDER
        for name in self._files.names(".json"):
            record = json.loads(self._files.read(name) or "{}")
            self.records[record["key"]] = record
        self._restart = [r["key"] for r in self.records.values() if r["state"] == RUNNING]
        self._points = list(space.grid(config.recipe)) if config.algorithm == "grid" else []
        self.num_trials = len(self._points) or config.num_trials
        self._num_objectives = 2 if config.objective == "pareto" else 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # Taking up what is known draws nothing: with the same seed, the draws would come again.
            self._sampler = _sampler(config, seed=config.seed + len(self.records))
        self._forgets = config.algorithm == "tpe" and self._num_objectives == 1
        self._told: list[optuna.trial.FrozenTrial] = []
        self._recent = self._optuna([])
        self._started, self._seconds = time.monotonic(), self.seconds
        self._asked: dict[str, optuna.Trial] = {}
        for record in self.trials:
            self._ask(record["key"], record["point"])
            if record["state"] != RUNNING:
                self._tell(record)

    @property
    def scored_study(self) -> optuna.Study:
        """All trials with a score, as Optuna's figures want them."""
        return self._optuna(self._told)

    @property
    def trials(self) -> list[Record]:
        """All but the reference trials, in order."""
        return [r for _, r in sorted(self.records.items()) if r["reference"] is None]

    @property
    def references(self) -> list[Record]:
        """The reference trials that have started."""
        return [r for _, r in sorted(self.records.items()) if r["reference"] is not None]

    @property
    def folder(self) -> str:
        """Where the search is kept."""
        return f"{self._config.storage}/{self._config.name}"

    @property
    def seconds(self) -> float:
        """Time that trials were run in, of all submissions together."""
        return float(self._identity.record.get("seconds", 0.0))

    @property
    def num_left(self) -> int:
        """Trials, reference trials included, that have yet to end."""
        ended = sum(r["state"] != RUNNING for r in list(self.records.values()))
        return int(self.num_trials + len(self._config.references) - ended)

    def best(self, num: int = 1) -> list[Record]:
        """The trials with the best scores, of a Pareto search those that reach the target first."""
        return sorted(self.scored(), key=self._rank)[:num]

    def propose(self) -> tuple[str, dict[str, Any]] | None:
        """Key and job of the next trial; None if all have been proposed."""
        while self._restart:
            record = self.records[self._restart.pop(0)]
            if record["recipe"] is None:  # killed between beginning it and refusing it
                self.finish(record["key"], None, "its settings do not go together")
                continue
            return record["key"], self._job(record)
        for name in self._config.references:
            if f"reference-{name}" not in self.records:
                tried = self._config.reference(name)
                record = self._begin(f"reference-{name}", None, tried, reference=name)
                return record["key"], self._job(record)
        while len(self.trials) < self.num_trials:
            key = f"{len(self.trials):05d}"
            point = self._ask(key, self._points[len(self.trials)] if self._points else None)
            try:
                tried = self._config.pretraining(space.at(self._config.recipe, point))
            except ConfigError as error:  # settings that do not go together
                self._begin(key, point, None)
                self.finish(key, None, str(error))
                continue
            record = self._begin(key, point, tried)
            return key, self._job(record)
        return None

    def note(self, key: str, report: Mapping[str, Any]) -> None:
        """Keep the last report of a trial that goes on."""
        self.records[key] |= _kept(report)

    def finish(self, key: str, report: Mapping[str, Any] | None, error: str) -> None:
        """Record how a trial has ended."""
        record = self.records[key]
        report = report or {}
        failed = error or report.get("failed", "")
        record |= _kept(report)
        if failed:
            record |= {"state": FAILED, "reason": failed}
        elif "stop_reason" in report:
            record |= {"state": FINISHED, "reason": report["stop_reason"]}
        else:
            record |= {"state": STOPPED, "reason": "successive halving"}
        self._save(record)
        self._identity.update(seconds=self._seconds + time.monotonic() - self._started)
        if record["reference"] is None:
            self._tell(record)
        self._on_end(record)

    def scores(self, record: Record) -> list[float]:
        """What the algorithm minimizes, of a trial that did not fail."""
        deviation, samples = record["deviation"], record["samples"]
        if self._config.objective == "pareto":
            return [deviation, float(samples)]
        if self._config.objective == "deviation":
            return [deviation]
        if self._config.objective == "downstream":
            return [self._downstream(record)]
        target = record["recipe"]["duration"]["until_deviation"]
        if record.get("reached"):
            return [float(samples)]
        # Not reached costs all that it may take, and more the further it is.
        return [record["max_samples"] * (1 + max(0.0, math.log10(deviation / target)))]

    def _downstream(self, record: Record) -> float:
        """Mean gap of confidence and accuracy; accuracy lost beyond what may be counts tenfold."""
        found = record.get("downstream")
        if found is None:  # stopped before it came to that: as bad as can be
            return 1.0 + float(record["deviation"])
        assert self._config.downstream is not None, "checked by the config"
        control = self.records.get("reference-untrained", {}).get("downstream")
        least = control["accuracy"] - self._config.downstream.accuracy_loss if control else 0.0
        return float(found["gap"] + 10 * max(0.0, least - found["accuracy"]))

    def scored(self) -> list[Record]:
        """Trials that have ended with a deviation."""
        return [r for r in self.trials if r["state"] in (FINISHED, STOPPED) and "deviation" in r]

    def comparable_references(self) -> list[Record]:
        """Reference trials with a score: what cost is counted in says nothing of those."""
        if self._config.objective not in ("deviation", "downstream"):
            return []
        return [r for r in self.references if "deviation" in r]

    def _rank(self, record: Record) -> tuple[float, ...]:
        if self._config.objective == "pareto":
            return (float(not record.get("reached")), record["samples"], record["deviation"])
        ended = float(record["state"] != FINISHED)
        return (ended, *self.scores(record), record["deviation"])

    def _begin(
        self,
        key: str,
        point: space.Point | None,
        tried: PretrainConfig | None,
        *,
        reference: str | None = None,
    ) -> Record:
        record = {
            "key": key,
            "state": RUNNING,
            "reference": reference,
            "point": point,
            "recipe": tried.model_dump(mode="json") if tried else None,
            "max_samples": tried.max_samples if tried else None,
        }
        self.records[key] = record
        self._save(record)
        return record

    def _job(self, record: Record) -> dict[str, Any]:
        pretraining = PretrainConfig.model_validate(record["recipe"])  # may be of an older version
        training = None
        if self._config.downstream is not None:
            training = self._config.data_training(pretraining).model_dump()
        recipe = pretraining.model_dump(mode="json") | {
            "name": f"{self._config.name}/nested/{record['key']}"
        }
        return {
            "reference": record["reference"] is not None,
            "recipe": recipe,
            "data_training": training,
        }

    def _ask(self, key: str, decided: space.Point | None) -> space.Point:
        """The point that the algorithm proposes, or what it is to take for its proposal."""
        if self._forgets and len(self._recent.trials) >= 2 * _LOOKS_AT:
            self._recent = self._optuna(self._worth_looking_at())
        if decided is not None:
            self._recent.enqueue_trial(decided)
        trial = self._asked[key] = self._recent.ask()
        point: space.Point = {}

        def choose(path: str, kind: str, arguments: list[Any]) -> Any:
            if kind == "choice":
                point[path] = trial.suggest_categorical(path, arguments)
            elif kind == "randint" or (kind == "quniform" and _whole(arguments)):
                step = arguments[2] if kind == "quniform" else 1
                point[path] = trial.suggest_int(path, arguments[0], arguments[1], step=step)
            else:
                point[path] = trial.suggest_float(
                    path,
                    arguments[0],
                    arguments[1],
                    step=arguments[2] if kind == "quniform" else None,
                    log=kind == "loguniform",
                )
            return point[path]

        with warnings.catch_warnings():  # of a range that is no multiple of its step
            warnings.simplefilter("ignore", UserWarning)
            space.resolve(self._config.recipe, choose)
        return point

    def _tell(self, record: Record) -> None:
        trial = self._asked.pop(record["key"])
        if record["state"] == FAILED or "deviation" not in record:
            trial.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return
        told = trial.study.tell(trial, self.scores(record))
        if told.values is None:
            return
        self._told.append(told)
        if trial.study is not self._recent:
            self._recent.add_trial(told)

    def _optuna(self, trials: Sequence[optuna.trial.FrozenTrial]) -> optuna.Study:
        directions = [StudyDirection.MINIMIZE] * self._num_objectives
        study = optuna.create_study(directions=directions, sampler=self._sampler)
        study.add_trials(trials)
        return study

    def _worth_looking_at(self) -> list[optuna.trial.FrozenTrial]:
        """The best of the older and the newest trials: TPE's time grows with all it looks at."""
        half = _LOOKS_AT // 2
        older, newest = self._told[:-half], self._told[-half:]
        return sorted(older, key=lambda trial: trial.values)[:half] + newest

    def _save(self, record: Record) -> None:
        self._files.write(f"{record['key']}.json", json.dumps(record, indent=2))


def _sampler(config: SearchConfig, *, seed: int) -> optuna.samplers.BaseSampler:
    seed %= 2**32
    if config.algorithm != "tpe":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(
        seed=seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=10
    )


def _kept(report: Mapping[str, Any]) -> Record:
    """What is ours in a report, without what Tune adds."""
    keys = (
        "deviation", "samples", "deviations", "initial_deviation", "seconds", "reached", "history",
        "compute_seconds", "downstream",
    )  # fmt: skip
    return {key: report[key] for key in keys if key in report}


def _whole(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int) for value in values)
