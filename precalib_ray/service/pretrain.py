"""The job ``pretrain``: noise pretraining, measured, tracked and registered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from precalib_ray.cluster import worker
from precalib_ray.config.jobs import PretrainConfig
from precalib_ray.core import pretraining
from precalib_ray.registry import publishing, tracking
from precalib_ray.service import preflight, registration
from precalib_ray.service.identity import Identity
from precalib_ray.service.job import close_run, open_run, run_workers
from precalib_ray.service.terminal import console, table


@dataclass(frozen=True)
class Pretrained:
    """What the job leaves."""

    checkpoint: Path
    """The directory on storage, or a copy if storage is remote."""
    outcome: dict[str, Any]
    model_uri: str | None
    """``models:/NAME/VERSION``; None where MLflow is done without."""


def pretrain(config: PretrainConfig) -> Pretrained:
    """Bring a network to chance; submitted again, go on or return what was made.

    Raises:
        PrecalibError: see its families.
    """
    plain = config.model_dump()
    shape = config.model.input_shape
    preflight.check_model(plain["model"])
    preflight.check_trainable(plain["model"], config.trainable)
    noise = {"noise": plain["noise"]} | {
        f"probes.noise.{name}": spec for name, spec in plain["probes"]["noise"].items()
    }
    statistics = preflight.read_statistics(list(noise.values()), shape)
    for path, spec in noise.items():
        preflight.check_noise(pretraining.with_statistics(spec, statistics), shape, path)
    images = {
        name: preflight.read_inputs(probe.path, probe.split, shape, limit=config.probes.size)[0]
        for name, probe in config.probes.data.items()
    }
    identity = Identity(config, name=config.name, storage=config.storage)
    done = identity.result
    if done is not None and (done["model_uri"] or config.tracking.offline):
        return _finished(config, done)
    run = open_run(config, identity, phase="pretrain")
    identity.update()
    try:
        if done is None:
            result = _train(config, images, statistics, run)
            done = {"checkpoint": str(result.checkpoint), "outcome": result.outcome}
            identity.update(result={**done, "model_uri": None})
        result = Pretrained(Path(done["checkpoint"]), done["outcome"], None)
        model_uri = (
            registration.register(config, result.checkpoint, result.outcome, run) if run else None
        )
    except BaseException as error:
        close_run(run, config, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    identity.update(result={**done, "model_uri": model_uri})
    close_run(run, config, "FINISHED")
    _show(config, result.outcome, model_uri, result.checkpoint)
    return Pretrained(result.checkpoint, result.outcome, model_uri)


def _train(
    config: PretrainConfig,
    images: Mapping[str, Any],
    statistics: Mapping[str, Any],
    run: tracking.Run | None,
) -> Pretrained:
    fitted = run_workers(
        worker.pretrain,
        config,
        {"images": dict(images), "statistics": dict(statistics)},
        run,
        title="noise pretraining",
        num_steps=config.limits.num_steps(config.batch_size),
        keep=config.checkpoints.keep,
        tell=lambda probing: (f"deviation {probing['deviation']:.4f}", _deviations(probing)),
    )
    return Pretrained(fitted.checkpoint, fitted.outcome, None)


def _deviations(record: Mapping[str, Any]) -> dict[str, float]:
    """Metrics of one probing, by their names in MLflow."""
    each = {f"deviation/{name}": value for name, value in record["deviations"].items()}
    return {"deviation": record["deviation"], **each}


def _finished(config: PretrainConfig, result: Mapping[str, Any]) -> Pretrained:
    console.print(f"{config.name} has finished before; nothing is done again.")
    checkpoint, model_uri = Path(result["checkpoint"]), result["model_uri"]
    _show(config, result["outcome"], model_uri, checkpoint)
    return Pretrained(checkpoint, result["outcome"], model_uri)


def _show(
    config: PretrainConfig, outcome: Mapping[str, Any], model_uri: str | None, checkpoint: Path
) -> None:
    before = {(m["probe"], m["mode"]): m["deviation"] for m in outcome["before"]["measurements"]}
    rows = []
    for m in outcome["after"]["measurements"]:
        held_out = m["probe"] in config.probes.data and config.probes.data[m["probe"]].held_out
        rows.append(
            (
                m["probe"] + (" (held out)" if held_out else ""),
                m["mode"],
                f"{before[m['probe'], m['mode']]:.4f}",
                f"{m['deviation']:.4f}",
                f"{m['class_bias']:.4f}",
            )
        )
    title = f"Mean confidence above chance (1/{config.model.num_classes})"
    table(title, ("probe", "BatchNorm", "untrained", "pre-calibrated", "class bias"), rows)
    progress = outcome["progress"]
    console.print(
        f"stopped by {progress['stop_reason']} after {progress['step']} steps, "
        f"{progress['samples']:,} samples, {progress['seconds']:.1f} s of training "
        f"and {progress['evaluation_seconds']:.1f} s of probing"
    )
    if config.duration.until_deviation and progress["stop_reason"] != "until_deviation":
        console.print(
            f"duration.until_deviation={config.duration.until_deviation:g} was not reached",
            style="bold red",
        )
    console.print(f"checkpoint: {checkpoint}")
    if model_uri:
        console.print(f"registered: {model_uri} (alias {publishing.CANDIDATE})")
