"""Figures show the numbers that they were given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from precalib_ray.report import figures


def panel(deviation: float) -> dict[str, Any]:
    return {
        "deviation": deviation,
        "worst": "pink/running",
        "measurements": [
            {"probe": "pink", "mode": "running", "deviation": deviation, "class_bias": 0.0},
            {"probe": "real", "mode": "running", "deviation": deviation / 2, "class_bias": 0.0},
        ],
    }


def bins() -> dict[str, list[float]]:
    return {"count": [0, 10], "confidence": [0.0, 0.9], "accuracy": [0.0, 0.7]}


def history() -> list[dict[str, Any]]:
    return [
        {"epoch": 0, "mean_confidence": 0.4, "accuracy": 0.1},
        {"epoch": 1, "mean_confidence": 0.6, "accuracy": 0.8},
    ]


def test_pretraining_draws_the_curve_from_the_untrained_network_on(tmp_path: Path) -> None:
    outcome = {
        "before": panel(0.5),
        "after": panel(0.002),
        "progress": {"history": [{"step": 20, "deviations": {"pink/running": 0.01}}]},
    }
    figure = figures.pretraining(outcome, title="t", num_classes=10)
    left, right = figure.axes
    (line,) = left.get_lines()
    assert line.get_xydata().tolist() == [[0, 0.5], [20, 0.01]]
    assert [bar.get_width() for bar in right.patches] == [0.5, 0.25, 0.002, 0.001]
    assert figures.save(figure, tmp_path / "new" / "f.png").stat().st_size > 10_000


def test_a_run_without_probings_has_a_figure_too() -> None:
    outcome = {"before": panel(0.5), "after": panel(0.4), "progress": {"history": []}}
    assert not figures.pretraining(outcome, title="t", num_classes=10).axes[0].get_lines()


def test_comparison_has_a_row_for_each_arm() -> None:
    outcome = {
        "progress": {"history": history()},
        "reliability": {"before": bins(), "after": bins()},
        "test": {"ece": 0.123},
    }
    figure = figures.comparison([("random", outcome), ("ours", outcome)], title="t")
    assert len(figure.axes) == 4
    confidence, accuracy = figure.axes[0].get_lines()
    assert confidence.get_ydata().tolist() == pytest.approx([0.4, 0.6])
    assert accuracy.get_ydata().tolist() == pytest.approx([0.1, 0.8])
    assert "0.123" in figure.axes[3].get_title()
    (before, after) = figure.axes[3].collections
    assert before.get_offsets().tolist() == after.get_offsets().tolist() == [[0.9, 0.7]]
