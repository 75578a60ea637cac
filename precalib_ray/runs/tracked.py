"""A job's run in MLflow: begun, written, and ended when the server has everything."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from matplotlib.figure import Figure

from precalib_ray.config import load
from precalib_ray.config.sections import Named
from precalib_ray.core.spec import plain
from precalib_ray.errors import TrackingError
from precalib_ray.registry import lineage, server, tracking, uris
from precalib_ray.report.figures import style
from precalib_ray.runs.console import console
from precalib_ray.runs.record import RunRecord
from precalib_ray.version import __version__

OUTBOX = "mlflow"
"""The folder in the run's folder that keeps what MLflow has not accepted yet."""

T = TypeVar("T")


def open_run(config: Named, record: RunRecord, *, phase: str) -> tracking.Run | None:
    """Begin the MLflow run of a job, or resume the one that the server has; None if the job is
    offline.

    Raises:
        TrackingError: the server does not answer within seconds.
    """
    if config.tracking.offline:
        record.begin(phase)
        return None
    uri = _reachable_server(config)
    known = tracking.find(uri, record.run_ids)
    run = tracking.Run(
        uri=uri,
        experiment=config.tracking.experiment,
        name=config.name,
        tags={
            "precalib.phase": phase,
            "precalib.version": __version__,
            "precalib.config_digest": load.digest(config),
            **config.tracking.tags,
        },
        run_id=None if known is None else known.run_id,
        outbox=record.folder / OUTBOX,
    )
    record.begin(phase, run_id=run.run_id)
    run.log_params({k: v for k, v in plain(config).items() if k != "tracking"})
    return run


def find_finished(config: Named, record: RunRecord) -> tracking.KnownRun | None:
    """The MLflow run of a finished run, if the named server has it with everything that was logged.

    Raises:
        TrackingError: the server does not answer within seconds, or refused.
    """
    known = tracking.find(_reachable_server(config, writable=False), record.run_ids)
    if known is None:
        return None
    record.select(known.run_id)
    return known if record.synced and known.finished else None


@contextlib.contextmanager
def tracked(config: Named, record: RunRecord, *, phase: str) -> Iterator[tracking.Run | None]:
    """The MLflow run of a job; how the context ends determines its status.

    Raises:
        TrackingError: the server does not answer at the start, or has not accepted everything at
            the end; the rest is kept in the outbox.
    """
    try:
        run = open_run(config, record, phase=phase)
    except TrackingError as error:
        raise TrackingError(f"{error}; tracking.offline=true runs without MLflow") from None
    if run is None:
        yield None
        return
    try:
        yield run
    except BaseException as error:
        if not record.superseded:  # else the run belongs to another submission
            run.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            if not isinstance(error, TrackingError):
                _show_outbox(record)
        raise
    if not run.end("FINISHED", wait_s=config.tracking.max_wait):
        raise _unreachable(config, record, run.last_error)
    record.update(synced=True)


def complete(run: tracking.Run, config: Named, record: RunRecord, log: Callable[[], T]) -> T:
    """Call an idempotent ``log``; while the server is unreachable, wait and try again.

    Raises:
        TrackingError: the server was unreachable for ``tracking.max_wait``, or refused.
    """
    deadline = time.monotonic() + config.tracking.max_wait
    announced = False
    while True:
        try:
            server.require_reachable(run.uri, writable=True)
        except TrackingError as error:
            if time.monotonic() >= deadline:
                raise _unreachable(config, record, str(error)) from None
            if not announced:
                wait = config.tracking.max_wait
                console.print(f"MLflow is unreachable; waiting up to {wait:.0f} s", style="yellow")
            announced = True
            time.sleep(1.0)
            continue
        try:
            return log()
        except TrackingError:
            try:
                server.require_reachable(run.uri, writable=True)
            except TrackingError:
                continue  # it became unreachable meanwhile
            raise


def log_data(
    run: tracking.Run, uses: Sequence[lineage.DatasetUse]
) -> dict[lineage.DatasetUse, str]:
    """Log the data sets of a job; returns their digests, warns of those that no longer exist."""
    digests = lineage.log_data(run, uses)
    for use in uses:
        if use not in digests:
            text = f"split {use.split} of {use.path} no longer exists; logged without its digest"
            console.print(text, style="yellow")
    return digests


def log_files(run: tracking.Run, config: Named, figure: Figure, name: str) -> bytes:
    """Store a job's figure and config as artifacts; returns the figure as PNG."""
    with tempfile.TemporaryDirectory() as folder:
        drawn = style.save(figure, Path(folder) / f"{name}.png")
        run.log_file(drawn, "figures")
        file = Path(folder) / "config.yaml"
        file.write_text(load.to_yaml(config, exclude={"tracking"}))
        run.log_file(file)
        return drawn.read_bytes()


def _reachable_server(config: Named, *, writable: bool = True) -> str:
    """The URI of the named server; raises TrackingError if it does not answer within seconds."""
    uri = uris.resolve_uri(config.tracking.uri)
    server.require_reachable(uri, writable=writable, create=True)
    return uri


def _unreachable(config: Named, record: RunRecord, reason: str) -> TrackingError:
    return TrackingError(
        f"MLflow did not accept the result of {config.name} ({reason}).\n"
        f"Nothing is lost: it is kept in {record.folder}. Once the server answers, the same "
        f"command sends and registers it, or python jobs/sync.py "
        f"name={config.name} storage={config.storage}"
    )


def _show_outbox(record: RunRecord) -> None:
    if (record.folder / OUTBOX).names(".json"):
        console.print(
            f"MLflow is unreachable; what it did not accept is kept in {record.folder}/{OUTBOX}",
            style="yellow",
        )
