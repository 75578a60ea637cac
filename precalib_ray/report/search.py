"""Figures of a search."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import optuna
from matplotlib.figure import Figure

from precalib_ray.report.figures import BLUE, GRAY, ORANGE

Record = Mapping[str, Any]


def history(
    scores: Mapping[str, Sequence[float]],
    trials: Sequence[Record],
    references: Mapping[str, float],
    *,
    what: str,
) -> Figure:
    """The score of every trial in order, the best so far, and the scores of reference trials."""
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    best = float("inf")
    steps: list[tuple[int, float]] = []
    for state, color, label in (
        ("finished", BLUE, "finished"),
        ("stopped", GRAY, "stopped early"),
    ):
        chosen = [
            (n, r) for n, r in enumerate(trials) if r["state"] == state and r["key"] in scores
        ]
        axes.scatter(
            [n for n, _ in chosen], [scores[r["key"]][0] for _, r in chosen], s=18, color=color,
            label=label,
        )  # fmt: skip
    for number, record in enumerate(trials):
        if record["state"] == "finished" and record["key"] in scores:
            best = min(best, scores[record["key"]][0])
            steps.append((number, best))
    axes.step(
        [n for n, _ in steps],
        [b for _, b in steps],
        where="post",
        color=ORANGE,
        label="best so far",
    )
    failed = [number for number, record in enumerate(trials) if record["state"] == "failed"]
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


def pareto(
    trials: Sequence[Record], references: Sequence[Record], *, target: float | None
) -> Figure:
    """Deviation against the samples it took, the front, and the reference trials."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    measured = [r for r in trials if "deviation" in r and r["state"] != "failed"]
    references = [r for r in references if "deviation" in r]
    for state, color, label in (
        ("finished", BLUE, "finished"),
        ("stopped", GRAY, "stopped early"),
    ):
        chosen = [r for r in measured if r["state"] == state]
        axes.scatter(
            [r["samples"] for r in chosen], [r["deviation"] for r in chosen], s=18, color=color,
            label=label,
        )  # fmt: skip
    front = front_of(measured)
    paid = [r["samples"] for r in (*measured, *references) if r["samples"]] or [1]
    free = min(paid) / 4  # a logarithmic scale has no place for what costs nothing
    axes.step(
        [r["samples"] for r in front], [r["deviation"] for r in front], where="post",
        color=ORANGE, label="Pareto front",
    )  # fmt: skip
    for record in references:
        point = (record["samples"] or free, max(record["deviation"], 1e-6))
        axes.scatter(*point, marker="*", s=120, color=ORANGE, zorder=3)
        name = record["reference"] + ("" if record["samples"] else " (0 samples)")
        axes.annotate(name, point, xytext=(6, 6), textcoords="offset points")
    if target is not None:
        axes.axhline(target, color=GRAY, linestyle="--", linewidth=1, label=f"target {target:g}")
    axes.set(
        xscale="log", yscale="log", xlim=(free / 2, max(paid) * 4), xlabel="samples of noise",
        ylabel="worst deviation from chance", title="What chance costs",
    )  # fmt: skip
    axes.legend(loc="lower right", fontsize=8)
    return figure


def front_of(records: Sequence[Record]) -> list[Record]:
    """Those that no other beats in both deviation and samples, by samples."""
    front: list[Record] = []
    for record in sorted(records, key=lambda r: (r["samples"], r["deviation"])):
        if not front or record["deviation"] < front[-1]["deviation"]:
            front.append(record)
    return front


def parallel_coordinates(study: optuna.Study, *, what: str) -> Figure | None:
    """All parameters that every trial has, a line for each trial; None if there are too few."""
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
    """How much each parameter decides about the score (fANOVA); None if there are too few."""
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
    axes.set(xlabel="importance (fANOVA)", title="Which parameters decide")
    return figure


def _common(study: optuna.Study) -> list[str]:
    """Parameters that all completed trials have, and that differ between them."""
    completed = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    if not completed:
        return []
    names = set.intersection(*(set(trial.params) for trial in completed))
    return sorted(name for name in names if len({repr(t.params[name]) for t in completed}) > 1)
