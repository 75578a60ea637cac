"""Noise pretraining: the first phase, on a noise stream, probed by a panel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from precalib_ray.core import checkpoint
from precalib_ray.core.engine import Engine, world
from precalib_ray.core.hardware import Hardware
from precalib_ray.core.head import find_head, scale_head, select_trainable
from precalib_ray.core.loop import Host, Phase, restore, run, training_state
from precalib_ray.core.noise import Statistics
from precalib_ray.core.probes import PanelResult
from precalib_ray.core.progress import Progress
from precalib_ray.core.recipe import FORWARDS_PER_SAMPLE, Recipe
from precalib_ray.core.seeding import INITIALIZATION, mix
from precalib_ray.core.spec import from_plain, plain
from precalib_ray.core.stream import NoiseStream
from precalib_ray.errors import CheckpointError


@dataclass(frozen=True)
class Probing:
    """The measurements of the stopping rule after a step."""

    step: int
    samples: int
    deviation: float
    deviations: dict[str, float]
    """Deviations by ``Measurement.key``."""
    num_forwards: int


@dataclass(frozen=True)
class Outcome:
    """The result of noise pretraining."""

    progress: Progress[Probing]
    before: PanelResult
    """Measured as initialized, before the last layer was scaled."""
    after: PanelResult
    hardware: Hardware | None = field(default=None, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Plain data, for ``metrics.json`` and ``run.json``."""
        return {
            "progress": plain(self.progress),
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "hardware": plain(self.hardware) or {},
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Inverse of ``to_json``."""
        return cls(
            Progress.restore(content["progress"], Probing),
            PanelResult.from_json(content["before"]),
            PanelResult.from_json(content["after"]),
            from_plain(Hardware, content.get("hardware") or None),
        )


class Pretraining(Phase[Probing]):
    """One rank's noise pretraining."""

    def __init__(
        self,
        recipe: Recipe,
        *,
        images: Mapping[str, Tensor] | None = None,
        statistics: Mapping[str, Statistics] | None = None,
        before: PanelResult | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Build model, panel, stream and engine.

        Args:
            recipe: what to train, and how.
            images: model inputs (N, *input_shape) of the data probes, by name.
            statistics: those that ``matched`` noise needs, by data set.
            before: the panel's result for the untrained network, if it is known.
            device: where to train.
        """
        self.recipe, self.batch_size, self.duration = recipe, recipe.batch_size, recipe.duration
        self.save_every = recipe.checkpoints.every_steps
        settings = recipe.model
        shape, num_classes = settings.input_shape, settings.num_classes
        statistics = statistics or {}
        self.panel = recipe.probes.panel(shape, images=images or {}, statistics=statistics)
        rank, world_size = world()
        self._stream = NoiseStream(
            recipe.noise,
            recipe.labels,
            seed=recipe.seed,
            batch_size=recipe.batch_size,
            input_shape=shape,
            num_classes=num_classes,
            statistics=statistics,
            rank=rank,
            world_size=world_size,
            device=device,
        )
        model = settings.build(seed=mix(recipe.seed, INITIALIZATION), device=device)
        self.before = before or self.panel.measure(model)
        if recipe.head_scale != 1:
            scale_head(find_head(model, settings), recipe.head_scale)
        select_trainable(model, settings, recipe.trainable)
        self.engine = Engine(model, recipe, num_steps=recipe.num_steps, device=device)
        self.progress: Progress[Probing] = Progress()
        self._cost = self.panel.num_forwards(model, limit=recipe.probes.stop_size)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        return self._stream.batch(step)

    def evaluates_now(self) -> bool:
        """Probe at multiples of ``probes.every`` steps, if all probings so far and this one cost at
        most ``probes.max_share`` of the training so far.

        Costs are counted in forward passes and not timed, so that a resumed run probes, and stops,
        where an uninterrupted one would.
        """
        if self._cost == 0 or self.progress.step % self.recipe.probes.every:
            return False
        spent = self.progress.step * self.batch_size * FORWARDS_PER_SAMPLE
        cost = self.progress.evaluation_forwards + self._cost
        return cost <= self.recipe.probes.max_share * spent

    def evaluate(self) -> Probing:
        result = self.panel.measure(self.engine.model, limit=self.recipe.probes.stop_size)
        return Probing(
            step=self.progress.step,
            samples=self.progress.samples,
            deviation=result.deviation,
            deviations=result.deviations,
            num_forwards=result.num_forwards,
        )

    def resume(self, directory: Path | str) -> None:
        """Resume from a checkpoint; raises CheckpointError if it cannot be used."""
        state = checkpoint.load_trainer_state(directory)
        checkpoint.load_weights(directory, self.engine.model)
        try:
            self.progress = restore(self.engine, state, Probing)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            file = Path(directory) / checkpoint.STATE_FILE
            raise CheckpointError(f"{file}: of another run: {error}") from error

    def write(self, directory: Path | str, outcome: Outcome | None = None) -> None:
        """Write a checkpoint of the current state, with the outcome if the run has ended."""
        metrics = {"before": self.before.to_json(), "progress": plain(self.progress)}
        checkpoint.save(
            directory,
            model=self.engine.model,
            settings=self.recipe.model,
            metrics=outcome.to_json() if outcome else metrics,
            trainer_state=training_state(self.engine, self.progress),
        )

    def run(self, host: Host[Probing] | None = None) -> Outcome:
        """Train until a limit is reached, probing along the way, and measure the whole panel.

        Raises:
            DivergedError, InterruptedRunError: as ``loop.run``.
        """
        run(self, host)
        return Outcome(
            self.progress,
            self.before,
            self.panel.measure(self.engine.model),
            Hardware.of(self.engine.device, num_workers=self.engine.world_size),
        )
