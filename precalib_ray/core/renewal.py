"""A pre-calibrated network for another number of classes.

The trunk stays as it is, bit by bit; the last layer is made anew, small, and alone brought to
chance on noise with uniform targets, by one short recipe for every architecture.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from precalib_ray.core import models
from precalib_ray.core.engine import Engine, Limits, Progress, run
from precalib_ray.core.probes import Panel, PanelResult, noise_probe
from precalib_ray.core.seeding import INITIALIZATION, mix
from precalib_ray.core.stream import NoiseStream
from precalib_ray.errors import CheckpointError

BATCH_SIZE, PROBE_SIZE = 16, 16
EVERY, MAX_STEPS, MAX_SECONDS = 5, 100, 120.0
LEARNING_RATE = 1e-4
"""More lets confidence overshoot where features are large, as in a He-initialized ResNet."""

HEAD_SCALE = 0.1
"""Of the new layer's own initialization: less to unlearn, and nothing that is zero."""

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
    progress: Progress
    seconds: float
    """All together."""


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
        CheckpointError: the architecture has other layers that depend on K, or chance was not
            reached.
    """
    started = time.perf_counter()
    new_spec = {**spec, "num_classes": num_classes}
    renewed = models.build(new_spec, seed=mix(seed, INITIALIZATION))
    try:
        head, _ = models.find_head(renewed, num_classes)
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
    fresh = panel.measure(renewed)
    models.scale_head(renewed, num_classes, HEAD_SCALE)
    engine = Engine(
        renewed,
        num_classes=num_classes,
        optimizer={"kind": "adam", "lr": LEARNING_RATE, "weight_decay": 0.0, "betas": (0.9, 0.999)},
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

    result = fresh

    def evaluate(_: Progress) -> dict[str, Any]:
        nonlocal result
        result = measure()
        return {"deviation": result.deviation, "num_forwards": result.num_forwards}

    target = target_deviation(num_classes)
    progress = run(
        engine,
        stream.batch,
        batch_size=BATCH_SIZE,
        limits=Limits(steps=MAX_STEPS, seconds=MAX_SECONDS, until_deviation=target),
        evaluate=evaluate,
        evaluate_at=lambda progress: progress.step % EVERY == 0,
    )
    result = measure()
    if result.deviation > target:
        raise CheckpointError(
            f"no new last layer of {num_classes} classes: after {progress.step} steps on noise "
            f"confidence is still {result.deviation:.4f} above chance, more than {target:g}, "
            f"on {result.worst.probe} noise; run noise pretraining for this number of classes"
        )
    renewed.requires_grad_(True)
    return Renewed(
        renewed.train(), new_spec, fresh, result, progress, time.perf_counter() - started
    )
