"""Figures of a search."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import matplotlib.pyplot as plt
import optuna
from matplotlib.figure import Figure

from precalib_ray.report.figures.style import BLUE, GRAY, ORANGE

_ENDED = (("finished", BLUE, "finished"), ("stopped", GRAY, "stopped early"))
_FREE = 4  # zero-cost points are drawn at 1/4 of the cheapest trial


class Trial(Protocol):
    """A trial, as figures need it."""

    @property
    def key(self) -> str:
        """Unique in the search."""

    @property
    def state(self) -> str:
        """``running``, ``finished``, ``stopped`` or ``failed``."""

    @property
    def reference(self) -> str | None:
        """The name of the reference trial; None for others."""

    @property
    def deviation(self) -> float | None:
        """Deviation on the worst probe, once measured."""

    @property
    def samples(self) -> int | None:
        """Noise samples used so far."""


Point = tuple[int, float]
"""Samples and deviation."""


def history(
    scores: Mapping[str, Sequence[float]],
    trials: Sequence[Trial],
    references: Mapping[str, float],
    *,
    what: str,
) -> Figure:
    """The score of every trial in order, the best so far, and the scores of reference trials.

    Args:
        scores: scores by key of the trials that have some; the first of each is drawn.
        trials: trials in order.
        references: scores of reference trials, by name.
        what: label of the score's axis.
    """
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    for state, color, label in _ENDED:
        chosen = [(n, t) for n, t in enumerate(trials) if t.state == state and t.key in scores]
        axes.scatter(
            [n for n, _ in chosen],
            [scores[t.key][0] for _, t in chosen],
            s=18,
            color=color,
            label=label,
        )
    best = float("inf")
    steps: list[Point] = []
    for number, trial in enumerate(trials):
        if trial.state == "finished" and trial.key in scores:
            best = min(best, scores[trial.key][0])
            steps.append((number, best))
    axes.step(
        [n for n, _ in steps],
        [b for _, b in steps],
        where="post",
        color=ORANGE,
        label="best so far",
    )
    failed = [number for number, trial in enumerate(trials) if trial.state == "failed"]
    for number in failed:
        label = "failed" if number == failed[0] else ""
        axes.axvline(number, color=ORANGE, linewidth=0.5, linestyle=":", label=label)
    for (name, score), style in zip(references.items(), ("--", "-.", ":"), strict=False):
        axes.axhline(score, color=GRAY, linestyle=style, linewidth=1, label=name)
    axes.set(xlabel="trial", ylabel=what, title="Every trial")
    positive = [values[0] for values in scores.values() if values[0] > 0]
    if positive and max(positive) > 10 * min(positive):
        axes.set_yscale("log")
    axes.legend(fontsize=8)
    return figure


def pareto(trials: Sequence[Trial], references: Sequence[Trial], *, target: float | None) -> Figure:
    """Deviation against the samples it took, the front, and the reference trials."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    measured = [trial for trial in trials if trial.state != "failed"]
    for state, color, label in _ENDED:
        points = _points(trial for trial in measured if trial.state == state)
        axes.scatter([n for n, _ in points], [d for _, d in points], s=18, color=color, label=label)
    front = front_of(_points(measured))
    axes.step(
        [n for n, _ in front],
        [d for _, d in front],
        where="post",
        color=ORANGE,
        label="Pareto front",
    )
    costs = [samples for samples, _ in _points([*measured, *references]) if samples] or [1]
    free = min(costs) / _FREE
    for trial in references:
        for samples, deviation in _points([trial]):
            place = (samples or free, max(deviation, 1e-6))
            axes.scatter(*place, marker="*", s=120, color=ORANGE, zorder=3)
            name = f"{trial.reference}" + ("" if samples else " (0 samples)")
            axes.annotate(name, place, xytext=(6, 6), textcoords="offset points")
    if target is not None:
        axes.axhline(target, color=GRAY, linestyle="--", linewidth=1, label=f"target {target:g}")
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(free / 2, max(costs) * 4),
        xlabel="samples of noise",
        ylabel="worst deviation from chance",
        title="Deviation against samples of noise",
    )
    axes.legend(loc="lower right", fontsize=8)
    return figure


def front_of(points: Iterable[Point]) -> list[Point]:
    """The Pareto front: points that no other beats in both samples and deviation, by samples."""
    front: list[Point] = []
    for samples, deviation in sorted(points):
        if not front or deviation < front[-1][1]:
            front.append((samples, deviation))
    return front


def _points(trials: Iterable[Trial]) -> list[Point]:
    """Points of the trials that are measured."""
    return [
        (trial.samples, trial.deviation)
        for trial in trials
        if trial.samples is not None and trial.deviation is not None
    ]


def parallel_coordinates(study: optuna.Study, *, what: str) -> Figure | None:
    """A line for each trial over the parameters that all have; None if those are fewer than two."""
    from optuna.visualization import matplotlib as plots

    names = _common(study)
    if len(names) < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = plots.plot_parallel_coordinate(
            study,
            params=names,
            target=lambda trial: math.log10(max(trial.values[0], 1e-9)),
            target_name="score",
        )
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    figure.set_size_inches(max(8, 2 * len(names)), 5)
    axes.set_title(f"Score: logarithm of {what}")
    return figure


def importances(study: optuna.Study, *, seed: int) -> Figure | None:
    """The importance of each parameter for the score (fANOVA); None if there are too few trials."""
    completed = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    if len(completed) < 4 or not _common(study):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = optuna.importance.get_param_importances(
                study,
                evaluator=optuna.importance.FanovaImportanceEvaluator(seed=seed % 2**32),
                target=lambda trial: trial.values[0],
            )
        except (ValueError, RuntimeError):  # all scores are the same
            return None
    figure, axes = plt.subplots(figsize=(8, 1 + 0.4 * len(found)), layout="constrained")
    axes.barh(list(found), list(found.values()), color=BLUE)
    axes.invert_yaxis()
    axes.set(xlabel="importance (fANOVA)", title="Parameter importances")
    return figure


def _common(study: optuna.Study) -> list[str]:
    """Parameters that all completed trials have, and that differ between them."""
    completed = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    if not completed:
        return []
    names = set.intersection(*(set(trial.params) for trial in completed))
    return sorted(name for name in names if len({repr(t.params[name]) for t in completed}) > 1)
