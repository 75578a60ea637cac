"""The job ``pretrain``: noise pretraining, measured, tracked and registered."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from precalib_ray.cluster import worker
from precalib_ray.config.jobs.pretrain import PretrainConfig
from precalib_ray.config.sections import TOLERANCE
from precalib_ray.core.phases.pretraining import Outcome, Probing
from precalib_ray.registry import publishing, tracking
from precalib_ray.runs import lifecycle, preflight
from precalib_ray.runs.console import console, table
from precalib_ray.runs.launch import EvaluationSummary, run_workers
from precalib_ray.runs.promotion import promote_version
from precalib_ray.runs.publish import find, publish
from precalib_ray.runs.record import RunRecord


@dataclass(frozen=True)
class Pretrained:
    """The result of noise pretraining."""

    checkpoint: Path
    """The directory on storage, or a copy if storage is remote."""
    outcome: Outcome
    version: publishing.ExistingVersion | None = None
    """What the registry has; None if the job is offline."""

    @property
    def model_uri(self) -> str | None:
        """``models:/NAME/VERSION``; None if the job is offline."""
        return None if self.version is None else self.version.uri

    def to_json(self) -> dict[str, Any]:
        """Plain data, for ``run.json``."""
        return {
            "checkpoint": self.checkpoint.name,
            "outcome": self.outcome.to_json(),
            "model_uri": self.model_uri,
        }


def pretrain(config: PretrainConfig) -> Pretrained:
    """Bring a network to chance; idempotent.

    Raises:
        PrecalibError: any of its subclasses.
    """
    return lifecycle.run(Pretrain(config))


class Pretrain(lifecycle.Job[PretrainConfig, Pretrained]):
    """One submission."""

    phase: ClassVar[str] = "pretrain"

    def check(self) -> None:
        config, shape = self.config, self.config.model.input_shape
        preflight.check_pretraining(config)
        self._statistics = preflight.read_statistics(config.noises.values(), shape)
        for path, noise in config.noises.items():
            preflight.check_noise(noise, shape, self._statistics, path)
        self._images = preflight.read_probes(config.probes, config.model)

    def work(self, record: RunRecord, run: tracking.Run | None) -> Pretrained:
        config = self.config
        shared = {"images": self._images, "statistics": self._statistics}
        fitted = run_workers(
            worker.pretrain, config, shared, run, record,
            title="noise pretraining", num_steps=config.num_steps, keep=config.checkpoints.keep,
            summarize=_summarize,
        )  # fmt: skip
        kept = {"checkpoint": fitted.checkpoint, "outcome": fitted.outcome.to_json()}
        record.update(result=kept | {"model_uri": None})  # before the checkpoint is downloaded
        return Pretrained(record.checkpoint(fitted.checkpoint), fitted.outcome)

    def load_result(self, record: RunRecord) -> Pretrained | None:
        kept = record.result
        if kept is None:
            return None
        checkpoint = record.checkpoint(kept["checkpoint"])
        return Pretrained(checkpoint, Outcome.from_json(kept["outcome"]))

    def find_logged(
        self, result: Pretrained, record: RunRecord, run: tracking.KnownRun
    ) -> Pretrained | None:
        found = find(self.config, record, run)
        return replace(result, version=found) if found else None

    def log(self, result: Pretrained, record: RunRecord, run: tracking.Run) -> Pretrained:
        for probing in result.outcome.progress.history:
            run.log_metrics(_summarize(probing).metrics, step=probing.step)
        version = publish(self.config, result.checkpoint, result.outcome, run, key=record.key)
        return replace(result, version=version)

    def show(self, result: Pretrained) -> None:
        config, outcome = self.config, result.outcome
        before, progress = outcome.before.deviations, outcome.progress
        rows = [
            (
                m.probe + (" (held out)" if config.probes.is_held_out(m.probe) else ""),
                m.mode,
                *(f"{value:.4f}" for value in (before[m.key], m.deviation, m.class_bias)),
            )
            for m in outcome.after.measurements
        ]
        title = f"Mean confidence above chance (1/{config.model.num_classes})"
        table(title, ("probe", "BatchNorm", "untrained", "pre-calibrated", "class bias"), rows)
        console.print(
            f"stopped by {progress.stop_reason} after {progress.step} steps, "
            f"{progress.samples:,} samples, {progress.seconds:.1f} s of training "
            f"and {progress.evaluation_seconds:.1f} s of probing"
        )
        target = config.duration.until_deviation
        if target and progress.stop_reason != "until_deviation":
            console.print(f"duration.until_deviation={target:g} was not reached", style="bold red")
        if outcome.after.deviation > TOLERANCE:
            console.print(
                f"deviation {outcome.after.deviation:.4f} is above {TOLERANCE:g}: the gate would "
                "refuse it by default",
                style="yellow",
            )
        console.print(f"checkpoint: {result.checkpoint}")
        if result.version is not None:
            console.print(f"registered: {result.version}")

    def conclude(self, result: Pretrained, record: RunRecord) -> Pretrained:
        config = self.config
        if config.promote is not None and result.model_uri is not None:
            panel = config.probes.panel(
                config.model.input_shape, images=self._images, statistics=self._statistics
            )
            promote_version(
                result.model_uri,
                tracking_uri=config.tracking.uri,
                tolerance=config.promote.tolerance,
                panel_of=lambda model: panel,
                trust_code=config.model.runs_code,
            )
        return result


def _summarize(probing: Probing) -> EvaluationSummary:
    each = {f"deviation/{name}": value for name, value in probing.deviations.items()}
    return EvaluationSummary(
        f"deviation {probing.deviation:.4f}", {"deviation": probing.deviation, **each}
    )
