"""Many trials on Ray Tune: the loop that proposes them, and when one is stopped early.

What a trial runs is in ``trial``.
"""

from __future__ import annotations

import concurrent.futures
import functools
import logging
from collections.abc import Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol

import ray
import ray.tune
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

from precalib_ray.cluster.threads import in_thread
from precalib_ray.cluster.trial import COST, METRIC, Job, in_actor, in_trainer, received
from precalib_ray.search.report import TrialReport
from precalib_ray.storage.folder import absolute

if TYPE_CHECKING:
    from precalib_ray.config.jobs.search import Asha, Trials

STOP_S = 3.0
"""Seconds that an interrupted search waits for Tune; Ray ends trials that take longer to stop."""


class Proposer(Protocol):
    """Proposes trials and records them; called in the driver, one call at a time."""

    def propose(self) -> tuple[str, Job] | None:
        """Key and job of the next trial; None if there is none."""

    def note(self, key: str, report: TrialReport) -> None:
        """Record a report of a running trial."""

    def finish(self, key: str, report: TrialReport | None, error: str) -> None:
        """Record the last report of a trial that has ended, or why there is none."""


def run(
    proposer: Proposer,
    *,
    name: str,
    storage: str,
    num_trials: int,
    shared: Mapping[str, Any],
    resources: Trials,
    asha: Asha | None,
    max_samples: int,
) -> None:
    """Run ``num_trials`` trials to their ends.

    Args:
        proposer: proposes the trials and records their reports.
        name: a folder under storage that no other call uses.
        storage: folder or URI.
        num_trials: how many ``proposer`` will propose.
        shared: ``images`` and ``statistics`` of the pretraining, ``splits`` of the data training;
            each is put into the object store once.
        resources: of one trial.
        asha: settings of successive halving; None stops no trial early.
        max_samples: upper bound of a trial's samples.
    """
    single = resources.num_workers == 1
    loop = functools.partial(in_actor if single else in_trainer, cpus=resources.cpus)
    bundle = {"CPU": resources.cpus} | ({"GPU": resources.gpus} if resources.gpus else {})
    # A trial of several workers only waits for them: they have resources of their own. Tune refuses
    # an empty request, so the trial itself requests a byte.
    request = PlacementGroupFactory([bundle if single else {"memory": 1}])
    max_concurrent = resources.max_concurrent
    if max_concurrent is None and not single:
        total = ray.cluster_resources()
        fits = [total.get(key, 0) // (each * resources.num_workers) for key, each in bundle.items()]
        max_concurrent = max(1, int(min(fits)))

    def trial(config: Job, **shared: Any) -> None:  # the signature that Tune requires
        loop(config, shared)

    searcher = _Search(proposer)
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(ray.tune.with_parameters(trial, **shared), request),
        tune_config=TuneConfig(
            search_alg=searcher,
            scheduler=FIFOScheduler() if asha is None else _Asha(asha, max_samples=max_samples),
            num_samples=num_trials,
            max_concurrent_trials=max_concurrent,
            reuse_actors=single,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=absolute(storage),
            failure_config=FailureConfig(max_failures=0),
            checkpoint_config=CheckpointConfig(),
            stop=_Interrupted(searcher),
            verbose=0,
        ),
    )

    def on_interrupt(outcome: Future[Any]) -> None:
        searcher.interrupted = True
        concurrent.futures.wait([outcome], STOP_S)

    # At the end Tune warns that its loggers' files are missing; ``session`` has turned them off.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    in_thread(tuner.fit, on_interrupt=on_interrupt)


class _Interrupted(Stopper):  # type: ignore[misc]
    """Ends Tune's loop before Ray is shut down, which would make it log errors."""

    def __init__(self, searcher: _Search) -> None:
        self._searcher = searcher

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._searcher.interrupted


class _Search(Searcher):  # type: ignore[misc]
    """The proposer as Tune's search algorithm."""

    def __init__(self, proposer: Proposer) -> None:
        super().__init__()
        self._proposer = proposer
        self._keys: dict[str, str] = {}
        self.interrupted = False
        """Whether Tune is ending the trials that still run; those ends are not recorded."""

    def suggest(self, trial_id: str) -> Job | str:
        proposal = self._proposer.propose()
        if proposal is None:
            return str(Searcher.FINISHED)
        self._keys[trial_id], job = proposal
        return job

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._proposer.note(self._keys[trial_id], received(result))

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if self.interrupted:
            return
        message = "its process was lost: out of memory, or killed" if error else ""
        report = None if error or result is None else received(result)
        self._proposer.finish(self._keys.pop(trial_id), report, message)

    def __getstate__(self) -> dict[str, Any]:
        """Empty: the proposer persists its own state."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: see ``__getstate__``."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see ``__getstate__``."""


class _Asha(ASHAScheduler):  # type: ignore[misc]
    """Successive halving that leaves out reference trials, and counts a trial that has reached the
    target on every later rung: those that continue compete with it as well.
    """

    def __init__(self, settings: Asha, *, max_samples: int) -> None:
        grace = min(settings.grace_samples, max_samples)
        super().__init__(
            time_attr=COST,
            metric=METRIC,
            mode="min",
            max_t=max_samples,
            grace_period=grace,
            reduction_factor=settings.reduction_factor,
            stop_last_trials=False,
        )
        self._milestones, milestone = [], float(grace)
        while milestone <= max_samples:
            self._milestones.append(milestone)
            milestone *= settings.reduction_factor

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
