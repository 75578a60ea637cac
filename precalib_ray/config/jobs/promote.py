"""The config of ``promote``."""

from __future__ import annotations

from dataclasses import dataclass

from precalib_ray.config.sections import NAME, TOLERANCE, Flag, JobConfig, Server
from precalib_ray.core.probes import PanelSettings
from precalib_ray.core.spec import setting


@dataclass(frozen=True, kw_only=True)
class PromoteConfig(JobConfig):
    """The gate: a registered version becomes champion if it is close enough to chance."""

    flags = (Flag("--rollback", "rollback=true"),)

    name: str = setting(pattern=NAME, description="name of the registered model")
    version: str = setting(
        "candidate",
        pattern=r"^[\w.-]+$",
        coerce_numbers_to_str=True,  # version=3 on the command line
        description="version number or alias",
    )
    tolerance: float = setting(
        TOLERANCE, ge=0, lt=1, description="maximum deviation of a champion, on its worst probe"
    )
    probes: PanelSettings = setting(PanelSettings(), description="probe settings")
    rollback: bool = setting(
        False, description="restore the previous champion, without measuring it"
    )
    trust_code: bool = setting(False, description="run the function that builds the model")
    tracking: Server = setting(Server(), description="MLflow server")
