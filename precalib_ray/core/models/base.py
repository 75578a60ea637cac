"""The base of all model families: a classifier is built from its settings.

The settings of a model are the section ``model`` of a config; ``model.json`` stores them.
"""

from __future__ import annotations

import contextlib
import difflib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from precalib_ray.core.lazy import torch
from precalib_ray.core.spec import Family, setting
from precalib_ray.errors import SettingError

if TYPE_CHECKING:
    from torch import nn

RESERVED_ARGUMENTS = (
    "weights", "weights_backbone", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay",
    "checkpoint_path", "cache_dir", "num_classes",
)  # fmt: skip
"""Arguments that ``args`` must not contain: weights come only from checkpoints."""


@dataclass(frozen=True)
class Snippet:
    """Python that builds a model where this package is not installed."""

    imports: list[str]
    lines: list[str]
    """Statements that read the settings from ``spec``, a mapping, and define ``model``."""
    requires: str
    """The packages that must be installed, in words."""


@dataclass(frozen=True, kw_only=True)
class Model(Family):
    """A classifier."""

    runs_code: ClassVar[bool] = False
    """Whether building it imports code that the settings name, which a registry must not choose."""

    kind: str
    num_classes: int = setting(ge=2, le=1_000_000, description="number of classes K")
    input_shape: tuple[int, ...] = setting(description="[C, H, W], or [D] for flat inputs")
    init: Literal["default", "he"] = setting(
        "default",
        description="the model's own initialization, or He's for every linear and conv layer",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for index, size in enumerate(self.input_shape):
            if size < 1:
                raise SettingError(f"input_shape.{index}", size, "must be >= 1")
        if len(self.input_shape) not in (1, 3):
            raise SettingError("input_shape", list(self.input_shape), "must be [C, H, W] or [D]")
        for key in RESERVED_ARGUMENTS:
            arguments = getattr(self, "args", {})
            if key in arguments:
                raise SettingError(f"args.{key}", arguments[key], "is set by precalib_ray")

    @property
    @abstractmethod
    def architecture(self) -> str:
        """Display name of the architecture."""

    @abstractmethod
    def construct(self) -> nn.Module:
        """The module, initialized by the global generators; raises ValueError."""

    @abstractmethod
    def snippet(self) -> Snippet:
        """Python that builds it without this package."""

    def build(self, *, seed: int | None = None, device: torch.device | str = "cpu") -> nn.Module:
        """A randomly initialized classifier; the global generators keep their state.

        On the device ``meta`` it has shapes and no values.

        Raises:
            ValueError: the library has no such model, or a user's function returns no module.
        """
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            if seed is not None:
                torch.default_generator.manual_seed(seed)
            model = self._construct_without_values() if device == "meta" else self.construct()
            if self.init == "he" and device != "meta":
                initialize_he(model)
        return model.to(device)

    def _construct_without_values(self) -> nn.Module:
        """As ``construct``, if possible without the cost of values."""
        try:
            with _without_values():
                return self.construct()
        except RuntimeError:  # some constructors compute with parameters
            return self.construct()


@contextlib.contextmanager
def _without_values() -> Iterator[None]:
    """Parameters move to the device ``meta`` when they are registered.

    ``torch.device("meta")`` would move every tensor, and constructors that compute with small ones,
    as those of torchvision's RegNets do, would fail.
    """
    from torch.nn.modules.module import register_module_parameter_registration_hook

    def drop_values(_module: nn.Module, _name: str, parameter: nn.Parameter) -> nn.Parameter:
        if parameter.is_meta:  # tied to an earlier one
            return parameter
        return torch.nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    handle = register_module_parameter_registration_hook(drop_values)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()


def initialize_he(model: nn.Module) -> None:
    """He et al., 2015: weights of linear and convolution layers N(0, 2 / fan_in), biases zero."""
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def nearest(name: str, names: Sequence[str]) -> list[str]:
    """Up to three names that resemble the one given, the nearest first."""
    return difflib.get_close_matches(name, names, n=3, cutoff=0.5)


def require_known(name: str, names: Sequence[str], what: str) -> None:
    """Raise SettingError unless a library has a model of this name."""
    if name not in names:
        hint = " or ".join(nearest(name, names))
        raise SettingError("name", name, f"is not the name of {what}", hint)
