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

    name: str = setting(pattern=NAME, description="registered model")
    version: str = setting(
        "candidate",
        pattern=r"^[\w.-]+$",
        coerce_numbers_to_str=True,  # as a command line's version=3 comes
        description="the version, by number or alias",
    )
    tolerance: float = setting(
        TOLERANCE, ge=0, lt=1, description="largest deviation on the worst probe of a champion"
    )
    probes: PanelSettings = setting(PanelSettings(), description="what it is measured on")
    rollback: bool = setting(False, description="go back to the previous champion, unmeasured")
    trust_code: bool = setting(False, description="run the function that builds the model")
    tracking: Server = setting(Server(), description="where MLflow is")
