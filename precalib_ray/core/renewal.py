"""A pre-calibrated network for another number of classes.

The trunk stays as it is, bit by bit. The last layer is made anew, halved until it is at chance, and
then alone trained on noise with uniform targets, by one short recipe for every architecture:
halving alone leaves the directions in which inputs differ as they were drawn.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from precalib_ray.core import models
from precalib_ray.core.engine import Engine, Limits, Progress, run
from precalib_ray.core.probes import Panel, PanelResult, noise_probe
from precalib_ray.core.seeding import INITIALIZATION, mix
from precalib_ray.core.stream import NoiseStream
from precalib_ray.errors import CheckpointError

BATCH_SIZE, PROBE_SIZE = 16, 16
EVERY, MAX_STEPS, MAX_SECONDS = 10, 50, 60.0
STEP = 0.25
"""How far one step of Adam moves a logit at most, about, by the spread of the logits at the start:
its learning rate is this times the standard deviation of the new weights over the square root of
their number per class. Features differ by orders of magnitude between architectures, steps do not.
"""

_HALVINGS = 40
_PARTS: tuple[dict[str, Any], ...] = (
    {"kind": "gaussian"},
    {"kind": "pink", "alpha": 2.0},
    {"kind": "patches"},
)


@dataclass(frozen=True)
class Renewed:
    """A network with a new last layer."""

    model: nn.Module
    spec: dict[str, Any]
    fresh: PanelResult
    """With the new layer as its library initializes it."""
    after: PanelResult


def target_deviation(num_classes: int) -> float:
    """What counts as chance: 0.005, and at most half of 1/K."""
    return min(0.005, 0.5 / num_classes)


def renew_head(
    model: nn.Module, spec: Mapping[str, Any], num_classes: int, *, seed: int = 0
) -> Renewed:
    """Give a model a last layer of ``num_classes`` outputs that are at chance.

    Args:
        model: whose trunk is used; it is not changed.
        spec: as ``models.build`` takes it.
        num_classes: K from now on.
        seed: of the new layer and of the noise.

    Raises:
        CheckpointError: the architecture has other layers that depend on K, or its outputs are not
            numbers.
    """
    new_spec = {**spec, "num_classes": num_classes}
    renewed = models.build(new_spec, seed=mix(seed, INITIALIZATION))
    try:
        head, layer = models.find_head(renewed, num_classes)
        trunk = {k: v for k, v in model.state_dict().items() if not k.startswith(f"{head}.")}
        missing, unexpected = renewed.load_state_dict(trunk, strict=False)
        others = [*unexpected, *(key for key in missing if not key.startswith(f"{head}."))]
        if others:
            raise ValueError(f"{', '.join(others[:3])} depend on the number of classes too")
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"no new last layer of {num_classes} classes: {reason}") from None
    shape = spec["input_shape"]
    panel = Panel(
        [
            noise_probe(part["kind"], part, size=PROBE_SIZE, input_shape=shape, seed=seed)
            for part in _PARTS
        ]
    )
    target = target_deviation(num_classes)
    at_start = fresh = panel.measure(renewed)
    for _ in range(_HALVINGS):
        if at_start.deviation <= target:
            break
        models.scale_head(renewed, num_classes, 0.5)
        at_start = panel.measure(renewed)
    if not at_start.deviation <= target:  # not a number perhaps
        found = f"{at_start.deviation:.4f} above chance on {at_start.worst.probe} noise"
        raise CheckpointError(
            f"no new last layer of {num_classes} classes: however small it is, confidence is "
            f"{found}, more than {target:g}; run noise pretraining for this number of classes"
        )
    halved = copy.deepcopy(layer.state_dict())
    weights = layer.weight.detach().flatten(start_dim=1)  # (K, features), of any linear layer
    engine = Engine(
        renewed,
        num_classes=num_classes,
        optimizer={
            "kind": "adam",
            "lr": STEP * weights.std().item() / len(weights[0]) ** 0.5,
            "weight_decay": 0.0,
            "betas": (0.9, 0.999),
        },
        loss={"kind": "cross_entropy"},
        schedule={"kind": "linear", "warmup_steps": 0},
        num_steps=MAX_STEPS,
        seed=seed,
        trainable="head",
    )
    stream = NoiseStream(
        {"kind": "mixture", "parts": [{"weight": 1.0, "noise": part} for part in _PARTS]},
        {"kind": "uniform"},
        seed=seed,
        batch_size=BATCH_SIZE,
        input_shape=shape,
        num_classes=num_classes,
    )

    def measure() -> PanelResult:
        # Steps moved the running statistics of BatchNorm layers, which are the trunk's.
        renewed.load_state_dict(trunk, strict=False)
        return panel.measure(renewed)

    def evaluate(_: Progress) -> dict[str, Any]:
        found = measure()
        return {"deviation": found.deviation, "num_forwards": found.num_forwards}

    with torch.random.fork_rng(devices=[]):  # steps seed dropout; the caller's draws go on
        run(
            engine,
            stream.batch,
            batch_size=BATCH_SIZE,
            limits=Limits(steps=MAX_STEPS, seconds=MAX_SECONDS, until_deviation=target / 2),
            evaluate=evaluate,
            evaluate_at=lambda progress: progress.step % EVERY == 0,
        )
    result = measure()
    if not result.deviation <= at_start.deviation:  # a trunk on which the recipe does harm
        layer.load_state_dict(halved)
        result = at_start
    renewed.requires_grad_(True)
    return Renewed(renewed.train(), new_spec, fresh, result)
