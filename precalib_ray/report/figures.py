"""Figures of a pretraining, of a training, and of the two networks of the quickstart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, GRAY = "#0072B2", "#D55E00", "#7A7A7A"  # apart for the color-blind as well


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG and close the figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)
    return path


def pretraining(outcome: Mapping[str, Any], *, title: str, num_classes: int) -> Figure:
    """Deviation from chance along noise pretraining, and before and after it on every probe."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    before = {_key(m): m["deviation"] for m in outcome["before"]["measurements"]}
    after = {_key(m): m["deviation"] for m in outcome["after"]["measurements"]}
    history = outcome["progress"]["history"]
    steps = [0, *(record["step"] for record in history)]
    colors = plt.get_cmap("tab10").colors  # type: ignore[attr-defined]
    for name in history[0]["deviations"] if history else ():
        probe, _, mode = name.partition("/")
        values = [before[name], *(record["deviations"][name] for record in history)]
        probes = list(dict.fromkeys(key.partition("/")[0] for key in before))
        left.plot(
            steps,
            values,
            marker="o",
            markersize=3,
            color=colors[probes.index(probe) % 10],
            linestyle="-" if mode == "running" else "--",
            label=name,
        )
    left.set(yscale="log", xlabel="step", ylabel="mean confidence - 1/K", title="Along the way")
    if history:
        left.legend(fontsize=7)
    positions = range(len(before))
    right.barh(
        [p + 0.2 for p in positions], list(before.values()), 0.38, color=ORANGE, label="untrained"
    )
    right.barh(
        [p - 0.2 for p in positions], list(after.values()), 0.38, color=BLUE, label="pre-calibrated"
    )
    right.set_yticks(list(positions), list(before))
    right.invert_yaxis()
    right.set(xlabel=f"deviation from chance (1/{num_classes})", title="Before and after")
    for key, position in zip(after, positions, strict=True):
        right.annotate(
            f"{before[key]:.3f} → {after[key]:.4f}", (max(before[key], after[key]), position),
            xytext=(4, 0), textcoords="offset points", va="center", fontsize=8,
        )  # fmt: skip
    right.set_xlim(0, max([1e-6, *before.values(), *after.values()]) * 1.35)
    figure.legend(
        *right.get_legend_handles_labels(), loc="outside lower right", ncols=2, fontsize=8
    )
    figure.suptitle(title)
    return figure


def training(outcome: Mapping[str, Any], *, title: str) -> Figure:
    """Confidence and accuracy along data training, and the reliability of the best weights."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    confidence_along(left, outcome["progress"]["history"], "Validation, epoch by epoch")
    reliability(right, outcome["reliability"], BLUE, "Reliability before and after")
    figure.suptitle(title)
    return figure


def comparison(arms: Sequence[tuple[str, Mapping[str, Any]]], *, title: str) -> Figure:
    """Confidence against accuracy along training, and reliability, one row for each arm."""
    figure, rows = plt.subplots(
        len(arms), 2, figsize=(10, 4 * len(arms)), layout="constrained", squeeze=False
    )
    for (name, outcome), (left, right), color in zip(arms, rows, (ORANGE, BLUE), strict=True):
        confidence_along(left, outcome["progress"]["history"], f"{name}: along training")
        scores = outcome.get("test") or outcome["val"]
        reliability(right, outcome["reliability"], color, f"{name}: ECE {scores['ece']:.3f}")
    figure.suptitle(title)
    return figure


def confidence_along(axes: Axes, history: Sequence[Mapping[str, Any]], title: str) -> None:
    """Mean confidence and accuracy by epoch; between them, what the network believes too much."""
    epochs = [record["epoch"] for record in history]
    confidence = [record["mean_confidence"] for record in history]
    accuracy = [record["accuracy"] for record in history]
    axes.plot(epochs, confidence, color=ORANGE, marker="o", markersize=3, label="mean confidence")
    axes.plot(epochs, accuracy, color=BLUE, marker="o", markersize=3, label="accuracy")
    axes.fill_between(epochs, accuracy, confidence, color=GRAY, alpha=0.25, label="gap")
    axes.set(ylim=(0, 1.02), xlabel="epoch", title=title)
    axes.legend(loc="lower right", fontsize=8)


def reliability(
    axes: Axes, bins: Mapping[str, Mapping[str, Sequence[float]]], color: str, title: str
) -> None:
    """Accuracy of each bin of confidence against its mean confidence, sized by its samples."""
    axes.plot([0, 1], [0, 1], color=GRAY, linestyle="--", linewidth=1, label="perfect")
    for moment, face in (("before", "none"), ("after", color)):
        kept = [
            point
            for point in zip(
                *(bins[moment][key] for key in ("confidence", "accuracy", "count")), strict=True
            )
            if point[2]
        ]
        total = sum(count for _, _, count in kept)
        axes.scatter(
            [confidence for confidence, _, _ in kept],
            [accuracy for _, accuracy, _ in kept],
            s=[20 + 300 * count / total for _, _, count in kept],
            facecolor=face,
            edgecolor=color,
            alpha=0.7,
            label=f"{moment} training (bins, by size)",
        )
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="confidence", ylabel="accuracy", title=title)
    axes.legend(loc="upper left", fontsize=8)


def _key(measurement: Mapping[str, Any]) -> str:
    return f"{measurement['probe']}/{measurement['mode']}"
