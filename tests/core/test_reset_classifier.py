"""A pre-calibrated network for another number of classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import precalib_ray
from precalib_ray.core import checkpoint
from precalib_ray.core.models.function import Function
from precalib_ray.core.models.mlp import MLP
from precalib_ray.core.noise import Noise
from precalib_ray.core.phases.reset_classifier import reset_classifier, target_deviation
from precalib_ray.core.probes import Panel, noise_probe
from precalib_ray.core.spec import from_plain
from precalib_ray.errors import CheckpointError

SETTINGS = MLP(num_classes=10, input_shape=(1, 8, 8), depth=2, width=64, batch_norm=True)


@pytest.mark.parametrize("num_classes", [2, 37])
def test_the_trunk_stays_and_the_head_is_at_chance(num_classes: int) -> None:
    model = SETTINGS.build(seed=1)
    drawn = torch.get_rng_state()
    reset = reset_classifier(model, SETTINGS, num_classes)
    assert torch.equal(torch.get_rng_state(), drawn)  # the caller's draws go on
    assert reset.settings == replace(SETTINGS, num_classes=num_classes)
    before, after = model.state_dict(), reset.model.state_dict()
    for name in before:
        if not name.startswith("head."):
            assert torch.equal(before[name], after[name]), name
    head = reset.model.head
    assert isinstance(head, torch.nn.Linear)
    assert head.weight.shape == (num_classes, 64)
    assert head.weight.abs().min() > 0  # trained, not zeroed
    assert all(p.requires_grad for p in reset.model.parameters())
    assert all(m.training for m in reset.model.modules())
    unseen = Panel(
        [
            noise_probe(
                kind, from_plain(Noise, {"kind": kind}), size=64, input_shape=[1, 8, 8], seed=77
            )
            for kind in ("gaussian", "blur", "uniform")
        ]
    )
    assert unseen.measure(reset.model).deviation <= 2 * target_deviation(num_classes)


@pytest.mark.parametrize("scale", [1e-3, 1e5])
def test_features_of_any_size_are_brought_to_chance(scale: float) -> None:
    model = SETTINGS.build(seed=1)
    with torch.no_grad():
        model.body[-2].weight.fill_(scale)  # type: ignore[index, operator, union-attr]
    reset = reset_classifier(model, SETTINGS, 4)
    assert reset.after.deviation <= target_deviation(4)
    assert reset.after.deviation <= reset.fresh.deviation


def test_every_last_layer_is_replaced() -> None:
    name, width = "tests.core.user_models:Distilled", {"width": 6}
    settings = Function(name=name, num_classes=5, input_shape=(12,), args=width)
    model = settings.build(seed=1)
    reset = reset_classifier(model, settings, 3)
    before, after = model.state_dict(), reset.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"{head}.{p}" for head in ("head", "head_dist") for p in ("weight", "bias")}
    assert reset.after.deviation <= target_deviation(3)


def test_a_network_without_a_last_layer_is_refused() -> None:
    settings = Function(name="tests.core.user_models:LogSoftmax", num_classes=5, input_shape=(12,))
    with pytest.raises(CheckpointError, match=r"of 3 classes: head .* the logits are not 0"):
        reset_classifier(settings.build(seed=1), settings, 3)


def test_a_network_that_cannot_be_brought_to_chance_is_refused() -> None:
    model = SETTINGS.build(seed=1)
    with torch.no_grad():
        model.body[-2].weight.fill_(float("nan"))  # type: ignore[index, operator, union-attr]
    with pytest.raises(CheckpointError, match=r"of 3 classes: at any scale, .* nan above"):
        reset_classifier(model, SETTINGS, 3)


@pytest.mark.parametrize("num_classes", [0, 1, -3, 2.0, "4"])
def test_what_is_no_number_of_classes_is_refused_before_anything_is_fetched(
    num_classes: object,
) -> None:
    with pytest.raises(ValueError, match="must be an integer, 2 or more"):
        precalib_ray.load_pretrained("models:/m/1", num_classes=num_classes)  # type: ignore[arg-type]


def test_load_pretrained_takes_another_number_of_classes(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoint"
    checkpoint.save(directory, model=SETTINGS.build(seed=1), settings=SETTINGS, metrics={})
    same = precalib_ray.load_pretrained(str(directory), num_classes=10)
    other = precalib_ray.load_pretrained(str(directory), num_classes=4)
    inputs = torch.randn(5, 1, 8, 8)
    assert same(inputs).shape == (5, 10)
    assert other(inputs).shape == (5, 4)
