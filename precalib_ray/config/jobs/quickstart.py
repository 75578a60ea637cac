"""The config of ``quickstart``."""

from __future__ import annotations

from dataclasses import dataclass

from precalib_ray.config.sections import JobConfig
from precalib_ray.core.models import Model
from precalib_ray.core.models.mlp import MLP
from precalib_ray.core.spec import setting
from precalib_ray.errors import SettingError

SHAPE, NUM_CLASSES = (1, 8, 8), 10
"""Image shape and number of classes of the digits."""


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig(JobConfig):
    """The first thing to run: digits, a small network, everything on this machine."""

    not_identity = frozenset({"output"})

    output: str = setting(
        "runs/quickstart", min_length=1, path=True, description="output directory"
    )
    seed: int = setting(0, ge=0, description="seed of everything random")
    epochs: int = setting(
        15, ge=1, le=1000, description="epochs of data training, for both networks"
    )
    model: Model = setting(
        MLP(num_classes=NUM_CLASSES, input_shape=SHAPE, depth=6, width=256, init="he"),
        description="the network, for images of shape 1x8x8 and 10 classes",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model.num_classes != NUM_CLASSES or self.model.input_shape != SHAPE:
            shown = (self.model.num_classes, list(self.model.input_shape))
            allowed = f"the digits have {NUM_CLASSES} classes and shape {list(SHAPE)}"
            raise SettingError("model", shown, allowed)
