"""Figures of a data training, and of two arms side by side."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from precalib_ray.core.phases.training import Epoch, Outcome, Reliability
from precalib_ray.report.figures.style import BLUE, GRAY, ORANGE


def training(outcome: Outcome, *, title: str) -> Figure:
    """Confidence and accuracy along data training, and the reliability of the best weights."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    confidence_along(left, outcome.progress.history, "Validation, epoch by epoch")
    reliability(right, outcome.reliability, BLUE, "Reliability before and after")
    figure.suptitle(title)
    return figure


def comparison(arms: Sequence[tuple[str, Outcome]], *, title: str) -> Figure:
    """Confidence against accuracy along training, and reliability, one row for each of two arms."""
    figure, rows = plt.subplots(
        len(arms), 2, figsize=(10, 4 * len(arms)), layout="constrained", squeeze=False
    )
    for (name, outcome), (left, right), color in zip(arms, rows, (ORANGE, BLUE), strict=True):
        confidence_along(left, outcome.progress.history, f"{name}: along training")
        ece = outcome.last["ece"]
        reliability(right, outcome.reliability, color, f"{name}: ECE {ece:.3f}")
    figure.suptitle(title)
    return figure


def confidence_along(axes: Axes, history: Sequence[Epoch], title: str) -> None:
    """Mean confidence and accuracy by epoch; the area between them is overconfidence."""
    epochs = [record.epoch for record in history]
    confidence = [record.metrics["mean_confidence"] for record in history]
    accuracy = [record.metrics["accuracy"] for record in history]
    axes.plot(epochs, confidence, color=ORANGE, marker="o", markersize=3, label="mean confidence")
    axes.plot(epochs, accuracy, color=BLUE, marker="o", markersize=3, label="accuracy")
    axes.fill_between(epochs, accuracy, confidence, color=GRAY, alpha=0.25, label="gap")
    axes.set(ylim=(0, 1.02), xlabel="epoch", title=title)
    axes.legend(loc="lower right", fontsize=8)


def reliability(axes: Axes, pair: Reliability, color: str, title: str) -> None:
    """Accuracy of each bin of confidence against its mean confidence, sized by its samples."""
    axes.plot([0, 1], [0, 1], color=GRAY, linestyle="--", linewidth=1, label="perfect")
    for moment, bins, face in (("before", pair.before, "none"), ("after", pair.after, color)):
        points = zip(bins.confidence, bins.accuracy, bins.count, strict=True)
        filled = [point for point in points if point[2]]
        total = sum(count for _, _, count in filled)
        axes.scatter(
            [confidence for confidence, _, _ in filled],
            [accuracy for _, accuracy, _ in filled],
            s=[20 + 300 * count / total for _, _, count in filled],
            facecolor=face,
            edgecolor=color,
            alpha=0.7,
            label=f"{moment} training (bins, by size)",
        )
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="confidence", ylabel="accuracy", title=title)
    axes.legend(loc="upper left", fontsize=8)
