"""The figure of a noise pretraining."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from precalib_ray.core.phases.pretraining import Outcome, Probing
from precalib_ray.core.probes import PanelResult
from precalib_ray.report.figures.style import BLUE, ORANGE


def pretraining(outcome: Outcome, *, title: str, num_classes: int) -> Figure:
    """Deviation from chance during noise pretraining, and before and after it on every probe."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    _along(left, outcome.before, outcome.progress.history)
    _before_and_after(right, outcome.before, outcome.after, num_classes=num_classes)
    figure.legend(
        *right.get_legend_handles_labels(), loc="outside lower right", ncols=2, fontsize=8
    )
    figure.suptitle(title)
    return figure


def _along(axes: Axes, before: PanelResult, history: Sequence[Probing]) -> None:
    """The probes of the stopping rule, by step."""
    steps = [0, *(probing.step for probing in history)]
    colors = plt.get_cmap("tab10").colors  # type: ignore[attr-defined]
    probes = list(dict.fromkeys(m.probe for m in before.measurements))
    for name in history[0].deviations if history else ():
        probe, _, mode = name.partition("/")
        axes.plot(
            steps,
            [before.deviations[name], *(probing.deviations[name] for probing in history)],
            marker="o",
            markersize=3,
            color=colors[probes.index(probe) % 10],
            linestyle="-" if mode == "running" else "--",
            label=name,
        )
    axes.set(yscale="log", xlabel="step", ylabel="mean confidence - 1/K", title="Along the way")
    if history:
        axes.legend(fontsize=7)


def _before_and_after(
    axes: Axes, before: PanelResult, after: PanelResult, *, num_classes: int
) -> None:
    """A pair of bars for each probe and BatchNorm mode."""
    untrained, trained = before.deviations, after.deviations
    positions = range(len(untrained))
    for values, offset, color, label in (
        (untrained, 0.2, ORANGE, "untrained"),
        (trained, -0.2, BLUE, "pre-calibrated"),
    ):
        axes.barh(
            [p + offset for p in positions], list(values.values()), 0.38, color=color, label=label
        )
    axes.set_yticks(list(positions), list(untrained))
    axes.invert_yaxis()
    axes.set(xlabel=f"deviation from chance (1/{num_classes})", title="Before and after")
    for key, position in zip(trained, positions, strict=True):
        axes.annotate(
            f"{untrained[key]:.3f} → {trained[key]:.4f}",
            (max(untrained[key], trained[key]), position),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_xlim(0, max([1e-6, *untrained.values(), *trained.values()]) * 1.35)
