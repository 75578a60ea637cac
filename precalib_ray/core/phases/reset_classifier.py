"""A pre-calibrated network for another number of classes.

The trunk is unchanged, bit by bit. The last layer is reinitialized, halved until it is at chance,
and then trained alone on noise with uniform targets, by one short recipe for every architecture:
scaling alone does not change the directions of a random layer.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from precalib_ray.core.engine import Engine, Optimization
from precalib_ray.core.head import find_head, scale_head, select_trainable
from precalib_ray.core.labels import Uniform
from precalib_ray.core.loop import Phase, run
from precalib_ray.core.models import Model
from precalib_ray.core.noise.gaussian import Gaussian
from precalib_ray.core.noise.mixture import Mixture, Part
from precalib_ray.core.noise.patches import Patches
from precalib_ray.core.noise.pink import Pink
from precalib_ray.core.optimizers import Adam, Schedule
from precalib_ray.core.phases.pretraining import Probing
from precalib_ray.core.probes import Panel, PanelResult, noise_probe
from precalib_ray.core.progress import Progress
from precalib_ray.core.seeding import INITIALIZATION, mix
from precalib_ray.core.stopping import Duration
from precalib_ray.core.stream import NoiseStream
from precalib_ray.errors import CheckpointError

BATCH_SIZE, PROBE_SIZE = 16, 16
EVERY, MAX_STEPS, MAX_SECONDS = 10, 50, 60.0
STEP = 0.25
"""Approximate upper bound on the change of a logit in one step of Adam, in units of the initial
spread of the logits: its learning rate is this times the standard deviation of the new weights over
the square root of their number per class. Features differ by orders of magnitude between
architectures, steps do not.
"""

_HALVINGS = 40
_NOISES = (Gaussian(), Pink(alpha=2.0), Patches())


@dataclass(frozen=True)
class ResetClassifier:
    """A network with new last layers."""

    model: nn.Module
    settings: Model
    fresh: PanelResult
    """Measured with the new layer as its library initializes it."""
    after: PanelResult
    """Measured with the network that is returned."""


def target_deviation(num_classes: int) -> float:
    """The deviation that counts as chance: 0.005, and at most half of 1/K."""
    return min(0.005, 0.5 / num_classes)


def reset_classifier(
    model: nn.Module, settings: Model, num_classes: int, *, seed: int = 0
) -> ResetClassifier:
    """Give a model a last layer of ``num_classes`` outputs that are at chance.

    Args:
        model: the model whose trunk is used; it is not changed.
        settings: the model's.
        num_classes: the new K.
        seed: seed of the new layer and of the noise.

    Raises:
        CheckpointError: the architecture has other layers that depend on K, or its outputs are
            NaN.
    """
    new_settings = replace(settings, num_classes=num_classes)
    reset = new_settings.build(seed=mix(seed, INITIALIZATION))
    try:
        head = find_head(reset, new_settings)
        of_head = tuple(f"{name}." for name in head)
        trunk = {k: v for k, v in model.state_dict().items() if not k.startswith(of_head)}
        missing, unexpected = reset.load_state_dict(trunk, strict=False)
        others = [*unexpected, *(key for key in missing if not key.startswith(of_head))]
        if others:
            raise ValueError(f"{', '.join(others[:3])} depend on the number of classes too")
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"no new last layer of {num_classes} classes: {reason}") from None
    shape = settings.input_shape
    panel = Panel(
        [
            noise_probe(noise.kind, noise, size=PROBE_SIZE, input_shape=shape, seed=seed)
            for noise in _NOISES
        ]
    )
    target = target_deviation(num_classes)
    at_start = fresh = panel.measure(reset)
    for _ in range(_HALVINGS):
        if at_start.deviation <= target:
            break
        scale_head(head, 0.5)
        at_start = panel.measure(reset)
    if not at_start.deviation <= target:  # also catches NaN
        found = f"{at_start.deviation:.4f} above chance on {at_start.worst.probe} noise"
        raise CheckpointError(
            f"no new last layer of {num_classes} classes: at any scale, confidence is {found}, "
            f"more than {target:g}; run noise pretraining for this number of classes"
        )
    halved = copy.deepcopy({name: layer.state_dict() for name, layer in head.items()})
    phase = _HeadPretraining(reset, new_settings, head, trunk, panel, target=target, seed=seed)
    with torch.random.fork_rng(devices=[]):  # steps seed the global generators
        run(phase)
    result = phase.measure()
    if not result.deviation <= at_start.deviation:  # the recipe made this trunk worse
        for name, layer in head.items():
            layer.load_state_dict(halved[name])
        result = at_start
    reset.requires_grad_(True)
    return ResetClassifier(reset.train(), new_settings, fresh, result)


class _HeadPretraining(Phase[Probing]):
    """The last layer alone, on noise with uniform targets."""

    batch_size, save_every = BATCH_SIZE, None

    def __init__(
        self,
        model: nn.Module,
        settings: Model,
        head: Mapping[str, nn.Module],
        trunk: Mapping[str, Tensor],
        panel: Panel,
        *,
        target: float,
        seed: int,
    ) -> None:
        self._model, self._trunk, self._panel = model, trunk, panel
        weights = [layer.get_parameter("weight").detach().flatten(1) for layer in head.values()]
        # Each is (K, features), of any linear or convolution layer.
        rate = STEP * min(each.std().item() / len(each[0]) ** 0.5 for each in weights)
        select_trainable(model, settings, "head")
        optimization = Optimization(
            seed=seed,
            batch_size=BATCH_SIZE,
            optimizer=Adam(lr=rate),
            schedule=Schedule(kind="linear"),
        )
        self.duration = Duration(steps=MAX_STEPS, seconds=MAX_SECONDS, until_deviation=target / 2)
        self.engine = Engine(model, optimization, num_steps=MAX_STEPS)
        self.progress: Progress[Probing] = Progress()
        self._stream = NoiseStream(
            Mixture(parts=[Part(noise=noise) for noise in _NOISES]),
            Uniform(),
            seed=seed,
            batch_size=BATCH_SIZE,
            input_shape=settings.input_shape,
            num_classes=settings.num_classes,
        )

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        return self._stream.batch(step)

    def evaluates_now(self) -> bool:
        return self.progress.step % EVERY == 0

    def evaluate(self) -> Probing:
        found = self.measure()
        step, samples = self.progress.step, self.progress.samples
        return Probing(step, samples, found.deviation, found.deviations, found.num_forwards)

    def measure(self) -> PanelResult:
        """Measure the panel with the trunk's own BatchNorm statistics, which steps have moved."""
        self._model.load_state_dict(self._trunk, strict=False)
        return self._panel.measure(self._model)
