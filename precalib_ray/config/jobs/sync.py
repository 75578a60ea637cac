"""The config of ``sync``."""

from __future__ import annotations

from dataclasses import dataclass

from precalib_ray.config.sections import NAME, Stored, refuse_secrets
from precalib_ray.core.spec import Section, setting


@dataclass(frozen=True, kw_only=True)
class TrackingChanges(Section):
    """Changes to the tracking settings of the run."""

    uri: str | None = setting(None, path=True, description="tracking server; null: the run's")
    experiment: str | None = setting(
        None, min_length=1, description="name of the experiment; null: the run's"
    )
    offline: bool | None = setting(
        None, description="false: send a run that was made offline; null: the run's"
    )
    register_as: str | None = setting(
        None, pattern=NAME, description="name of the registered model; null: the run's"
    )
    tags: dict[str, str] | None = setting(None, description="additional tags; null: the run's")
    max_wait: float | None = setting(
        None, ge=0, le=86_400, description="maximum seconds to wait for a server; null: the run's"
    )

    def __post_init__(self) -> None:
        refuse_secrets("uri", self.uri)
        super().__post_init__()
        refuse_secrets("uri", self.uri)


@dataclass(frozen=True, kw_only=True)
class SyncConfig(Stored):
    """Send a finished run's pending data to MLflow."""

    tracking: TrackingChanges | None = setting(
        None, description="changes to the run's tracking settings; null: none"
    )
