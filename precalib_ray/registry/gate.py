"""The gate: which version is ``champion``, with an audit log of every decision.

A version is re-measured on its downloaded checkpoint; its tags are ignored. The alias is moved by
one call and never deleted, so readers find the old champion or the new one. MLflow has no
compare-and-set for aliases: of two concurrent promotions the last write wins; both passed the gate.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from precalib_ray.core import checkpoint
from precalib_ray.core.models import Model
from precalib_ray.core.probes import Panel, PanelResult
from precalib_ray.errors import GateError
from precalib_ray.registry import audit, loading, versions
from precalib_ray.registry.audit import AuditEntry
from precalib_ray.registry.server import client_of, require_reachable, tracking_errors
from precalib_ray.registry.uris import resolve_uri

CHAMPION = "champion"
_MAX_REASON = 1000  # characters of the audit log


@dataclass(frozen=True)
class Decision:
    """What was measured, and whether it passes."""

    name: str
    version: str
    champion: str | None
    """The version that was champion before."""
    tolerance: float
    result: PanelResult
    """Measured on the version."""
    champion_result: PanelResult | None
    """Measured on the champion, by the same panel; None if there is no other version to compare."""

    @property
    def reasons(self) -> list[str]:
        """Why the version is refused; empty if it passes."""
        worst, found = self.result.worst, []
        if not all(math.isfinite(m.deviation) for m in self.result.measurements):
            return ["its confidence is NaN"]
        if self.result.deviation > self.tolerance:
            found.append(
                f"deviation {self.result.deviation:.6f} on {worst.key} is above the tolerance "
                f"{self.tolerance:g}"
            )
        champion = self.champion_result
        if champion is not None and self.result.deviation > champion.deviation:
            found.append(
                f"deviation {self.result.deviation:.6f} on {worst.key} is worse than "
                f"{champion.deviation:.6f}, that of the champion, version {self.champion}"
            )
        return found

    def rows(self) -> Iterator[tuple[str, str, float, float | None]]:
        """Probe, BatchNorm mode, deviation, and the champion's deviation."""
        champion = {} if self.champion_result is None else self.champion_result.deviations
        for m in self.result.measurements:
            yield m.probe, m.mode, m.deviation, champion.get(m.key)

    def audit_entry(self) -> AuditEntry:
        """The decision, for the audit log."""
        champion = self.champion_result
        return AuditEntry(
            action="promote",
            before=self.champion,
            to=self.version,
            decision="refused" if self.reasons else "accepted",
            deviation=self.result.deviation,
            worst=self.result.worst.key,
            tolerance=self.tolerance,
            champion_deviation=None if champion is None else champion.deviation,
            reason="; and ".join(self.reasons)[:_MAX_REASON] or None,
        )

    def __str__(self) -> str:
        """The refusal, with all numbers."""
        lines = [
            f"models:/{self.name}/{self.version} does not become champion: "
            + "; and ".join(self.reasons)
        ]
        for probe, mode, deviation, champion in self.rows():
            compared = "" if champion is None else f", version {self.champion}: {champion:.6f}"
            lines.append(f"  {probe}/{mode}: {deviation:.6f}{compared}")
        return "\n".join(lines)


class Gate:
    """The champion of a registered model."""

    def __init__(self, name: str, *, tracking_uri: str | None = None) -> None:
        """``tracking_uri`` as ``resolve_uri`` takes it; raises TrackingError, also if the registry
        has no such model.
        """
        self.name, self._uri = name, resolve_uri(tracking_uri)
        require_reachable(self._uri, writable=True)
        self._client = client_of(self._uri)
        with self._tracking_errors():
            versions.require_model(self._client, name)

    def champion(self) -> str | None:
        """The version that is champion."""
        with self._tracking_errors():
            found = self._client.get_registered_model(self.name).aliases.get(CHAMPION)
        return None if found is None else str(found)

    def version(self, wanted: str) -> str:
        """The number of a version, given by number or alias; raises TrackingError."""
        with self._tracking_errors():
            return str(versions.get(self._client, self.name, wanted).version)

    def audit_log(self) -> list[AuditEntry]:
        """All decisions, oldest first."""
        with self._tracking_errors():
            return audit.read(self._client.get_registered_model(self.name).tags)

    def was_champion(self, version: str) -> bool:
        """Whether a version has ever passed the gate."""
        return any(entry.accepted and entry.to == version for entry in self.audit_log())

    def promote(
        self,
        version: str,
        *,
        tolerance: float,
        panel_of: Callable[[Model], Panel],
        trust_code: bool = False,
    ) -> Decision:
        """Make a version champion if it is within tolerance and not worse than the champion.

        Args:
            version: its number.
            tolerance: largest deviation on the worst probe.
            panel_of: returns the panel for the settings of a model.
            trust_code: as ``checkpoint.load_model`` takes it.

        Raises:
            GateError: it is not, with the numbers.
            CheckpointError: the version, or the champion, cannot be measured.
            TrackingError: the server refused.
        """
        panel: Panel | None = None
        results: dict[str, PanelResult] = {}
        shapes: dict[str, tuple[int, ...]] = {}

        def measure(number: str) -> PanelResult:
            nonlocal panel
            if number not in results:
                with tempfile.TemporaryDirectory() as folder:
                    uri = f"models:/{self.name}/{number}"
                    loading.pull(uri, Path(folder), tracking_uri=self._uri)
                    settings = checkpoint.read_description(folder).model
                    model = checkpoint.load_model(folder, trust_code=trust_code)
                shapes[number] = (settings.num_classes, *settings.input_shape)
                if shapes[number] != shapes[version]:
                    raise GateError(
                        f"models:/{self.name}/{version} cannot be compared with the champion, "
                        f"version {number}: classes and input shape are {shapes[version]}, and "
                        f"the champion's are {shapes[number]}"
                    )
                panel = panel or panel_of(settings)
                results[number] = panel.measure(model)
            return results[number]

        while True:
            champion = self.champion()
            decision = Decision(
                name=self.name,
                version=version,
                champion=champion,
                tolerance=tolerance,
                result=measure(version),
                champion_result=None if champion in (None, version) else measure(str(champion)),
            )
            if self.champion() == champion:  # else a concurrent promotion came first: compare again
                break
        if decision.reasons:
            self._record(decision.audit_entry())
            raise GateError(str(decision))
        if champion != version:
            self._move_alias(version)
            self._record(decision.audit_entry())
        return decision

    def rollback(self) -> tuple[str | None, str]:
        """Return to the previous champion, and from there to the one before that.

        Returns:
            The version that was champion, None if it was deleted, and the one that is.

        Raises:
            GateError: there is none before.
            TrackingError: the server refused.
        """
        current = self.champion()  # None if its version was deleted: the alias goes with it
        existing = self._versions()
        earlier = [v for v in audit.champions(self.audit_log()) if v in existing]
        while earlier and earlier[-1] == current:
            earlier.pop()
        if not earlier:
            raise GateError(
                f"{self.name} has no champion; python jobs/promote.py name={self.name} measures "
                "its candidate"
                if current is None
                else f"no champion before models:/{self.name}/{current} is known; it stays champion"
            )
        self._move_alias(earlier[-1])
        self._record(
            AuditEntry(action="rollback", before=current, to=earlier[-1], decision="accepted")
        )
        return current, earlier[-1]

    def _versions(self) -> set[str]:
        with self._tracking_errors():
            found = self._client.search_model_versions(f"name='{self.name}'")
        return {str(v.version) for v in found}

    def _move_alias(self, version: str) -> None:
        with self._tracking_errors():
            self._client.set_registered_model_alias(self.name, CHAMPION, version)

    def _record(self, entry: AuditEntry) -> None:
        with self._tracking_errors():
            self._client.set_registered_model_tag(
                self.name, audit.new_key(), json.dumps(entry.to_json())
            )

    def _tracking_errors(self) -> AbstractContextManager[None]:
        return tracking_errors(f"models:/{self.name}")
