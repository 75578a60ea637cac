"""A recipe of noise pretraining: noise distribution, label scheme, duration and optimizer."""

from __future__ import annotations

from dataclasses import dataclass

from precalib_ray.core.engine import Optimization
from precalib_ray.core.labels import Hard, Labels
from precalib_ray.core.losses import Loss
from precalib_ray.core.models import Model
from precalib_ray.core.noise import Noise
from precalib_ray.core.probes import ProbeSettings
from precalib_ray.core.spec import Section, setting
from precalib_ray.core.stopping import Duration
from precalib_ray.errors import SettingError

FORWARDS_PER_SAMPLE = 3
"""One training sample costs about three forward passes: backward is twice forward."""


@dataclass(frozen=True, kw_only=True)
class Checkpoints(Section):
    """When checkpoints are written, and how many are kept."""

    every_steps: int | None = setting(
        None, ge=1, description="steps between checkpoints; null: only at the end"
    )
    keep: int = setting(2, ge=1, description="number of checkpoints kept, the newest")


@dataclass(frozen=True, kw_only=True)
class Recipe(Optimization):
    """Noise pretraining of one network."""

    model: Model = setting(description="the network")
    noise: Noise = setting(description="noise distribution")
    labels: Labels = setting(Hard(), description="label scheme")
    head_scale: float = setting(
        1.0, ge=0, le=1000, description="factor on the last layer's weights before the first step"
    )
    duration: Duration = setting(description="when to stop")
    probes: ProbeSettings = setting(ProbeSettings(), description="probe settings")
    checkpoints: Checkpoints = setting(Checkpoints(), description="when checkpoints are written")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_loss()
        if self.schedule.kind != "constant" and self.num_steps is None:
            allowed = "needs duration.steps or samples"
            raise SettingError("schedule.kind", self.schedule.kind, allowed)
        if self.duration.until_deviation is not None:
            self._check_target(self.duration.until_deviation)

    @property
    def num_steps(self) -> int | None:
        """The last step that the duration allows; None if only time ends it."""
        return self.duration.num_steps(self.batch_size)

    @property
    def max_samples(self) -> int | None:
        """The maximum number of samples; None if only time ends it."""
        return None if self.num_steps is None else self.num_steps * self.batch_size

    @property
    def noises(self) -> dict[str, Noise]:
        """Every noise of the recipe by its path: the training noise, and the probes."""
        probes = {f"probes.noise.{name}": noise for name, noise in self.probes.noise.items()}
        return {"noise": self.noise, **probes}

    def _check_loss(self) -> None:
        soft = self.labels.soft
        fitting = sorted(
            kind
            for kind, loss in Loss.members.items()
            if (loss.takes_soft if soft else loss.takes_ids)
        )
        if self.loss.kind not in fitting:
            targets = "soft targets" if soft else "class ids"
            raise SettingError(
                "loss.kind",
                self.loss.kind,
                f"does not take the {targets} of labels.kind={self.labels.kind}; "
                f"use {' or '.join(fitting)}",
            )
        smoothing = getattr(self.loss, "label_smoothing", 0.0)
        if self.labels.smoothed and smoothing > 0:
            allowed = f"labels.kind={self.labels.kind} smooths already"
            raise SettingError("loss.label_smoothing", smoothing, allowed)

    def _check_target(self, target: float) -> None:
        path, largest = "duration.until_deviation", 1 - 1 / self.model.num_classes
        if target >= largest:
            allowed = f"must be < 1 - 1/K = {largest:.3g}: every model reaches that"
            raise SettingError(path, target, allowed)
        probes = self.probes
        if not probes.stopping:
            raise SettingError(path, target, "is never measured: all probes are held out")
        if self.num_steps is None:
            return
        # With one BatchNorm mode: the minimum cost of a probing.
        forwards = len(probes.stopping) * probes.stop_size
        affordable = forwards / (FORWARDS_PER_SAMPLE * self.batch_size * probes.max_share)
        if probes.every > self.num_steps or affordable > self.num_steps:
            first = max(probes.every, int(affordable) + 1)
            raise SettingError(
                path,
                target,
                f"is never measured: the first probing would be at step {first} or later, and the "
                f"run ends at {self.num_steps}; raise probes.max_share, or lower probes.every or "
                "probes.stop_size",
            )
