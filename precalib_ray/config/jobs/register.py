"""The config of ``register``."""

from __future__ import annotations

from dataclasses import dataclass

from precalib_ray.config.sections import JobConfig, Tracking
from precalib_ray.core.probes import PanelSettings
from precalib_ray.core.spec import setting
from precalib_ray.errors import SettingError


@dataclass(frozen=True, kw_only=True)
class RegisterConfig(JobConfig):
    """Registration of a checkpoint directory."""

    path: str = setting(min_length=1, path=True, description="checkpoint directory")
    probes: PanelSettings = setting(PanelSettings(), description="probe settings")
    trust_code: bool = setting(False, description="run the function that builds the model")
    tracking: Tracking = setting(
        Tracking(), description="MLflow server, and what the job logs there"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tracking.offline:
            raise SettingError("tracking.offline", True, "nothing is registered offline")
