"""The job ``register``: a checkpoint directory to a registered version."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from precalib_ray.config import load
from precalib_ray.config.jobs.register import RegisterConfig
from precalib_ray.core import checkpoint
from precalib_ray.core.probes import PanelResult
from precalib_ray.errors import TrackingError
from precalib_ray.registry import publishing, server, tracking, uris
from precalib_ray.report import card
from precalib_ray.runs.console import console, stage
from precalib_ray.runs.preflight import read_panel
from precalib_ray.version import __version__


@dataclass(frozen=True)
class Registered:
    """The result of a registration."""

    model_uri: str
    """``models:/NAME/VERSION``."""
    measured: PanelResult | None = None
    """None if the checkpoint was registered already."""


def register(config: RegisterConfig) -> Registered:
    """Register a checkpoint directory; one that is registered already is found by its digest.

    Raises:
        PrecalibError: any of its subclasses.
    """
    config = load.validate(RegisterConfig, config)
    directory = Path(config.path).absolute()
    settings = checkpoint.read_description(directory).model
    digest = publishing.digest(directory)
    name = config.tracking.register_as or publishing.default_name(settings)
    uri = uris.resolve_uri(config.tracking.uri)
    server.require_reachable(uri, writable=True, create=True)
    client = server.client_of(uri)
    known = publishing.find(client, name, tag=publishing.DIGEST_TAG, value=digest)
    mine = known is not None and known.key == digest
    if known is not None and (known.described or not mine):
        console.print(f"{config.path} is registered already: {known}")
        return Registered(known.uri)
    model = checkpoint.load_model(directory, trust_code=config.trust_code)
    panel = read_panel(config.probes, settings)
    with stage("measuring it and an untrained network"):
        measured, untrained = panel.measure(model), panel.measure(settings.build(seed=0))
    tags = {
        "precalib.deviation": f"{measured.deviation:.6f}",
        "precalib.worst_probe": measured.worst.key,
        "precalib.version": __version__,
        **config.tracking.tags,
    }
    run = tracking.Run(
        uri=uri,
        experiment=config.tracking.experiment,
        name=f"register-{digest[:8]}",
        tags={"precalib.phase": "register", **tags},
        run_id=known.run_id if known is not None else None,  # interrupted before its description
    )
    status = "FAILED"
    try:
        run.log_metrics({"final/deviation": measured.deviation}, step=0)
        with stage("registering the checkpoint"):
            version = publishing.publish(
                run, directory, name=name, tags=tags, trust_code=config.trust_code, key=digest
            )
            written = card.write(
                uri=f"models:/{name}/{version}",
                model=settings,
                before=untrained,
                after=measured,
                versions={"precalib_ray": __version__, **publishing.libraries()},
                digests={"checkpoint (SHA-256)": digest},
            )
            publishing.describe(run, name, version, description=written.markdown, card=written.html)
        status = "FINISHED"
    finally:
        sent = run.end(status)
    if not sent:
        raise TrackingError(f"MLflow did not accept the end of the run: {run.last_error}")
    registered = publishing.get(client, name, version)
    console.print(f"deviation {measured.deviation:.6f} on {measured.worst.key}")
    console.print(f"registered: {registered}")
    return Registered(registered.uri, measured)
