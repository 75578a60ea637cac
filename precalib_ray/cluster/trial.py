"""One trial of a search: noise pretraining by a recipe, and data training if that is scored."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import ray.tune
import torch

from precalib_ray.cluster import trainer, worker
from precalib_ray.cluster.channel import Report
from precalib_ray.core.loop import Host
from precalib_ray.core.phases.pretraining import Outcome, Pretraining, Probing
from precalib_ray.core.phases.training import Start, Training
from precalib_ray.core.probes import PanelResult
from precalib_ray.core.progress import Progress
from precalib_ray.core.recipe import Recipe
from precalib_ray.core.spec import plain
from precalib_ray.errors import DivergedError
from precalib_ray.search.report import TrialReport

METRIC, COST = "deviation", "samples"
"""The fields of a report that successive halving compares."""

Job = dict[str, Any]
"""``reference``: whether it is a reference trial; ``recipe``: a PretrainConfig; ``data_training``:
a TrainConfig or None.
"""

_MAPPINGS = ("deviations", "downstream")

_untrained: dict[str, PanelResult] = {}
"""Measurements of untrained networks, shared by the trials of a process."""


def in_actor(job: Job, shared: Mapping[str, Any], *, cpus: float) -> None:
    """A trial of one worker: it trains here, in an actor that Tune reuses for the next trial."""
    torch.set_num_threads(max(1, int(cpus)))
    clock = _Clock()
    try:
        report = _measure(job, shared, clock)
    except DivergedError as error:
        report = TrialReport(failed=str(error))
    except Exception as error:  # a user's function may raise anything; the search continues
        report = TrialReport(failed=f"{type(error).__name__}: {error}")
    clock.report(report)


def in_trainer(job: Job, shared: Mapping[str, Any], *, cpus: float) -> None:
    """A trial of several workers: it runs a trainer, and waits for it."""
    clock = _Clock()
    history: list[list[float]] = []

    def on_report(report: Report) -> None:
        for probing in report.evaluations:
            history.append([probing.samples, probing.deviation])
            clock.report(
                TrialReport(
                    deviation=probing.deviation, samples=probing.samples, history=list(history)
                )
            )

    try:
        fitted = trainer.fit(
            worker.pretrain,
            job["recipe"],
            {"images": shared["images"], "statistics": shared["statistics"]},
            keep=1,
            local=False,
            on_report=on_report,
            notify=logging.getLogger(__name__).warning,
        )
        last = _summary(job["recipe"], fitted.outcome)
    except Exception as error:  # as in the actor
        last = TrialReport(failed=f"{type(error).__name__}: {error}")
    clock.report(last)


def received(result: Mapping[str, Any]) -> TrialReport:
    """A report as Tune delivers it, without what Tune adds."""
    known = {f.name: result[f.name] for f in fields(TrialReport) if f.name in result}
    mappings = {name: dict(known[name]) for name in _MAPPINGS if name in known}
    return TrialReport(**{**known, **mappings})


def transported(report: TrialReport) -> dict[str, Any]:
    """A report as Tune transports it; mappings become pairs, as Tune would flatten them."""
    known = {name: value for name, value in vars(report).items() if value is not None}
    pairs = {name: [list(i) for i in known[name].items()] for name in _MAPPINGS if name in known}
    return {**known, **pairs}


class _Clock:
    """Reports with the seconds of the trial, without those spent in reporting."""

    def __init__(self) -> None:
        self._started, self._waited = time.perf_counter(), 0.0

    def report(self, report: TrialReport) -> None:
        now = time.perf_counter()
        seconds = now - self._started - self._waited
        ray.tune.report(transported(replace(report, compute_seconds=seconds)))
        self._waited += time.perf_counter() - now


class _TrialHost(Host[Probing]):
    """Reports every probing to Tune."""

    def __init__(self, clock: _Clock) -> None:
        self._clock = clock

    def on_evaluation(self, progress: Progress[Probing]) -> None:
        self._clock.report(
            TrialReport(
                deviation=progress.history[-1].deviation,
                samples=progress.samples,
                history=_history(progress),
            )
        )


def _measure(job: Job, shared: Mapping[str, Any], clock: _Clock) -> TrialReport:
    recipe = job["recipe"]
    device = "cuda" if recipe.scaling.use_gpu else "cpu"
    same = json.dumps(plain([recipe.model, recipe.seed, recipe.probes]), sort_keys=True)
    phase = Pretraining(
        recipe,
        images=shared["images"],
        statistics=shared["statistics"],
        before=_untrained.get(same),
        device=device,
    )
    _untrained[same] = phase.before
    report = _summary(recipe, phase.run(_TrialHost(clock)))
    if job["data_training"] is None:
        return report
    weights = {name: value.cpu() for name, value in phase.engine.model.state_dict().items()}
    training = Training(
        job["data_training"],
        Start(recipe.model, weights),
        shared["splits"],
        device=device,
    )
    epochs = [epoch.metrics for epoch in training.run().progress.history]
    gaps = [abs(metrics["mean_confidence"] - metrics["accuracy"]) for metrics in epochs]
    last = {name: epochs[-1][name] for name in ("accuracy", "ece", "nll")}
    return replace(report, downstream={"gap": sum(gaps) / len(gaps), **last})


def _summary(recipe: Recipe, outcome: Outcome) -> TrialReport:
    """The last report of a finished trial; its deviation is the worst that the search may see."""
    deviations = {
        m.key: m.deviation
        for m in outcome.after.measurements
        if not recipe.probes.is_held_out(m.probe)
    }
    if not all(map(math.isfinite, deviations.values())):
        raise DivergedError(f"the confidence on a probe is NaN: {deviations}")
    progress = outcome.progress
    return TrialReport(
        deviation=max(deviations.values()),
        samples=progress.samples,
        history=_history(progress),
        deviations=deviations,
        initial_deviation=outcome.before.deviation,
        seconds=progress.seconds,
        stop_reason=progress.stop_reason,
        reached=progress.stop_reason == "until_deviation",
    )


def _history(progress: Progress[Probing]) -> list[list[float]]:
    return [[probing.samples, probing.deviation] for probing in progress.history]
