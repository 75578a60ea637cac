"""Noise pretraining: stream, engine and panel put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from precalib_ray.core import checkpoint, hardware, models
from precalib_ray.core.engine import (
    Call,
    Engine,
    Limits,
    Progress,
    restore,
    run,
    training_state,
    world,
)
from precalib_ray.core.probes import Panel, PanelResult, Probe, noise_probe
from precalib_ray.core.seeding import INITIALIZATION, mix
from precalib_ray.core.stream import NoiseStream
from precalib_ray.errors import CheckpointError

FORWARDS_PER_SAMPLE = 3
"""A sample trained on costs about as much as three pushed through: backward is twice forward."""


def probe_schedule(
    *, every: int, max_share: float, cost: int, batch_size: int
) -> Callable[[Progress], bool]:
    """When to probe: at multiples of ``every`` steps, if the probes so far and this one cost at
    most ``max_share`` of the training so far.

    Args:
        cost: forward passes of one probing.

    Costs are counted in forward passes and not timed, so that a resumed run probes, and stops,
    where the undisturbed one would.
    """

    def due(progress: Progress) -> bool:
        if progress.step % every:
            return False
        spent = progress.step * batch_size * FORWARDS_PER_SAMPLE
        return progress.evaluation_forwards + cost <= max_share * spent

    return due


def panel(
    probes: Mapping[str, Any],
    shape: Sequence[int],
    *,
    images: Mapping[str, Tensor],
    statistics: Mapping[str, Mapping[str, Any]],
) -> Panel:
    """The panel that a config describes, for inputs of a shape; arguments as of ``Pretraining``."""
    size, seed = probes["size"], probes["seed"]
    return Panel(
        [
            *(
                noise_probe(
                    name, with_statistics(spec, statistics), size=size, input_shape=shape, seed=seed
                )
                for name, spec in probes["noise"].items()
            ),
            *(
                Probe(name, images[name][:size], held_out=spec["held_out"])
                for name, spec in probes["data"].items()
            ),
        ]
    )


@dataclass(frozen=True)
class Outcome:
    """What a finished pretraining is known by."""

    progress: Progress
    before: PanelResult
    """The network as initialized, before its last layer was scaled."""
    after: PanelResult
    hardware: dict[str, Any] = field(default_factory=dict, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Plain data, for ``metrics.json`` and for the driver of a cluster."""
        return {
            "progress": asdict(self.progress),
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "hardware": self.hardware,
        }


class Pretraining:
    """One rank's noise pretraining, from a recipe: the plain mapping that a config holds."""

    def __init__(
        self,
        recipe: Mapping[str, Any],
        *,
        images: Mapping[str, Tensor] | None = None,
        statistics: Mapping[str, Mapping[str, Any]] | None = None,
        before: PanelResult | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Build model, panel, stream and engine.

        Args:
            recipe: the resolved config of a pretraining job.
            images: model inputs (N, *input_shape) of the real probes, by name.
            statistics: for ``matched`` noise, what ``noise.statistics`` gives, by data set.
            before: what the panel measures of the untrained network, where that is known.
            device: where to train.
        """
        self.spec = recipe["model"]
        shape, num_classes = self.spec["input_shape"], self.spec["num_classes"]
        self._seed, self._batch_size = recipe["seed"], recipe["batch_size"]
        self._limits = Limits(**recipe["duration"])
        self._probes = recipe["probes"]
        self._save_every = recipe["checkpoints"]["every_steps"]
        images, statistics = images or {}, statistics or {}
        self.panel = panel(self._probes, shape, images=images, statistics=statistics)
        rank, world_size = world()
        self._stream = NoiseStream(
            with_statistics(recipe["noise"], statistics),
            recipe["labels"],
            seed=self._seed,
            batch_size=self._batch_size,
            input_shape=shape,
            num_classes=num_classes,
            rank=rank,
            world_size=world_size,
            device=device,
        )
        model = models.build(self.spec, seed=mix(self._seed, INITIALIZATION), device=device)
        self.before = before or self.panel.measure(model)
        models.scale_head(model, num_classes, recipe["head_scale"])
        self.engine = Engine.of_job(
            model,
            recipe,
            num_classes=num_classes,
            num_steps=self._limits.num_steps(self._batch_size),
            device=device,
        )
        self.progress = Progress()

    def resume(self, directory: Path | str) -> None:
        """Go on from a checkpoint; raises CheckpointError if it cannot be used."""
        state = checkpoint.load_trainer_state(directory)
        checkpoint.load_weights(directory, self.engine.model)
        try:
            self.progress = restore(self.engine, state)
        except (KeyError, TypeError, ValueError) as error:
            file = Path(directory) / checkpoint.STATE_FILE
            raise CheckpointError(f"{file}: of another run: {error}") from error

    def write(self, directory: Path | str, outcome: Outcome | None = None) -> None:
        """Write a checkpoint of this moment, with the measured outcome if the run has ended."""
        metrics = {"before": self.before.to_json(), "progress": asdict(self.progress)}
        checkpoint.save(
            directory,
            model=self.engine.model,
            spec=self.spec,
            metrics=outcome.to_json() if outcome else metrics,
            trainer_state=training_state(self.engine, self.progress),
        )

    def run(
        self,
        *,
        save: Callable[[Progress], str] | None = None,
        on_evaluation: Callable[[Progress], None] | None = None,
        on_progress: Callable[[Progress, dict[str, float]], None] | None = None,
        on_work: Callable[[list[float]], None] | None = None,
        call: Callable[[], Call] | None = None,
    ) -> Outcome:
        """Train until a limit is reached, probing on the way, and measure the whole panel.

        The callbacks are those of ``engine.run``.

        Raises:
            DivergedError, InterruptedRunError: as ``engine.run``.
        """
        stop_size = self._probes["stop_size"]

        def evaluate(_: Progress) -> dict[str, Any]:
            result = self.panel.measure(self.engine.model, limit=stop_size)
            return {
                "deviation": result.deviation,
                "deviations": {f"{m.probe}/{m.mode}": m.deviation for m in result.measurements},
                "num_forwards": result.num_forwards,
            }

        cost = self.panel.num_forwards(self.engine.model, limit=stop_size)
        self.progress = run(
            self.engine,
            self._stream.batch,
            batch_size=self._batch_size,
            limits=self._limits,
            progress=self.progress,
            evaluate=evaluate if cost else None,
            evaluate_at=probe_schedule(
                every=self._probes["every"],
                max_share=self._probes["max_share"],
                cost=cost,
                batch_size=self._batch_size,
            ),
            on_evaluation=on_evaluation,
            save=save,
            save_every=self._save_every,
            on_progress=on_progress,
            on_work=on_work,
            call=call,
        )
        return Outcome(
            self.progress,
            self.before,
            self.panel.measure(self.engine.model),
            hardware.describe(self.engine.device, num_workers=self.engine.world_size),
        )


def with_statistics(
    noise: Mapping[str, Any], statistics: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """A noise spec with the statistics of the data sets that its ``matched`` parts name."""
    spec = dict(noise)
    if spec["kind"] == "mixture":
        spec["parts"] = [
            dict(part, noise=with_statistics(part["noise"], statistics)) for part in spec["parts"]
        ]
    elif spec["kind"] == "matched":
        spec |= statistics[spec["data"]]
    return spec
