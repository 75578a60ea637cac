"""The job ``promote``: the gate that a version passes to become champion, and the way back."""

from __future__ import annotations

from precalib_ray.config import load
from precalib_ray.config.jobs.promote import PromoteConfig
from precalib_ray.registry.gate import CHAMPION, Gate
from precalib_ray.runs import promotion
from precalib_ray.runs.console import console
from precalib_ray.runs.preflight import read_panel


def promote(config: PromoteConfig) -> str:
    """Make a version champion, or go back to the previous one; returns the champion.

    Raises:
        PrecalibError: any of its subclasses; GateError if the version is refused.
    """
    config = load.validate(PromoteConfig, config)
    gate = Gate(config.name, tracking_uri=config.tracking.uri)
    if config.rollback:
        before, champion = gate.rollback()
        console.print(
            f"models:/{config.name}@{CHAMPION} is version {champion} again; it was "
            f"{before or 'a version that was deleted'}"
        )
        return champion
    version = gate.version(config.version)
    promotion.promote(
        gate,
        version,
        tolerance=config.tolerance,
        panel_of=lambda model: read_panel(config.probes, model),
        trust_code=config.trust_code,
    )
    return version
