"""From a finished pretraining to a registered version with tags, lineage and card."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from precalib_ray.config import load
from precalib_ray.config.jobs.pretrain import PretrainConfig
from precalib_ray.core import checkpoint
from precalib_ray.core.phases.pretraining import Outcome
from precalib_ray.registry import lineage, publishing, tracking
from precalib_ray.report import card, wording
from precalib_ray.report.figures import pretraining as figures
from precalib_ray.runs.console import stage
from precalib_ray.runs.record import RunRecord
from precalib_ray.runs.tracked import log_data, log_files
from precalib_ray.version import __version__


def find(
    config: PretrainConfig, record: RunRecord, run: tracking.KnownRun
) -> publishing.ExistingVersion | None:
    """The version of a finished pretraining as the registry has it now; None if it is not there
    with its card. Raises TrackingError.
    """
    key = record.key or run.run_id
    found = publishing.find(run.client, _name(config), tag=publishing.KEY_TAG, value=key)
    if found is None or not found.described:
        return None
    if record.result is not None and record.result["model_uri"] != found.uri:
        record.update(result=record.result | {"model_uri": found.uri})
    return found


def publish(
    config: PretrainConfig,
    directory: Path,
    outcome: Outcome,
    run: tracking.Run,
    *,
    key: str | None = None,
) -> publishing.ExistingVersion:
    """Log a finished pretraining to MLflow and register its checkpoint, idempotently.

    Args:
        config: of the pretraining.
        directory: its last checkpoint.
        outcome: its outcome.
        run: its MLflow run.
        key: the version's idempotency key; None: the id of the run.

    Raises:
        TrackingError: the server is unreachable, or refused.
    """
    progress, before, after = outcome.progress, outcome.before, outcome.after
    name = _name(config)
    with stage("registering the checkpoint"):
        run.log_metrics(
            {
                "final/deviation": after.deviation,
                "initial/deviation": before.deviation,
                "final/class_bias": max(m.class_bias for m in after.measurements),
                "train_seconds": progress.seconds,
                "probe_seconds": progress.evaluation_seconds,
            },
            step=progress.step,
        )
        figure = figures.pretraining(
            outcome,
            title=f"{config.name}: confidence to chance",
            num_classes=config.model.num_classes,
        )
        drawn = log_files(run, config, figure, "deviation")
        data = log_data(run, _data(config))
        tags = _tags(config, outcome, data)
        version = publishing.publish(
            run, directory, name=name, tags=tags, trust_code=config.model.runs_code, key=key
        )
        uri = f"models:/{name}/{version}"
        weights = hashlib.sha256((directory / checkpoint.MODEL_FILE).read_bytes())
        recipe_yaml = load.to_yaml(config, exclude={"tracking", "storage", "scaling"}, sparse=True)
        written = card.write(
            uri=uri,
            model=config.model,
            before=before,
            after=after,
            held_out=[probe for probe in config.probes.data if config.probes.is_held_out(probe)],
            provenance=card.Provenance(config, recipe_yaml, progress, outcome.hardware),
            figures=[("Deviation along noise pretraining, and before and after it", drawn)],
            versions={"precalib_ray": __version__, **publishing.libraries()},
            digests={
                "config": load.digest(config),
                "weights (SHA-256)": weights.hexdigest(),
                **{f"{use.name} (SHA-256)": digest for use, digest in data.items()},
            },
        )
        publishing.describe(run, name, version, description=written.markdown, card=written.html)
    run.set_tags(tags | {"precalib.stop_reason": progress.stop_reason})
    return publishing.get(run.client, name, version)


def _name(config: PretrainConfig) -> str:
    return config.tracking.register_as or publishing.default_name(config.model)


def _data(config: PretrainConfig) -> list[lineage.DatasetUse]:
    """The data sets of the probes, and those whose statistics a noise matches."""
    sources = sorted(set().union(*(noise.sources() for noise in config.noises.values())))
    probes = config.probes.data.values()
    return [
        *(lineage.DatasetUse(probe.path, probe.split, "probe") for probe in probes),
        *(lineage.DatasetUse(path, "train", "noise") for path in sources),
    ]


def _tags(
    config: PretrainConfig, outcome: Outcome, data: Mapping[lineage.DatasetUse, str]
) -> dict[str, Any]:
    """The tags of the run and of the version."""
    progress, after = outcome.progress, outcome.after
    return {
        "precalib.recipe": wording.in_words(config),
        "precalib.deviation": f"{after.deviation:.6f}",
        "precalib.worst_probe": after.worst.key,
        **{
            f"precalib.deviation.{m.probe}.{m.mode}": f"{m.deviation:.6f}"
            for m in after.measurements
        },
        "precalib.noise": config.noise.kind,
        "precalib.labels": config.labels.kind,
        "precalib.samples": progress.samples,
        "precalib.seconds": f"{progress.seconds:.1f}",
        "precalib.seed": config.seed,
        "precalib.config_digest": load.digest(config),
        "precalib.version": __version__,
        **{f"precalib.data_sha256.{use.name}": digest for use, digest in data.items()},
        **config.tracking.tags,
    }
