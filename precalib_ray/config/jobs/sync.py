"""The config of ``sync``."""

from __future__ import annotations

from dataclasses import dataclass

from precalib_ray.config.sections import NAME, Stored, refuse_secrets
from precalib_ray.core.spec import Section, setting


@dataclass(frozen=True, kw_only=True)
class TrackingChanges(Section):
    """What differs from the tracking that the run was submitted with."""

    uri: str | None = setting(None, description="tracking server; null: the run's")
    experiment: str | None = setting(
        None, min_length=1, description="experiment's name; null: the run's"
    )
    offline: bool | None = setting(
        None, description="false for a run that was made offline; null: as the run"
    )
    register_as: str | None = setting(
        None, pattern=NAME, description="registered model; null: the run's"
    )
    tags: dict[str, str] | None = setting(None, description="more tags; null: the run's")
    max_wait: float | None = setting(
        None, ge=0, le=86_400, description="seconds to wait for a server; null: the run's"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_secrets("uri", self.uri)


@dataclass(frozen=True, kw_only=True)
class SyncConfig(Stored):
    """Sending of what MLflow did not take of a run that has ended."""

    tracking: TrackingChanges | None = setting(
        None, description="where MLflow is; null: as the run was submitted"
    )
