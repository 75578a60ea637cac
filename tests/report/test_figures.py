"""Figures show the numbers that they were given."""

from __future__ import annotations

from pathlib import Path

import pytest

from precalib_ray.core.loop import Progress
from precalib_ray.core.phases import pretraining as noise_pretraining
from precalib_ray.core.phases import training as data_training
from precalib_ray.core.phases.pretraining import Probing
from precalib_ray.core.phases.training import Best, Bins, Epoch, Reliability
from precalib_ray.core.probes import Measurement, PanelResult
from precalib_ray.report.figures import pretraining, style, training


def panel(deviation: float) -> PanelResult:
    values = {"pink": deviation, "real": deviation / 2}
    return PanelResult(
        [Measurement(p, "running", d, class_bias=0.0, classes=[]) for p, d in values.items()]
    )


def pretrained(history: list[Probing], after: float) -> noise_pretraining.Outcome:
    return noise_pretraining.Outcome(Progress(history=history), panel(0.5), panel(after))


def trained() -> data_training.Outcome:
    bins = Bins(count=[0, 10], confidence=[0.0, 0.9], accuracy=[0.0, 0.7])
    history = [
        Epoch(i, 10 * i, i, None, {"mean_confidence": confidence, "accuracy": accuracy})
        for i, (confidence, accuracy) in enumerate([(0.4, 0.1), (0.6, 0.8)])
    ]
    return data_training.Outcome(
        Progress(history=history),
        best=Best(1, {}),
        splits={"val": {"ece": 0.9}, "test": {"ece": 0.123}},
        reliability=Reliability(before=bins, after=bins),
    )


def test_pretraining_draws_the_curve_from_the_untrained_network_on(tmp_path: Path) -> None:
    probing = Probing(20, 2560, 0.01, {"pink/running": 0.01}, num_forwards=64)
    figure = pretraining.pretraining(pretrained([probing], 0.002), title="t", num_classes=10)
    left, right = figure.axes
    (line,) = left.get_lines()
    assert line.get_xydata().tolist() == [[0, 0.5], [20, 0.01]]
    assert [bar.get_width() for bar in right.patches] == [0.5, 0.25, 0.002, 0.001]
    assert style.save(figure, tmp_path / "new" / "f.png").stat().st_size > 10_000


def test_a_run_without_probings_has_a_figure_too() -> None:
    figure = pretraining.pretraining(pretrained([], 0.4), title="t", num_classes=10)
    assert not figure.axes[0].get_lines()


def test_training_draws_confidence_and_accuracy() -> None:
    figure = training.training(trained(), title="t")
    confidence, accuracy = figure.axes[0].get_lines()
    assert confidence.get_ydata().tolist() == pytest.approx([0.4, 0.6])
    assert accuracy.get_ydata().tolist() == pytest.approx([0.1, 0.8])


def test_comparison_has_a_row_for_each_arm() -> None:
    figure = training.comparison([("random", trained()), ("ours", trained())], title="t")
    assert len(figure.axes) == 4
    confidence, accuracy = figure.axes[0].get_lines()
    assert confidence.get_ydata().tolist() == pytest.approx([0.4, 0.6])
    assert accuracy.get_ydata().tolist() == pytest.approx([0.1, 0.8])
    assert "0.123" in figure.axes[3].get_title()
    (before, after) = figure.axes[3].collections
    assert before.get_offsets().tolist() == after.get_offsets().tolist() == [[0.9, 0.7]]
