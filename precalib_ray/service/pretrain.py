"""The job ``pretrain``: noise pretraining, measured, tracked and registered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from precalib_ray.cluster import worker
from precalib_ray.config.jobs import TOLERANCE, PretrainConfig
from precalib_ray.core import pretraining
from precalib_ray.errors import TrackingError
from precalib_ray.registry import publishing, tracking
from precalib_ray.service import preflight, registration
from precalib_ray.service.identity import Identity
from precalib_ray.service.job import complete, run_workers, tracked
from precalib_ray.service.promote import promote_version
from precalib_ray.service.terminal import console, table

PHASE = "pretrain"


@dataclass(frozen=True)
class Pretrained:
    """What the job leaves."""

    checkpoint: Path
    """The directory on storage, or a copy if storage is remote."""
    outcome: dict[str, Any]
    model_uri: str | None = None
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
        name: preflight.read_inputs(probe.path, probe.split, shape, limit=config.probes.size)
        for name, probe in config.probes.data.items()
    }
    identity = Identity(config, name=config.name, storage=config.storage)
    with identity.lease():
        result = _result(identity)
        if result and (config.tracking.offline or identity.told):
            console.print(f"{config.name} has finished before; nothing is done again.")
        else:
            with tracked(config, identity, phase=PHASE) as run:
                result = result or _train(config, images, statistics, run, identity)
                if run is not None:
                    try:
                        result = register(config, result, run, identity)
                    except TrackingError:
                        _show(config, result)  # which is made, and kept
                        raise
        _show(config, result)
        if config.promote is not None and result.model_uri is not None:
            panel = pretraining.panel(plain["probes"], shape, images=images, statistics=statistics)
            promote_version(
                result.model_uri,
                tracking_uri=config.tracking.uri,
                tolerance=config.promote.tolerance,
                panel_of=lambda spec: panel,
                trust_code=config.model.kind == "function",
            )
    return result


def register(
    config: PretrainConfig, result: Pretrained, run: tracking.Run, identity: Identity
) -> Pretrained:
    """Tell MLflow what a finished run has made; doing it twice is as good as once.

    Raises:
        TrackingError: the server is away, or refused.
    """

    def publish() -> str:
        return registration.register(config, result.checkpoint, result.outcome, run)

    model_uri = complete(run, config, identity, publish)
    assert identity.result is not None, "it has finished"
    identity.update(result=identity.result | {"model_uri": model_uri})
    return replace(result, model_uri=model_uri)


def sync(config: PretrainConfig, identity: Identity, run: tracking.Run) -> str | None:
    """Register a run that has finished; returns the version."""
    result = _result(identity)
    return register(config, result, run, identity).model_uri if result else None


def _result(identity: Identity) -> Pretrained | None:
    kept = identity.result
    if kept is None:
        return None
    return Pretrained(identity.checkpoint(kept["checkpoint"]), kept["outcome"], kept["model_uri"])


def _train(
    config: PretrainConfig,
    images: Mapping[str, Any],
    statistics: Mapping[str, Any],
    run: tracking.Run | None,
    identity: Identity,
) -> Pretrained:
    fitted = run_workers(
        worker.pretrain,
        config,
        {"images": dict(images), "statistics": dict(statistics)},
        run,
        identity,
        title="noise pretraining",
        num_steps=config.limits.num_steps(config.batch_size),
        keep=config.checkpoints.keep,
        tell=lambda probing: (f"deviation {probing['deviation']:.4f}", _deviations(probing)),
    )
    identity.update(
        result={"checkpoint": fitted.checkpoint, "outcome": fitted.outcome, "model_uri": None}
    )
    return Pretrained(identity.checkpoint(fitted.checkpoint), fitted.outcome)


def _deviations(record: Mapping[str, Any]) -> dict[str, float]:
    """Metrics of one probing, by their names in MLflow."""
    each = {f"deviation/{name}": value for name, value in record["deviations"].items()}
    return {"deviation": record["deviation"], **each}


def _show(config: PretrainConfig, result: Pretrained) -> None:
    outcome, model_uri = result.outcome, result.model_uri
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
    if outcome["after"]["deviation"] > TOLERANCE:
        console.print(
            f"deviation {outcome['after']['deviation']:.4f} is above {TOLERANCE:g}: the gate would "
            "refuse it by default",
            style="yellow",
        )
    console.print(f"checkpoint: {result.checkpoint}")
    if model_uri:
        console.print(f"registered: {model_uri} (alias {publishing.CANDIDATE})")
