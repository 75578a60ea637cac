"""From a finished pretraining to a version with tags, lineage and card."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from precalib_ray.config import base
from precalib_ray.config.jobs import NOT_IDENTITY, PretrainConfig
from precalib_ray.core import checkpoint
from precalib_ray.registry import lineage, publishing, tracking
from precalib_ray.report import card, figures
from precalib_ray.service import preflight
from precalib_ray.service.job import log_data, log_files
from precalib_ray.service.terminal import stage
from precalib_ray.version import __version__


def register(
    config: PretrainConfig, directory: Path, outcome: Mapping[str, Any], run: tracking.Run
) -> str:
    """Tell MLflow what a finished pretraining made; doing it twice is as good as once.

    Args:
        config: the job.
        directory: its checkpoint.
        outcome: what it measured.
        run: its MLflow run.

    Returns:
        ``models:/NAME/VERSION``.

    Raises:
        TrackingError: the server is away, or refused.
    """
    spec = config.model.model_dump()
    progress, before, after = outcome["progress"], outcome["before"], outcome["after"]
    name = config.tracking.register_as or publishing.default_name(spec)
    with stage("registering the checkpoint"):
        run.log_metrics(
            {
                "final/deviation": after["deviation"],
                "initial/deviation": before["deviation"],
                "final/class_bias": max(m["class_bias"] for m in after["measurements"]),
                "train_seconds": progress["seconds"],
                "probe_seconds": progress["evaluation_seconds"],
            },
            step=progress["step"],
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
            run,
            directory,
            name=name,
            tags=tags,
            trust_code=config.model.kind == "function",
        )
        uri = f"models:/{name}/{version}"
        weights = hashlib.sha256((directory / checkpoint.MODEL_FILE).read_bytes())
        recipe_yaml = base.to_yaml(
            config, exclude={"tracking", "storage", "scaling"}, exclude_defaults=True
        )
        written = card.write(
            uri=uri,
            spec=spec,
            before=before,
            after=after,
            held_out=[name for name, probe in config.probes.data.items() if probe.held_out],
            made=card.Made(config.model_dump(), recipe_yaml, progress, outcome.get("hardware")),
            figures=[("Deviation along noise pretraining, and before and after it", drawn)],
            versions={"precalib_ray": __version__, **publishing.libraries()},
            digests={
                "config": base.digest(config, exclude=NOT_IDENTITY),
                "weights (SHA-256)": weights.hexdigest(),
                **{f"{use.name} (SHA-256)": digest for use, digest in data.items()},
            },
        )
        publishing.describe(run, name, version, description=written.markdown, card=written.html)
    run.set_tags(tags | {"precalib.stop_reason": progress["stop_reason"]})
    return uri


def _data(config: PretrainConfig) -> list[lineage.Used]:
    """The data sets that probes are taken from, and those whose statistics noise has."""
    plain = config.model_dump()
    matched = [plain["noise"], *plain["probes"]["noise"].values()]
    sources = sorted(set().union(*(preflight.matched_sources(spec) for spec in matched)))
    probes = config.probes.data.values()
    return [
        *(lineage.Used(probe.path, probe.split, "probe") for probe in probes),
        *(lineage.Used(path, "train", "noise") for path in sources),
    ]


def _tags(
    config: PretrainConfig, outcome: Mapping[str, Any], data: Mapping[lineage.Used, str]
) -> dict[str, Any]:
    """What a run and the version of it are found by."""
    progress, after = outcome["progress"], outcome["after"]
    return {
        "precalib.recipe": card.in_words(config.model_dump()),
        "precalib.deviation": f"{after['deviation']:.6f}",
        "precalib.worst_probe": after["worst"],
        **{
            f"precalib.deviation.{m['probe']}.{m['mode']}": f"{m['deviation']:.6f}"
            for m in after["measurements"]
        },
        "precalib.noise": config.noise.kind,
        "precalib.labels": config.labels.kind,
        "precalib.samples": progress["samples"],
        "precalib.seconds": f"{progress['seconds']:.1f}",
        "precalib.seed": config.seed,
        "precalib.config_digest": base.digest(config, exclude=NOT_IDENTITY),
        "precalib.version": __version__,
        **{f"precalib.data_sha256.{use.name}": digest for use, digest in data.items()},
        **config.tracking.tags,
    }
