"""The job ``register``: from a checkpoint directory, however old, to a registered version."""

from __future__ import annotations

from pathlib import Path

from precalib_ray.config.jobs import RegisterConfig
from precalib_ray.core import checkpoint, models
from precalib_ray.errors import TrackingError
from precalib_ray.registry import publishing, tracking
from precalib_ray.report import card
from precalib_ray.service.promote import read_panel
from precalib_ray.service.terminal import console, stage
from precalib_ray.version import __version__


def register(config: RegisterConfig) -> str:
    """Register a checkpoint directory; one that is registered already is found by its digest.

    Returns:
        ``models:/NAME/VERSION``.

    Raises:
        PrecalibError: see its families.
    """
    directory = Path(config.path).absolute()
    spec = checkpoint.read_description(directory)["model"]
    digest = publishing.digest(directory)
    name = config.tracking.register_as or publishing.default_name(spec)
    uri = tracking.resolve_uri(config.tracking.uri)
    tracking.require_reachable(uri)
    known = publishing.find_digest(uri, name, digest)
    mine = known is not None and known.key == digest
    if known is not None and (known.described or not mine):
        console.print(f"{config.path} is registered already: models:/{name}/{known.version}")
        return f"models:/{name}/{known.version}"
    model = checkpoint.load_model(directory, trust_code=config.trust_code)
    panel = read_panel(config.probes, spec)
    with stage("measuring it, and an untrained network beside it"):
        measured, untrained = panel.measure(model), panel.measure(models.build(spec, seed=0))
    tags = {
        "precalib.deviation": f"{measured.deviation:.6f}",
        "precalib.worst_probe": f"{measured.worst.probe}/{measured.worst.mode}",
        "precalib.version": __version__,
        **config.tracking.tags,
    }
    run = tracking.Run(
        uri=uri,
        experiment=config.tracking.experiment,
        name=f"register-{digest[:8]}",
        tags={"precalib.phase": "register", **tags},
        run_id=known.run_id if known is not None else None,  # went down before it was described
    )
    status = "FAILED"
    try:
        run.log_metrics({"final/deviation": measured.deviation}, step=0)
        with stage("registering the checkpoint"):
            version = publishing.publish(
                run,
                directory,
                name=name,
                tags=tags,
                trust_code=config.trust_code,
                key=digest,
            )
            written = card.write(
                uri=f"models:/{name}/{version}",
                spec=spec,
                before=untrained.to_json(),
                after=measured.to_json(),
                versions={"precalib_ray": __version__, **publishing.libraries()},
                digests={"checkpoint (SHA-256)": digest},
            )
            publishing.describe(run, name, version, description=written.markdown, card=written.html)
        status = "FINISHED"
    finally:
        sent = run.end(status)
    if not sent:
        raise TrackingError(f"MLflow did not take the end of the run: {run.last_error}")
    console.print(f"deviation {measured.deviation:.6f} on {tags['precalib.worst_probe']}")
    console.print(f"registered: models:/{name}/{version} (alias {publishing.CANDIDATE})")
    return f"models:/{name}/{version}"
