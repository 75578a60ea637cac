"""Figures of a search show its trials, its front and what it is compared with."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex

from precalib_ray.report.figures import search
from precalib_ray.report.figures.style import ORANGE
from precalib_ray.search.trial import Trial

TRIALS = [
    Trial(key="a", state="finished", deviation=0.01, samples=300),
    Trial(key="b", state="stopped", deviation=0.2, samples=100),
    Trial(key="c", state="failed"),
    Trial(key="d", state="finished", deviation=0.002, samples=900),
]
REFERENCES = [
    Trial(key="x", reference="zero_head", state="finished", deviation=0.0, samples=0),
    Trial(key="y", reference="paper", state="finished", deviation=0.03, samples=5000),
    Trial(key="z", reference="untrained", state="running"),
]


def labels(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_history_draws_the_best_so_far_and_the_references() -> None:
    figure = search.history(
        {"a": [300.0], "b": [9000.0], "d": [900.0]}, TRIALS, {"zero_head": 500.0}, what="cost"
    )
    (axes,) = figure.axes
    assert labels(axes) == ["finished", "stopped early", "best so far", "failed", "zero_head"]
    (best,) = [line for line in axes.lines if line.get_label() == "best so far"]
    assert list(best.get_ydata()) == [300.0, 300.0]  # type: ignore[arg-type]
    (reference,) = [line for line in axes.lines if line.get_label() == "zero_head"]
    assert set(reference.get_ydata()) == {500.0}  # type: ignore[arg-type]


def test_pareto_shows_every_point_and_what_costs_nothing() -> None:
    (axes,) = search.pareto(TRIALS, REFERENCES, target=0.005).axes
    points = [tuple(p) for c in axes.collections for p in c.get_offsets().tolist()]  # type: ignore[union-attr]
    assert {(300, 0.01), (100, 0.2), (900, 0.002), (5000, 0.03)} <= set(points)
    assert {t.get_text() for t in axes.texts} == {"zero_head (0 samples)", "paper"}
    low, high = axes.get_xlim()
    assert all(low < x < high for x, _ in points)
    front = [line for line in axes.lines if to_hex(line.get_color()).upper() == ORANGE]
    assert list(front[0].get_xdata()) == [100, 300, 900]  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1))
def test_front_is_what_no_other_beats(points: list[tuple[int, int]]) -> None:
    front = search.front_of([(samples, float(deviation)) for samples, deviation in points])
    beaten = {
        p for p in points for q in points if q != p and q[0] <= p[0] and q[1] <= p[1]
    }  # fmt: skip
    assert set(front) == set(points) - beaten
    assert len(front) == len(set(front))
