"""What a search minimizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from precalib_ray.config.jobs.search import SearchConfig
from precalib_ray.core.spec import hints
from precalib_ray.search import references
from precalib_ray.search.objective import Objective
from precalib_ray.search.trial import Trial
from tests.search.test_trials import DOWNSTREAM, config

RECIPE = {"duration": {"until_deviation": 0.01}}
TRIAL = Trial(
    key="00000", state="finished", recipe=RECIPE, max_samples=1000, deviation=0.1, samples=500
)


def objective(name: str, folder: Path) -> Objective:
    changes = DOWNSTREAM if name == "downstream" else {"objective": name}
    return Objective.members[name](config(folder, **changes))


def test_a_config_can_choose_every_objective() -> None:
    assert set(get_args(hints(SearchConfig)["objective"])) == set(Objective.members)


@pytest.mark.parametrize("name", Objective.members)
def test_the_sampler_gets_the_number_of_scores_that_it_expects(name: str, tmp_path: Path) -> None:
    found = objective(name, tmp_path)
    assert len(found.scores(TRIAL, control=None)) == found.num_scores
    assert len(found.cells(TRIAL)) == len(found.columns)


def test_a_missed_target_costs_more_than_any_reached_one(tmp_path: Path) -> None:
    cost = objective("cost_to_target", tmp_path)
    assert cost.scores(replace(TRIAL, reached=True), control=None) == [500.0]
    # Ten times the target: all samples, and as much again.
    assert cost.scores(replace(TRIAL, reached=False), control=None) == [pytest.approx(2000.0)]
    assert cost.scores(replace(TRIAL, deviation=0.009), control=None) == [1000.0]


def test_accuracy_lost_beyond_what_is_allowed_counts_tenfold(tmp_path: Path) -> None:
    downstream = objective("downstream", tmp_path)
    control = replace(TRIAL, downstream={"gap": 0.5, "accuracy": 0.9})
    equal = replace(TRIAL, downstream={"gap": 0.2, "accuracy": 0.895})
    worse = replace(TRIAL, downstream={"gap": 0.2, "accuracy": 0.885})
    assert downstream.scores(equal, control=control) == [pytest.approx(0.2)]
    assert downstream.scores(worse, control=control) == [pytest.approx(0.3)]
    assert downstream.scores(worse, control=None) == [pytest.approx(0.2)]
    assert downstream.scores(TRIAL, control=control) == [pytest.approx(1.1)]  # stopped before it
    assert downstream.cells(worse) == ["0.2000", "0.8850"]


def test_stopped_trials_rank_last_and_of_a_pareto_front_those_that_missed(tmp_path: Path) -> None:
    stopped = replace(TRIAL, state="stopped", deviation=0.01)
    deviation = objective("deviation", tmp_path)
    assert sorted([stopped, TRIAL], key=lambda t: deviation.rank(t, control=None))[0] is TRIAL
    pareto = objective("pareto", tmp_path)
    reached = replace(TRIAL, samples=900, reached=True)
    assert sorted([TRIAL, reached], key=lambda t: pareto.rank(t, control=None))[0] is reached


@pytest.mark.parametrize(
    ("name", "comparable"),
    [("deviation", True), ("downstream", True), ("cost_to_target", False), ("pareto", False)],
)
def test_references_are_compared_where_cost_is_no_part_of_the_score(
    name: str, comparable: bool, tmp_path: Path
) -> None:
    measured = replace(TRIAL, key="reference-paper", reference="paper")
    failed = replace(measured, deviation=None, state="failed")
    found = references.comparable(objective(name, tmp_path), [measured, failed])
    assert found == ([measured] if comparable else [])
