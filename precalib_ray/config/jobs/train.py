"""The config of ``train``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from precalib_ray.config.sections import Distributed, check_workers
from precalib_ray.core.data_training import DataTrainingSettings
from precalib_ray.core.models import Model
from precalib_ray.core.spec import Family, setting


@dataclass(frozen=True, kw_only=True)
class StartSettings(Family):
    """The network that data training starts from."""

    kind: str


@dataclass(frozen=True, kw_only=True)
class FromRegistry(StartSettings):
    """A pre-calibrated model of an MLflow registry."""

    kind: Literal["registry"] = "registry"
    uri: str = setting(
        pattern=r"^models:/[^/@]+(/\d+|@[\w.-]+)$",
        description="models:/NAME@ALIAS or models:/NAME/VERSION",
    )
    trust_code: bool = setting(False, description="run the function that builds the model")


@dataclass(frozen=True, kw_only=True)
class FromCheckpoint(StartSettings):
    """A checkpoint directory."""

    kind: Literal["checkpoint"] = "checkpoint"
    path: str = setting(path=True, description="checkpoint directory")
    trust_code: bool = setting(False, description="run the function that builds the model")


@dataclass(frozen=True, kw_only=True)
class FromRandom(StartSettings):
    """Random initialization: the control."""

    kind: Literal["random"] = "random"
    model: Model = setting(description="the network")


@dataclass(frozen=True, kw_only=True)
class FromZeroHead(StartSettings):
    """Random initialization with the last layer zeroed: at chance for free."""

    kind: Literal["zero_head"] = "zero_head"
    model: Model = setting(description="the network")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(DataTrainingSettings, Distributed):
    """Data training: from a pre-calibrated checkpoint, or from one of its baselines."""

    start: StartSettings = setting(description="network to start from")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_workers(self.scaling, self.batch_size, self.compute)
