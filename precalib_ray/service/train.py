"""The job ``train``: data training from a checkpoint or from one of its baselines."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from precalib_ray.cluster import worker
from precalib_ray.config.jobs import FromCheckpoint, FromRegistry, FromZeroHead, TrainConfig
from precalib_ray.core import checkpoint
from precalib_ray.data import parquet
from precalib_ray.data.dataset import Split
from precalib_ray.data.embedded import photo_patches
from precalib_ray.errors import ConfigError, DataError, Problem, TrackingError
from precalib_ray.registry import lineage, loading, tracking
from precalib_ray.report import figures
from precalib_ray.service import preflight
from precalib_ray.service.identity import Identity
from precalib_ray.service.job import (
    Told,
    complete,
    log_data,
    log_files,
    run_workers,
    tracked,
)
from precalib_ray.service.terminal import console, table

METRICS = ("accuracy", "mean_confidence", "overconfidence", "ece", "nll", "brier")


@dataclass(frozen=True)
class Trained:
    """What the job leaves."""

    checkpoint: Path
    """Weights of the best validation NLL."""
    outcome: dict[str, Any]
    start_uri: str | None = None
    """Where the weights were from, if from a registry or a folder."""


PHASE = "train"


def train(config: TrainConfig) -> Trained:
    """Train on a data set; submitted again, go on or return what was made.

    Raises:
        PrecalibError: see its families.
    """
    splits = _read(config)
    identity = Identity(config, name=config.name, storage=config.storage)
    with identity.lease():
        trained = _result(identity)
        if trained and (config.tracking.offline or identity.told):
            console.print(f"{config.name} has finished before; nothing is done again.")
        else:
            start, start_uri = None, None
            if trained is None:
                # An alias may have moved since an earlier submission began.
                start, start_uri = _start(config, identity.record.get("start_uri"))
                _check(config, start["spec"], splits)
            with tracked(config, identity, phase=PHASE) as run:
                if start is not None:
                    identity.update(start_uri=start_uri)
                    trained = _train(config, start, splits, run, identity)
                assert trained is not None, "by now"
                if run is not None:
                    try:
                        log(config, trained, run, identity)
                    except TrackingError:
                        _show(config, trained)  # which is made, and kept
                        raise
        _show(config, trained)
    return trained


def _check(config: TrainConfig, spec: Mapping[str, Any], splits: Mapping[str, Split]) -> None:
    """Refuse what model and data tell is wrong; raises ConfigError or DataError."""
    info = splits["train"].info
    if spec["num_classes"] != info.num_classes:
        allowed = f"the data set {config.data.path} has {info.num_classes} classes"
        raise ConfigError([Problem("start: num_classes", spec["num_classes"], allowed)])
    preflight.check_model(spec, "start.model")
    preflight.check_trainable(spec, config.trainable)
    if config.num_unknown and info.shape[0] not in (1, 3):
        allowed = f"must be 0: photographs have no {info.shape[0]} channels"
        raise ConfigError([Problem("num_unknown", config.num_unknown, allowed)])
    if len(splits["train"].labels) < config.scaling.max_workers:
        raise DataError(f"{config.data.path}: fewer training images than scaling.num_workers")
    preflight.to_shape(splits["train"], tuple(spec["input_shape"]), config.data.path, limit=2)


def log(config: TrainConfig, trained: Trained, run: tracking.Run, identity: Identity) -> None:
    """Tell MLflow what a finished run has made; doing it twice is as good as once.

    Raises:
        TrackingError: the server is away, or refused.
    """
    complete(run, config, identity, lambda: _log(config, trained, run))


def sync(config: TrainConfig, identity: Identity, run: tracking.Run) -> None:
    """Log a run that has finished."""
    trained = _result(identity)
    if trained is not None:
        log(config, trained, run, identity)


def _result(identity: Identity) -> Trained | None:
    kept = identity.result
    if kept is None:
        return None
    return Trained(
        identity.checkpoint(kept["checkpoint"]), kept["outcome"], identity.record["start_uri"]
    )


def _read(config: TrainConfig) -> dict[str, Split]:
    folder = Path(config.data.path)
    splits = {}
    for name in ("train", "val", "test"):
        path = parquet.split_path(folder, name)
        if name == "test" and not path.exists():
            continue
        splits[name] = parquet.read_split(path, on_bad_row=config.data.on_bad_row)
        for line in splits[name].skipped:
            console.print(f"skipped: {line}", style="yellow")
        if not len(splits[name].labels):
            raise DataError(f"{path}: no rows are left")
    return splits


def _start(config: TrainConfig, known: str | None) -> tuple[dict[str, Any], str | None]:
    """Model spec, weights and whether to zero the last layer, as ``DataTraining`` takes them; and
    where the weights are from, which of a registry is ``known`` if the run has begun before.
    """
    start = config.start
    if isinstance(start, FromRegistry | FromCheckpoint):
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder)
            if isinstance(start, FromRegistry):
                uri = loading.pull(known or start.uri, directory, tracking_uri=config.tracking.uri)
                console.print(f"starting from {uri}")
            else:
                directory, uri = Path(start.path), start.path
            model = checkpoint.load_model(directory, trust_code=start.trust_code)
            spec = checkpoint.read_description(directory)["model"]
        return {"spec": spec, "weights": model.state_dict(), "zero_head": False}, uri
    zero_head = isinstance(start, FromZeroHead)
    return {"spec": start.model.model_dump(), "weights": None, "zero_head": zero_head}, None


def _train(
    config: TrainConfig,
    start: Mapping[str, Any],
    splits: Mapping[str, Split],
    run: tracking.Run | None,
    identity: Identity,
) -> Trained:
    batch_size = min(config.batch_size, len(splits["train"].labels))
    unknown = None
    if config.num_unknown:
        shape = splits["train"].info.shape
        unknown = photo_patches(shape, num=config.num_unknown, seed=config.seed)
    fitted = run_workers(
        worker.train,
        config,
        {"start": dict(start), "splits": dict(splits), "unknown": unknown},
        run,
        identity,
        title="data training",
        num_steps=config.epochs * (len(splits["train"].labels) // batch_size),
        keep=2,
        tell=_tell,
    )
    identity.update(result={"checkpoint": fitted.checkpoint, "outcome": fitted.outcome})
    return Trained(
        identity.checkpoint(fitted.checkpoint), fitted.outcome, identity.record["start_uri"]
    )


def _tell(epoch: Mapping[str, Any]) -> Told:
    metrics = {f"val/{name}": epoch[name] for name in METRICS}
    if epoch["train_loss"] is not None:
        metrics["train/loss"] = epoch["train_loss"]
    accuracy, confidence = epoch["accuracy"], epoch["mean_confidence"]
    return f"val accuracy {accuracy:.3f} confidence {confidence:.3f}", metrics


def _log(config: TrainConfig, trained: Trained, run: tracking.Run) -> None:
    outcome, step = trained.outcome, trained.outcome["progress"]["step"]
    for name in ("val", "test"):
        if name in outcome:
            values = {f"best_{name}/{key}": value for key, value in outcome[name].items()}
            run.log_metrics(values, step=step)
    tags = {"precalib.start": config.start.kind, "precalib.best_step": outcome["best"]["step"]}
    if trained.start_uri is not None:
        tags["precalib.start_uri"] = trained.start_uri
    splits = ("train", *(name for name in ("val", "test") if name in outcome))
    data = log_data(run, [lineage.Used(config.data.path, name, name) for name in splits])
    tags |= {f"precalib.data_sha256.{use.split}": digest for use, digest in data.items()}
    run.set_tags(tags)
    log_files(run, config, figures.training(outcome, title=config.name), "training")
    for name in (checkpoint.MODEL_FILE, checkpoint.SPEC_FILE, checkpoint.METRICS_FILE):
        run.log_file(trained.checkpoint / name, "checkpoint")


def _show(config: TrainConfig, trained: Trained) -> None:
    outcome = trained.outcome
    names = [name for name in ("val", "test") if name in outcome]
    keys = [*METRICS, *(["auroc_unknown"] if config.num_unknown else [])]
    labels = {"auroc_unknown": "AUROC against unknown"}
    table(
        f"{config.name}: weights of step {outcome['best']['step']}, the best validation NLL",
        ("metric", *names),
        [(labels.get(key, key), *(f"{outcome[name][key]:.4f}" for name in names)) for key in keys],
    )
    console.print(f"checkpoint: {trained.checkpoint}")
