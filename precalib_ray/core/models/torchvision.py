"""torchvision's classifiers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from precalib_ray.core.models.base import Model, Snippet, require_known
from precalib_ray.core.spec import setting
from precalib_ray.errors import SettingError

if TYPE_CHECKING:
    from torch import nn

_SMALL_STEM_FAMILIES = ("resnet", "resnext", "wide_resnet")
_WITH_AUXILIARY_OUTPUTS = ("googlenet", "inception_v3")


@dataclass(frozen=True, kw_only=True)
class Torchvision(Model):
    """A torchvision classifier, never with downloaded weights."""

    kind: Literal["torchvision"] = "torchvision"
    name: str = setting(description="name in torchvision.models.list_models()")
    small_stem: bool = setting(
        False, description="ResNets only: 3x3 stem without pooling, for images of about 32 pixels"
    )
    args: dict[str, Any] = setting(
        factory=dict, description="additional arguments of the model's builder"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_known(self.name, names(), "a torchvision classifier")
        if self.small_stem and not self.name.startswith(_SMALL_STEM_FAMILIES):
            raise SettingError("small_stem", True, f"only for ResNets, not for {self.name}")
        if self.small_stem and len(self.input_shape) != 3:
            raise SettingError("input_shape", list(self.input_shape), "must be [C, H, W]")

    @property
    def architecture(self) -> str:
        return self.name

    def construct(self) -> nn.Module:
        import torchvision.models

        arguments = dict(self.args)
        if self.name in _WITH_AUXILIARY_OUTPUTS:  # one output, and torchvision's initialization
            arguments = {"aux_logits": False, "init_weights": True} | arguments
        model: nn.Module = torchvision.models.get_model(
            self.name, weights=None, num_classes=self.num_classes, **arguments
        )
        if self.small_stem:
            _make_small_stem(model, in_channels=self.input_shape[0])
        return model

    def snippet(self) -> Snippet:
        imports = ["import torchvision"]
        arguments = 'num_classes=spec["num_classes"], **spec.get("args", {})'
        if self.name in _WITH_AUXILIARY_OUTPUTS:
            arguments = "aux_logits=False, init_weights=False, " + arguments
        lines = [f'model = torchvision.models.get_model("{self.name}", {arguments})']
        if self.small_stem:
            imports.append("from torch import nn")
            lines += [
                f"model.conv1 = nn.Conv2d({self.input_shape[0]}, 64, 3, padding=1, bias=False)",
                "model.maxpool = nn.Identity()",
            ]
        return Snippet(imports, lines, requires="torch, torchvision, safetensors and mlflow")


def names() -> list[str]:
    """The names of torchvision's image classifiers."""
    import torchvision.models

    return list(torchvision.models.list_models(module=torchvision.models))


def _make_small_stem(model: nn.Module, *, in_channels: int) -> None:
    """A 3x3 convolution of stride 1 and no pooling: the usual stem for images of 32 pixels."""
    from torch import nn

    conv = nn.Conv2d(in_channels, 64, kernel_size=3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    model.conv1, model.maxpool = conv, nn.Identity()
