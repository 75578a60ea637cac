"""What the jobs that train have in common: their MLflow run, their workers, their progress."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from precalib_ray.cluster import session, trainer
from precalib_ray.config import base
from precalib_ray.config.jobs import NOT_IDENTITY, Job, Named
from precalib_ray.registry import tracking
from precalib_ray.report import figures
from precalib_ray.service.identity import Identity
from precalib_ray.service.terminal import Display, console
from precalib_ray.version import __version__

Told = tuple[str, dict[str, float]]
"""What an evaluation says: a few words for the terminal, and metrics for MLflow."""


def open_run(config: Named, identity: Identity, *, phase: str) -> tracking.Run | None:
    """Begin, or go on with, the MLflow run of a job, unless it is to be offline.

    Raises:
        TrackingError: the server does not answer within seconds.
    """
    if config.tracking.offline:
        return None
    uri = tracking.resolve_uri(config.tracking.uri)
    tracking.require_reachable(uri)
    run = tracking.Run(
        uri=uri,
        experiment=config.tracking.experiment,
        name=config.name,
        tags={
            "precalib.phase": phase,
            "precalib.version": __version__,
            "precalib.config_digest": base.digest(config, exclude=NOT_IDENTITY),
            **config.tracking.tags,
        },
        run_id=identity.run_id,
    )
    if run.run_id != identity.run_id:
        identity.update(run_id=run.run_id)
        run.log_params(config.model_dump(mode="json", exclude={"tracking"}))
    return run


def close_run(run: tracking.Run | None, config: Named, status: str) -> None:
    """Set the status of the MLflow run; what could not be sent is kept in the run's folder."""
    if run is None:
        return
    folder = Path(config.storage) if "://" not in config.storage else Path()
    kept = run.end(status, spool=folder / config.name / "mlflow-pending.jsonl")
    if kept is not None:
        console.print(f"MLflow is away; what it did not take is kept in {kept}", style="yellow")


def run_workers(
    worker: Callable[[Mapping[str, Any]], dict[str, Any]],
    config: Job,
    shared: Mapping[str, Any],
    run: tracking.Run | None,
    *,
    title: str,
    num_steps: int | None,
    keep: int,
    tell: Callable[[Mapping[str, Any]], Told],
) -> trainer.Fitted:
    """Train on Ray, with progress on the terminal and metrics in MLflow.

    Args:
        worker: as ``trainer.fit`` takes it.
        config: the job.
        shared: as ``trainer.fit`` takes it.
        run: where metrics go, if anywhere.
        title: of the progress bar.
        num_steps: the last step, if there is one.
        keep: newest checkpoints kept on storage.
        tell: what an evaluation's record says.

    Raises:
        DivergedError: as ``trainer.fit``.
        ClusterError: as ``trainer.fit``, or Ray cannot be reached.
    """
    with session.connect() as local, Display(title, num_steps) as display:
        text = ""

        def on_record(record: dict[str, Any]) -> None:
            nonlocal text
            told = [(evaluation["step"], tell(evaluation)) for evaluation in record["evaluations"]]
            if told:
                text = told[-1][1][0]
            display.update(record["step"], f"loss {record['loss']:.4f} {text}")
            if run is None:
                return
            names = ("loss", "learning_rate", "samples_per_second", "samples")
            run.log_metrics({name: record[name] for name in names}, step=record["step"])
            for step, (_, metrics) in told:
                run.log_metrics(metrics, step=step)

        return trainer.fit(
            worker,
            config.model_dump(),
            shared,
            keep=keep,
            local=local,
            on_record=on_record,
        )


def log_files(run: tracking.Run, config: Named, figure: Figure, name: str) -> bytes:
    """Store a job's figure and the config it ran with; returns the figure as PNG."""
    with tempfile.TemporaryDirectory() as folder:
        drawn = figures.save(figure, Path(folder) / f"{name}.png")
        run.log_file(drawn, "figures")
        file = Path(folder) / "config.yaml"
        file.write_text(base.to_yaml(config, exclude={"tracking"}))
        run.log_file(file)
        return drawn.read_bytes()
