"""The job ``train``: data training from a checkpoint or from one of its baselines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from precalib_ray.calibration.metrics import METRICS
from precalib_ray.cluster import worker
from precalib_ray.config.jobs.train import TrainConfig
from precalib_ray.core import checkpoint
from precalib_ray.core.phases.training import OOD_METRIC, Epoch, Outcome
from precalib_ray.data.embedded import photo_patches
from precalib_ray.registry import lineage, tracking
from precalib_ray.report.figures import training as figures
from precalib_ray.runs import lifecycle, preflight, starting_point
from precalib_ray.runs.console import console, table
from precalib_ray.runs.launch import EvaluationSummary, run_workers
from precalib_ray.runs.record import RunRecord
from precalib_ray.runs.tracked import log_data, log_files


@dataclass(frozen=True)
class Trained:
    """The result of data training."""

    checkpoint: Path
    """Weights of the best validation NLL."""
    outcome: Outcome
    start_uri: str | None = None
    """The registered version or folder that the weights came from."""

    def to_json(self) -> dict[str, Any]:
        """Plain data, for ``run.json``."""
        return {"checkpoint": self.checkpoint.name, "outcome": self.outcome.to_json()}


def train(config: TrainConfig) -> Trained:
    """Train on a data set; idempotent.

    Raises:
        PrecalibError: any of its subclasses.
    """
    return lifecycle.run(Train(config))


class Train(lifecycle.Job[TrainConfig, Trained]):
    """One submission."""

    phase: ClassVar[str] = "train"

    def check(self) -> None:
        self._splits = preflight.read_splits(self.config.data)

    def prepare(self, record: RunRecord) -> None:
        # An alias may have moved since an earlier submission began.
        known = record.content.get("start_uri")
        self._start, self._start_uri = starting_point.read(self.config, known)
        starting_point.check(self.config, self._start.model, self._splits)

    def work(self, record: RunRecord, run: tracking.Run | None) -> Trained:
        record.update(start_uri=self._start_uri)
        config, splits, ood_images = self.config, self._splits, None
        num_samples = len(splits["train"].labels)
        if config.num_unknown:
            shape = splits["train"].info.shape
            ood_images = photo_patches(shape, num=config.num_unknown, seed=config.seed)
        fitted = run_workers(
            worker.train,
            config,
            {"start": self._start, "splits": splits, "ood_images": ood_images},
            run,
            record,
            title="data training",
            num_steps=config.epochs * (num_samples // min(config.batch_size, num_samples)),
            keep=2,
            summarize=_summarize,
        )
        kept = {"checkpoint": fitted.checkpoint, "outcome": fitted.outcome.to_json()}
        record.update(result=kept)  # before the checkpoint is downloaded
        return Trained(record.checkpoint(fitted.checkpoint), fitted.outcome, self._start_uri)

    def load_result(self, record: RunRecord) -> Trained | None:
        kept = record.result
        if kept is None:
            return None
        outcome = Outcome.from_json(kept["outcome"])
        start_uri = record.content["start_uri"]
        return Trained(record.checkpoint(kept["checkpoint"]), outcome, start_uri)

    def log(self, result: Trained, record: RunRecord, run: tracking.Run) -> Trained:
        outcome = result.outcome
        for epoch in outcome.progress.history:
            run.log_metrics(_summarize(epoch).metrics, step=epoch.step)
        for name, scores in outcome.splits.items():
            values = {f"best_{name}/{key}": value for key, value in scores.items()}
            run.log_metrics(values, step=outcome.progress.step)
        tags = {
            "precalib.start": self.config.start.kind,
            "precalib.best_step": outcome.best.step,
        }
        if result.start_uri is not None:
            tags["precalib.start_uri"] = result.start_uri
        path = self.config.data.path
        uses = [lineage.DatasetUse(path, name, name) for name in ("train", *outcome.splits)]
        for use, digest in log_data(run, uses).items():
            tags[f"precalib.data_sha256.{use.split}"] = digest
        run.set_tags(tags)
        title = self.config.name
        log_files(run, self.config, figures.training(outcome, title=title), "training")
        for name in (checkpoint.MODEL_FILE, checkpoint.SPEC_FILE, checkpoint.METRICS_FILE):
            run.log_file(result.checkpoint / name, "checkpoint")
        return result

    def show(self, result: Trained) -> None:
        splits = result.outcome.splits
        labels = {name: name for name in METRICS} | {OOD_METRIC: "AUROC, OOD images"}
        table(
            f"{self.config.name}: weights of step {result.outcome.best.step}, "
            "the best validation NLL",
            ("metric", *splits),
            [
                (label, *(f"{scores[key]:.4f}" for scores in splits.values()))
                for key, label in labels.items()
                if all(key in scores for scores in splits.values())
            ],
        )
        console.print(f"checkpoint: {result.checkpoint}")


def _summarize(epoch: Epoch) -> EvaluationSummary:
    logged = {f"val/{name}": value for name, value in epoch.metrics.items()}
    if epoch.train_loss is not None:
        logged["train/loss"] = epoch.train_loss
    accuracy, confidence = epoch.metrics["accuracy"], epoch.metrics["mean_confidence"]
    return EvaluationSummary(f"val accuracy {accuracy:.3f} confidence {confidence:.3f}", logged)
