"""A new last layer for another number of classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import precalib_ray
from precalib_ray.core import checkpoint, models, renewal
from precalib_ray.core.probes import Panel, noise_probe
from precalib_ray.errors import CheckpointError

SPEC = {
    "kind": "mlp", "num_classes": 10, "input_shape": [1, 8, 8], "depth": 2, "width": 64,
    "batch_norm": True,
}  # fmt: skip


@pytest.mark.parametrize("num_classes", [2, 37])
def test_the_trunk_stays_and_the_head_is_at_chance(num_classes: int) -> None:
    model = models.build(SPEC, seed=1)
    drawn = torch.get_rng_state()
    renewed = renewal.renew_head(model, SPEC, num_classes)
    assert torch.equal(torch.get_rng_state(), drawn)  # the caller's draws go on
    assert renewed.spec == {**SPEC, "num_classes": num_classes}
    before, after = model.state_dict(), renewed.model.state_dict()
    for name in before:
        if not name.startswith("head."):
            assert torch.equal(before[name], after[name]), name
    head = renewed.model.head
    assert isinstance(head, torch.nn.Linear)
    assert head.weight.shape == (num_classes, 64)
    assert head.weight.abs().min() > 0  # trained, not zeroed
    assert all(p.requires_grad for p in renewed.model.parameters())
    assert all(m.training for m in renewed.model.modules())
    unseen = Panel(
        [
            noise_probe(kind, {"kind": kind}, size=64, input_shape=[1, 8, 8], seed=77)
            for kind in ("gaussian", "blur", "uniform")
        ]
    )
    assert unseen.measure(renewed.model).deviation <= 2 * renewal.target_deviation(num_classes)


@pytest.mark.parametrize("scale", [1e-3, 1e5])
def test_features_of_any_size_are_brought_to_chance(scale: float) -> None:
    model = models.build(SPEC, seed=1)
    with torch.no_grad():
        model.body[-2].weight.fill_(scale)  # type: ignore[index, operator, union-attr]
    renewed = renewal.renew_head(model, SPEC, 4)
    assert renewed.after.deviation <= renewal.target_deviation(4)
    assert renewed.after.deviation <= renewed.fresh.deviation


def test_a_network_that_cannot_be_brought_to_chance_is_told() -> None:
    model = models.build(SPEC, seed=1)
    with torch.no_grad():
        model.body[-2].weight.fill_(float("nan"))  # type: ignore[index, operator, union-attr]
    with pytest.raises(CheckpointError, match=r"of 3 classes: however small it is, .* nan above"):
        renewal.renew_head(model, SPEC, 3)


@pytest.mark.parametrize("num_classes", [0, 1, -3, 2.0, "4"])
def test_what_is_no_number_of_classes_is_refused_before_anything_is_fetched(
    num_classes: object,
) -> None:
    with pytest.raises(ValueError, match="must be an integer, 2 or more"):
        precalib_ray.load_pretrained("models:/m/1", num_classes=num_classes)  # type: ignore[arg-type]


def test_load_pretrained_takes_another_number_of_classes(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoint"
    checkpoint.save(directory, model=models.build(SPEC, seed=1), spec=SPEC, metrics={})
    same = precalib_ray.load_pretrained(str(directory), num_classes=10)
    other = precalib_ray.load_pretrained(str(directory), num_classes=4)
    inputs = torch.randn(5, 1, 8, 8)
    assert same(inputs).shape == (5, 10)
    assert other(inputs).shape == (5, 4)
