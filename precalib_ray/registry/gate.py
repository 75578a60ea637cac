"""The gate: which version is ``champion``, and the record of how it became that.

A version is measured anew, on its downloaded checkpoint: what tags say is not looked at. The alias
is moved by one call and never deleted, so readers find the old champion or the new one. Every
decision is a tag of the registered model, ``precalib.gate.TIME``, where a rollback reads.
MLflow cannot move an alias only if it still is where it was: of two promotions that end within the
same moment, the later one stands, and both have passed.
"""

from __future__ import annotations

import contextlib
import datetime
import getpass
import json
import math
import os
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from precalib_ray.core import checkpoint
from precalib_ray.core.probes import Panel, PanelResult
from precalib_ray.errors import GateError, PrecalibError, TrackingError
from precalib_ray.registry import loading
from precalib_ray.registry.tracking import client_of, one_line, require_reachable, resolve_uri

CHAMPION = "champion"
_TRAIL = "precalib.gate."


@dataclass(frozen=True)
class Decision:
    """What was measured, and what it comes to."""

    name: str
    version: str
    champion: str | None
    """The version that was champion."""
    tolerance: float
    measured: PanelResult
    reigning: PanelResult | None
    """The champion's, on the same panel."""

    @property
    def reasons(self) -> list[str]:
        """Why it is refused; none if it is not."""
        worst, found = self.measured.worst, []
        where = f"{worst.probe}/{worst.mode}"
        if not all(math.isfinite(m.deviation) for m in self.measured.measurements):
            return ["its confidence is not a number"]
        if self.measured.deviation > self.tolerance:
            found.append(
                f"deviation {self.measured.deviation:.6f} on {where} is above the tolerance "
                f"{self.tolerance:g}"
            )
        if self.reigning is not None and self.measured.deviation > self.reigning.deviation:
            found.append(
                f"deviation {self.measured.deviation:.6f} on {where} is worse than "
                f"{self.reigning.deviation:.6f}, that of the champion, version {self.champion}"
            )
        return found

    def rows(self) -> Iterator[tuple[str, str, float, float | None]]:
        """Probe, BatchNorm mode, deviation, and the champion's."""
        reigning = {}
        if self.reigning is not None:
            reigning = {(m.probe, m.mode): m.deviation for m in self.reigning.measurements}
        for m in self.measured.measurements:
            yield m.probe, m.mode, m.deviation, reigning.get((m.probe, m.mode))

    def __str__(self) -> str:
        """The refusal, with all numbers."""
        lines = [
            f"models:/{self.name}/{self.version} does not become champion: "
            + "; and ".join(self.reasons)
        ]
        for probe, mode, deviation, other in self.rows():
            beside = "" if other is None else f", version {self.champion}: {other:.6f}"
            lines.append(f"  {probe}/{mode}: {deviation:.6f}{beside}")
        return "\n".join(lines)


class Gate:
    """The champion of a registered model."""

    def __init__(self, name: str, *, tracking_uri: str | None = None) -> None:
        """``tracking_uri`` as ``resolve_uri`` takes it; raises TrackingError."""
        self.name, self._uri = name, resolve_uri(tracking_uri)
        require_reachable(self._uri)
        self._client = client_of(self._uri)
        with self._asking():
            self._client.get_registered_model(name)

    def champion(self) -> str | None:
        """The version that is champion."""
        with self._asking():
            found = self._client.get_registered_model(self.name).aliases.get(CHAMPION)
        return None if found is None else str(found)

    def version(self, wanted: str) -> str:
        """The number of a version that is named by number or alias; raises TrackingError."""
        with self._asking():
            if wanted.isdigit():
                return str(self._client.get_model_version(self.name, wanted).version)
            return str(self._client.get_model_version_by_alias(self.name, wanted).version)

    def trail(self) -> list[dict[str, Any]]:
        """All decisions, the first one first."""
        with self._asking():
            tags = self._client.get_registered_model(self.name).tags
        return [json.loads(tags[key]) for key in sorted(tags) if key.startswith(_TRAIL)]

    def was_champion(self, version: str) -> bool:
        """Whether the gate has ever let a version through."""
        return any(
            event["decision"] == "accepted" and event["to"] == version for event in self.trail()
        )

    def promote(
        self,
        version: str,
        *,
        tolerance: float,
        panel_of: Callable[[Mapping[str, Any]], Panel],
        trust_code: bool = False,
    ) -> Decision:
        """Make a version champion if it is within tolerance and not worse than the champion.

        Args:
            version: its number.
            tolerance: largest deviation on the worst probe.
            panel_of: gives the panel for a model spec.
            trust_code: as ``checkpoint.load_model`` takes it.

        Raises:
            GateError: it is not, with the numbers.
            CheckpointError: the version, or the champion, cannot be measured.
            TrackingError: the server refused.
        """
        panel: Panel | None = None
        results: dict[str, PanelResult] = {}
        shapes: dict[str, tuple[Any, ...]] = {}

        def measure(number: str) -> PanelResult:
            nonlocal panel
            if number not in results:
                with tempfile.TemporaryDirectory() as folder:
                    uri = f"models:/{self.name}/{number}"
                    loading.pull(uri, Path(folder), tracking_uri=self._uri)
                    spec = checkpoint.read_description(folder)["model"]
                    model = checkpoint.load_model(folder, trust_code=trust_code)
                shapes[number] = (spec["num_classes"], *spec["input_shape"])
                if shapes[number] != shapes[version]:
                    raise GateError(
                        f"models:/{self.name}/{version} cannot be compared with the champion, "
                        f"version {number}: classes and input shape are {shapes[version]}, and "
                        f"the champion's are {shapes[number]}"
                    )
                panel = panel or panel_of(spec)
                results[number] = panel.measure(model)
            return results[number]

        while True:
            champion = self.champion()
            decision = Decision(
                name=self.name,
                version=version,
                champion=champion,
                tolerance=tolerance,
                measured=measure(version),
                reigning=None if champion in (None, version) else measure(str(champion)),
            )
            if self.champion() == champion:  # else somebody else's promotion was quicker
                break
        if decision.reasons:
            self._record("promote", champion, version, "refused", decision)
            raise GateError(str(decision))
        if champion != version:
            self._move(version)
            self._record("promote", champion, version, "accepted", decision)
        return decision

    def rollback(self) -> tuple[str | None, str]:
        """Go back to the champion before, and from there to the one before that.

        Returns:
            The version that was champion, None if that was deleted, and the one that is.

        Raises:
            GateError: there is none before.
            TrackingError: the server refused.
        """
        current = self.champion()  # none if its version was deleted: the alias goes with it
        there = self._versions()
        earlier = [v for v in self._stack() if v in there]
        while earlier and earlier[-1] == current:
            earlier.pop()
        if not earlier:
            raise GateError(
                f"{self.name} has no champion"
                if current is None
                else f"no champion before models:/{self.name}/{current} is known; it stays champion"
            )
        self._move(earlier[-1])
        self._record("rollback", current, earlier[-1], "accepted")
        return current, earlier[-1]

    def _stack(self) -> list[str]:
        """Champions by the trail, those that were gone back from left out."""
        stack: list[str] = []
        for event in self.trail():
            if event["decision"] != "accepted":
                continue
            if event["action"] == "rollback":
                while stack and stack[-1] != event["to"]:
                    stack.pop()
                continue
            if event["from"] is not None and stack[-1:] != [event["from"]]:
                stack.append(event["from"])  # made champion by other means
            stack.append(event["to"])
        return stack

    def _versions(self) -> set[str]:
        with self._asking():
            found = self._client.search_model_versions(f"name='{self.name}'")
        return {str(v.version) for v in found}

    def _move(self, version: str) -> None:
        with self._asking():
            self._client.set_registered_model_alias(self.name, CHAMPION, version)

    def _record(
        self,
        action: str,
        before: str | None,
        to: str,
        decision: str,
        measured: Decision | None = None,
    ) -> None:
        now = datetime.datetime.now(datetime.UTC)
        event: dict[str, Any] = {
            "when": now.isoformat(timespec="seconds"),
            "who": _who(),
            "action": action,
            "from": before,
            "to": to,
            "decision": decision,
        }
        if measured is not None:
            event["deviation"] = measured.measured.deviation
            event["worst"] = f"{measured.measured.worst.probe}/{measured.measured.worst.mode}"
            event["tolerance"] = measured.tolerance
            if measured.reigning is not None:
                event["champion_deviation"] = measured.reigning.deviation
            if measured.reasons:
                event["reason"] = "; and ".join(measured.reasons)[:1000]
        key = f"{_TRAIL}{now:%Y%m%dT%H%M%S.%fZ}.{uuid.uuid4().hex[:4]}"
        with self._asking():
            self._client.set_registered_model_tag(self.name, key, json.dumps(event))

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except PrecalibError:
            raise
        except Exception as error:  # stores and drivers fail in ways of their own
            raise TrackingError(f"models:/{self.name}: {one_line(error)}") from None


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name
        user = str(os.getuid())
    return f"{os.environ.get('MLFLOW_TRACKING_USERNAME', user)}@{socket.gethostname()}"
