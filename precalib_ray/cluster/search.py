"""Many trials on Ray Tune: what one runs, who proposes it, and when it is stopped early."""

from __future__ import annotations

import concurrent.futures
import functools
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import ray
import ray.tune
import torch
from ray.tune import (
    CheckpointConfig,
    FailureConfig,
    PlacementGroupFactory,
    RunConfig,
    Stopper,
    TuneConfig,
)
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from precalib_ray.cluster import trainer, worker
from precalib_ray.cluster.threads import in_thread
from precalib_ray.core.engine import Progress
from precalib_ray.core.pretraining import Pretraining
from precalib_ray.core.probes import PanelResult
from precalib_ray.data.training import DataTraining
from precalib_ray.errors import DivergedError

METRIC, COST = "deviation", "samples"
STOP_S = 3.0
"""How long an interrupted search waits for Tune; Ray ends trials that take longer to stop."""

_untrained: dict[str, PanelResult] = {}
"""Of an actor: what the panel measured of untrained networks, which trials have in common."""


class Proposer(Protocol):
    """Decides what is tried; called in the driver, one call at a time."""

    def propose(self) -> tuple[str, dict[str, Any]] | None:
        """Key and job of the next trial; None if there is none."""

    def note(self, key: str, report: Mapping[str, Any]) -> None:
        """Take a report of a trial that goes on."""

    def finish(self, key: str, report: Mapping[str, Any] | None, error: str) -> None:
        """Take the last report of a trial that has ended, or why there is none."""


@dataclass(frozen=True)
class Resources:
    """What a trial is given."""

    num_workers: int
    cpus: float
    gpus: float
    max_concurrent: int | None


def run(
    proposer: Proposer,
    *,
    name: str,
    storage: str,
    num_trials: int,
    shared: Mapping[str, Any],
    resources: Resources,
    asha: Mapping[str, Any] | None,
    max_samples: int,
) -> None:
    """Run ``num_trials`` trials to their ends.

    Args:
        proposer: gives trials and takes what became of them.
        name: a folder under storage that no other call uses.
        storage: folder or URI.
        num_trials: how many ``proposer`` will propose.
        shared: what all trials need, by name; put into the object store once.
        resources: of one trial.
        asha: ``grace_samples`` and ``reduction_factor``; None stops no trial early.
        max_samples: the most that a trial may take.
    """
    single = resources.num_workers == 1
    loop = functools.partial(_in_actor if single else _in_trainer, cpus=resources.cpus)
    function = ray.tune.with_parameters(_named(loop), **shared)
    bundle = {"CPU": resources.cpus} | ({"GPU": resources.gpus} if resources.gpus else {})
    # A trial of several workers only waits for them: they have resources of their own, and Tune
    # wants at least something, so it gets a byte.
    request = PlacementGroupFactory([bundle if single else {"memory": 1}])
    at_once = resources.max_concurrent
    if at_once is None and not single:
        total = ray.cluster_resources()
        fits = [
            total.get(name, 0) // (each * resources.num_workers) for name, each in bundle.items()
        ]
        at_once = max(1, int(min(fits)))
    searcher = _Search(proposer)
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(function, request),
        tune_config=TuneConfig(
            search_alg=searcher,
            scheduler=_Asha(max_samples=max_samples, **asha) if asha else FIFOScheduler(),
            num_samples=num_trials,
            max_concurrent_trials=at_once,
            reuse_actors=single,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=trainer.storage_path(storage),
            failure_config=FailureConfig(max_failures=0),
            checkpoint_config=CheckpointConfig(),
            stop=_Interrupted(searcher),
            verbose=0,
        ),
    )

    def on_interrupt(outcome: Future[Any]) -> None:
        searcher.closed = True
        concurrent.futures.wait([outcome], STOP_S)

    # At the end Tune misses the files that the loggers would have written; see ``session``.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    in_thread(tuner.fit, on_interrupt=on_interrupt)


class _Interrupted(Stopper):  # type: ignore[misc]
    """Ends Tune's loop before Ray is shut down: it would complain of a Ray that is gone."""

    def __init__(self, searcher: _Search) -> None:
        self._searcher = searcher

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._searcher.closed


class _Search(Searcher):  # type: ignore[misc]
    """The proposer, as Tune calls one."""

    def __init__(self, proposer: Proposer) -> None:
        super().__init__()
        self._proposer = proposer
        self._keys: dict[str, str] = {}
        self.closed = False
        """Interrupted: what becomes of the trials from here on is not their end."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        proposal = self._proposer.propose()
        if proposal is None:
            return str(Searcher.FINISHED)
        self._keys[trial_id], job = proposal
        return job

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._proposer.note(self._keys[trial_id], _mappings(result))

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if self.closed:
            return
        message = "its process was lost: out of memory, or killed" if error else ""
        report = None if error or result is None else _mappings(result)
        self._proposer.finish(self._keys.pop(trial_id), report, message)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing that Tune could keep: see ``save``."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the proposer keeps its own record."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see ``save``."""


class _Asha(ASHAScheduler):  # type: ignore[misc]
    """Successive halving that spares reference trials, and counts those that reached the target
    on every later rung: what goes on competes with them as well.
    """

    def __init__(self, *, max_samples: int, grace_samples: int, reduction_factor: float) -> None:
        grace = min(grace_samples, max_samples)
        super().__init__(
            time_attr=COST,
            metric=METRIC,
            mode="min",
            max_t=max_samples,
            grace_period=grace,
            reduction_factor=reduction_factor,
            stop_last_trials=False,
        )
        self._milestones, milestone = [], float(grace)
        while milestone <= max_samples:
            self._milestones.append(milestone)
            milestone *= reduction_factor

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if trial.config["reference"] or "failed" in result:
            return str(TrialScheduler.CONTINUE)
        return str(super().on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        if result.get("reached"):
            for milestone in self._milestones:
                self.on_trial_result(tune_controller, trial, {**result, COST: milestone})
        if not trial.config["reference"] and "failed" not in result:
            super().on_trial_complete(tune_controller, trial, result)


def _mappings(result: Mapping[str, Any]) -> dict[str, Any]:
    """A report with its mappings, which travel as pairs: Tune would flatten them."""
    pairs = {key: dict(result[key]) for key in ("deviations", "downstream") if key in result}
    return {**result, **pairs}


def _named(loop: Callable[..., None]) -> Callable[..., None]:
    """A function of one argument and keywords, as Tune wants it."""

    def trial(config: dict[str, Any], **shared: Any) -> None:
        loop(config, shared)

    return trial


def _in_actor(job: Mapping[str, Any], shared: Mapping[str, Any], *, cpus: float) -> None:
    """One worker: the loop runs here, in an actor that goes on to the next trial."""
    torch.set_num_threads(max(1, int(cpus)))
    started = time.perf_counter()
    waited = 0.0

    def report(progress: Progress) -> None:
        nonlocal waited
        pause = time.perf_counter()
        record = progress.history[-1]
        ray.tune.report(
            {
                METRIC: record["deviation"],
                COST: progress.samples,
                "history": [[r["samples"], r["deviation"]] for r in progress.history],
                "compute_seconds": pause - started - waited,
            }
        )
        waited += time.perf_counter() - pause

    try:
        result = _measure(job, shared, report)
    except DivergedError as error:
        result = {"failed": str(error)}
    except Exception as error:  # a user's function may raise anything; the search goes on
        result = {"failed": f"{type(error).__name__}: {error}"}
    ray.tune.report({**result, "compute_seconds": time.perf_counter() - started - waited})


def _measure(
    job: Mapping[str, Any], shared: Mapping[str, Any], report: Callable[[Progress], None]
) -> dict[str, Any]:
    recipe = job["recipe"]
    device = "cuda" if recipe["scaling"]["use_gpu"] else "cpu"
    same = json.dumps([recipe[key] for key in ("model", "seed", "probes")], sort_keys=True)
    run_ = Pretraining(
        recipe,
        images=shared["images"],
        statistics=shared["statistics"],
        before=_untrained.get(same),
        device=device,
    )
    _untrained[same] = run_.before
    outcome = run_.run(on_evaluation=report).to_json()
    result = _summary(job, outcome)
    if job["data_training"] is not None:
        start = {
            "spec": run_.spec,
            "weights": {k: v.cpu() for k, v in run_.engine.model.state_dict().items()},
            "zero_head": False,
        }
        training = DataTraining(job["data_training"], start, shared["splits"], device=device)
        history = training.run()["progress"]["history"]
        gaps = [abs(r["mean_confidence"] - r["accuracy"]) for r in history]
        last = history[-1]
        result["downstream"] = [
            ["gap", sum(gaps) / len(gaps)],
            *([name, last[name]] for name in ("accuracy", "ece", "nll")),
        ]
    return result


def _in_trainer(job: Mapping[str, Any], shared: Mapping[str, Any], *, cpus: float) -> None:
    """Several workers: a trainer of their own."""
    started = time.perf_counter()
    history: list[list[float]] = []

    def on_record(record: dict[str, Any]) -> None:
        for probing in record["evaluations"]:
            history.append([probing["samples"], probing["deviation"]])
            ray.tune.report(
                {
                    METRIC: probing["deviation"],
                    COST: probing["samples"],
                    "history": history,
                    "compute_seconds": time.perf_counter() - started,
                }
            )

    try:
        fitted = trainer.fit(
            worker.pretrain,
            job["recipe"],
            {"images": shared["images"], "statistics": shared["statistics"]},
            keep=1,
            local=False,
            on_record=on_record,
            tell=logging.getLogger(__name__).warning,
        )
        result = _summary(job, fitted.outcome)
    except Exception as error:  # as in the actor
        result = {"failed": f"{type(error).__name__}: {error}"}
    ray.tune.report({**result, "compute_seconds": time.perf_counter() - started})


def _summary(job: Mapping[str, Any], outcome: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a finished trial; its deviation is the worst that the search may see."""
    data = job["recipe"]["probes"]["data"]
    deviations = {
        f"{m['probe']}/{m['mode']}": m["deviation"]
        for m in outcome["after"]["measurements"]
        if not (m["probe"] in data and data[m["probe"]]["held_out"])
    }
    if not all(map(math.isfinite, deviations.values())):
        raise DivergedError(f"the confidence on a probe is not a number: {deviations}")
    progress = outcome["progress"]
    return {
        METRIC: max(deviations.values()),
        COST: progress["samples"],
        "deviations": [[name, value] for name, value in deviations.items()],
        "initial_deviation": outcome["before"]["deviation"],
        "seconds": progress["seconds"],
        "stop_reason": progress["stop_reason"],
        "reached": progress["stop_reason"] == "until_deviation",
        "history": [[r["samples"], r["deviation"]] for r in progress["history"]],
    }
