"""timm's classifiers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from precalib_ray.core.models.base import Model, Snippet, require_known
from precalib_ray.core.spec import setting
from precalib_ray.errors import SettingError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Timm(Model):
    """A timm classifier (extra: timm), never with downloaded weights."""

    kind: Literal["timm"] = "timm"
    name: str = setting(description="name in timm.list_models()")
    args: dict[str, Any] = setting(
        factory=dict, description="additional arguments of timm.create_model"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            import timm
        except ImportError:
            allowed = "needs timm: pip install 'precalib_ray[timm]'"
            raise SettingError("kind", "timm", allowed) from None
        require_known(self.name, list(timm.list_models()), "a timm model")

    @property
    def architecture(self) -> str:
        return self.name

    def construct(self) -> nn.Module:
        import timm

        model: nn.Module = timm.create_model(
            self.name, pretrained=False, num_classes=self.num_classes, **self.args
        )
        return model

    def snippet(self) -> Snippet:
        arguments = 'num_classes=spec["num_classes"], **spec.get("args", {})'
        return Snippet(
            imports=["import timm"],
            lines=[f'model = timm.create_model("{self.name}", {arguments})'],
            requires="torch, timm, safetensors and mlflow",
        )
