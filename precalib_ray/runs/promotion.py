"""Promotion of a version through the gate, and a table of what was measured."""

from __future__ import annotations

from collections.abc import Callable

from precalib_ray.core.models import Model
from precalib_ray.core.probes import Panel
from precalib_ray.registry.gate import CHAMPION, Decision, Gate
from precalib_ray.runs.console import console, stage, table


def promote_version(
    model_uri: str,
    *,
    tracking_uri: str | None,
    tolerance: float,
    panel_of: Callable[[Model], Panel],
    trust_code: bool,
) -> None:
    """Make ``models:/NAME/VERSION`` champion, unless it has been: a job that is submitted again
    must not undo later decisions. Raises GateError if the gate refuses it.
    """
    name, _, version = model_uri.removeprefix("models:/").rpartition("/")
    gate = Gate(name, tracking_uri=tracking_uri)
    if gate.was_champion(version):
        console.print(f"{model_uri} has passed the gate before; champion: {gate.champion()}")
        return
    promote(gate, version, tolerance=tolerance, panel_of=panel_of, trust_code=trust_code)


def promote(
    gate: Gate,
    version: str,
    *,
    tolerance: float,
    panel_of: Callable[[Model], Panel],
    trust_code: bool,
) -> None:
    """Measure a version and make it champion; raises GateError if the gate refuses it."""
    with stage(f"measuring models:/{gate.name}/{version}"):
        decision = gate.promote(
            version, tolerance=tolerance, panel_of=panel_of, trust_code=trust_code
        )
    _show(decision)


def _show(decision: Decision) -> None:
    header = ["probe", "BatchNorm", f"version {decision.version}"]
    compared = decision.champion_result is not None
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
