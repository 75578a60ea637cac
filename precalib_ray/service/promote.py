"""The job ``promote``: the gate that a version passes to become champion, and the way back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from precalib_ray.config.jobs import Panel as PanelConfig
from precalib_ray.config.jobs import PromoteConfig
from precalib_ray.core import pretraining
from precalib_ray.core.probes import Panel
from precalib_ray.registry.gate import CHAMPION, Decision, Gate
from precalib_ray.service import preflight
from precalib_ray.service.terminal import console, stage, table


def promote(config: PromoteConfig) -> str:
    """Make a version champion, or go back to the one before; returns the champion.

    Raises:
        PrecalibError: see its families; GateError if it is refused.
    """
    gate = Gate(config.name, tracking_uri=config.tracking.uri)
    if config.rollback:
        before, champion = gate.rollback()
        console.print(
            f"models:/{config.name}@{CHAMPION} is version {champion} again; it was "
            f"{before or 'a version that is gone'}"
        )
        return champion
    version = gate.version(config.version)
    with stage(f"measuring models:/{config.name}/{version}"):
        decision = gate.promote(
            version,
            tolerance=config.tolerance,
            panel_of=lambda spec: read_panel(config.probes, spec),
            trust_code=config.trust_code,
        )
    _show(decision)
    return version


def read_panel(probes: PanelConfig, spec: Mapping[str, Any]) -> Panel:
    """The panel for a model; raises DataError or ConfigError if its data cannot be read."""
    plain, shape = probes.model_dump(), tuple(spec["input_shape"])
    return pretraining.panel(
        plain,
        shape,
        images={
            name: preflight.read_inputs(probe.path, probe.split, shape, limit=probes.size)[0]
            for name, probe in probes.data.items()
        },
        statistics=preflight.read_statistics(list(plain["noise"].values()), shape),
    )


def promote_version(
    model_uri: str,
    *,
    tracking_uri: str | None,
    tolerance: float,
    panel_of: Callable[[Mapping[str, Any]], Panel],
    trust_code: bool,
) -> None:
    """Make ``models:/NAME/VERSION`` champion, unless it has been: a job that is submitted again
    must not undo what others have decided since. Raises GateError if it is refused.
    """
    name, _, version = model_uri.removeprefix("models:/").rpartition("/")
    gate = Gate(name, tracking_uri=tracking_uri)
    if gate.was_champion(version):
        console.print(f"{model_uri} has passed the gate before; champion: {gate.champion()}")
        return
    with stage(f"measuring {model_uri}"):
        decision = gate.promote(
            version, tolerance=tolerance, panel_of=panel_of, trust_code=trust_code
        )
    _show(decision)


def _show(decision: Decision) -> None:
    header = ["probe", "BatchNorm", f"version {decision.version}"]
    compared = decision.reigning is not None
    if compared:
        header.append(f"champion, version {decision.champion}")
    rows = []
    for probe, mode, deviation, other in decision.rows():
        row = [probe, mode, f"{deviation:.6f}"]
        rows.append([*row, "" if other is None else f"{other:.6f}"] if compared else row)
    table("Mean confidence above chance, measured now", header, rows)
    uri = f"models:/{decision.name}/{decision.version}"
    if decision.champion == decision.version:
        console.print(f"{uri} is {CHAMPION} already, and within {decision.tolerance:g}")
        return
    before = f"; it was version {decision.champion}" if decision.champion else ""
    console.print(f"promoted: {uri} is {CHAMPION} now{before}")
