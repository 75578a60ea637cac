"""What the jobs that train have in common: their MLflow run, their workers, their progress."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from matplotlib.figure import Figure

from precalib_ray.cluster import session, trainer
from precalib_ray.config import base
from precalib_ray.config.jobs import NOT_IDENTITY, Job, Named
from precalib_ray.errors import TrackingError
from precalib_ray.registry import lineage, tracking
from precalib_ray.report import figures
from precalib_ray.service.identity import Identity
from precalib_ray.service.terminal import Display, console
from precalib_ray.version import __version__

SPOOL = "mlflow"
"""Folder in the run's, of what MLflow has not taken yet."""

T = TypeVar("T")
Told = tuple[str, dict[str, float]]
"""What an evaluation says: a few words for the terminal, and metrics for MLflow."""


def open_run(config: Named, identity: Identity, *, phase: str) -> tracking.Run | None:
    """Begin, or go on with, the MLflow run of a job, unless it is to be offline.

    Raises:
        TrackingError: the server does not answer within seconds.
    """
    settings = config.model_dump(mode="json", include=NOT_IDENTITY)
    if config.tracking.offline:
        identity.update(phase=phase, settings=settings)
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
        spool=identity.folder / SPOOL,
    )
    identity.update(phase=phase, settings=settings, run_id=run.run_id)
    if identity.record.get("params_of") != run.run_id:
        run.log_params(config.model_dump(mode="json", exclude={"tracking"}))
        identity.update(params_of=run.run_id)
    return run


@contextlib.contextmanager
def tracked(config: Named, identity: Identity, *, phase: str) -> Iterator[tracking.Run | None]:
    """The MLflow run of a job; its status is how the context ends.

    Raises:
        TrackingError: the server does not answer at the start, or has not taken everything at the
            end; what it did not take is kept in the run's folder.
    """
    run = open_run(config, identity, phase=phase)
    if run is None:
        yield None
        return
    try:
        yield run
    except BaseException as error:
        if not identity.lost:  # else the run is another submission's
            run.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            if not isinstance(error, TrackingError):
                _tell_kept(identity)
        raise
    if not run.end("FINISHED", wait_s=config.tracking.max_wait):
        raise _away(config, identity, run.last_error)
    identity.update(told=True)


def complete(run: tracking.Run, config: Named, identity: Identity, last: Callable[[], T]) -> T:
    """Send what is kept, and do ``last``; with a server that is away, wait and try again.

    Args:
        run: the job's.
        config: the job.
        identity: the job's.
        last: what a finished job tells MLflow; doing it twice is as good as once.

    Raises:
        TrackingError: the server stayed away for ``tracking.max_wait``, or refused.
    """
    deadline = time.monotonic() + config.tracking.max_wait
    told = False
    while True:
        try:
            tracking.require_reachable(run.uri)
        except TrackingError as error:
            if time.monotonic() >= deadline:
                raise _away(config, identity, str(error)) from None
            if not told:
                wait = config.tracking.max_wait
                console.print(f"MLflow is away; waiting for up to {wait:.0f} s", style="yellow")
            told = True
            time.sleep(1.0)
            continue
        try:
            return last()
        except TrackingError:
            try:
                tracking.require_reachable(run.uri)
            except TrackingError:
                continue  # it went away meanwhile
            raise


def _away(config: Named, identity: Identity, reason: str) -> TrackingError:
    return TrackingError(
        f"MLflow does not take what {config.name} has made ({reason}).\n"
        f"Nothing is lost: it is kept in {identity.folder}. Once the server answers, the same "
        f"command sends it and registers what is to be registered, or python jobs/sync.py "
        f"name={config.name} storage={config.storage}"
    )


def _tell_kept(identity: Identity) -> None:
    if (identity.folder / SPOOL).names(".json"):
        console.print(
            f"MLflow is away; what it did not take is kept in {identity.folder}/{SPOOL}",
            style="yellow",
        )


def run_workers(
    worker: Callable[[Mapping[str, Any]], dict[str, Any]],
    config: Job,
    shared: Mapping[str, Any],
    run: tracking.Run | None,
    identity: Identity,
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
        identity: the job's.
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
            display.update(record["step"], f"loss {record['loss']:.4f} {text}".rstrip())
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
            tell=lambda text: console.print(text, style="yellow"),
            may_save=lambda: not identity.lost,
        )


def log_data(run: tracking.Run, used: Sequence[lineage.Used]) -> dict[lineage.Used, str]:
    """Log the data sets of a job; returns their digests. Those that are gone are told."""
    digests = lineage.log_data(run, used)
    for use in used:
        if use not in digests:
            text = f"the data set {use.path} has no {use.split} any more: logged without its digest"
            console.print(text, style="yellow")
    return digests


def log_files(run: tracking.Run, config: Named, figure: Figure, name: str) -> bytes:
    """Store a job's figure and the config it ran with; returns the figure as PNG."""
    with tempfile.TemporaryDirectory() as folder:
        drawn = figures.save(figure, Path(folder) / f"{name}.png")
        run.log_file(drawn, "figures")
        file = Path(folder) / "config.yaml"
        file.write_text(base.to_yaml(config, exclude={"tracking"}))
        run.log_file(file)
        return drawn.read_bytes()
