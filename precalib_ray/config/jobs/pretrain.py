"""The config of ``pretrain``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from precalib_ray.config.sections import Distributed, Promotion, check_workers
from precalib_ray.core.recipe import Recipe
from precalib_ray.core.spec import plain, setting
from precalib_ray.errors import SettingError


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(Recipe, Distributed):
    """Noise pretraining: random noise and random labels until confidence is at chance."""

    not_identity: ClassVar[frozenset[str]] = Distributed.not_identity | {"promote"}

    promote: Promotion | None = setting(
        None, description="promote the version to champion if it passes the gate; null: do not"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_workers(self.scaling, self.batch_size, self.compute)
        if self.promote is not None and self.tracking.offline:
            raise SettingError("promote", "{...}", "has no effect with tracking.offline")
        if self.scaling.is_elastic and self.checkpoints.every_steps is None:
            allowed = (
                "needs checkpoints.every_steps: when workers join or leave, the run resumes from "
                "its last checkpoint, and without one from the beginning"
            )
            raise SettingError("scaling.num_workers", plain(self.scaling.num_workers), allowed)
