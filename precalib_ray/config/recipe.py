"""What a recipe is made of: noise, labels, optimizer, schedule, loss and model."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from precalib_ray.config.base import ContradictionError, Strict
from precalib_ray.core import models

_FUNCTION = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"


class _Noise(Strict):
    shift: float = Field(0.0, description="added to every value", allow_inf_nan=False)
    scale: float = Field(1.0, gt=0, description="standard deviation", allow_inf_nan=False)


class GaussianNoise(_Noise):
    """Independent standard normal values (white noise)."""

    kind: Literal["gaussian"]


class UniformNoise(_Noise):
    """Independent values, uniform between -sqrt(3) and sqrt(3)."""

    kind: Literal["uniform"]


class RademacherNoise(_Noise):
    """Independent -1 and +1."""

    kind: Literal["rademacher"]


class LaplaceNoise(_Noise):
    """Independent Laplace values."""

    kind: Literal["laplace"]


class StudentTNoise(_Noise):
    """Independent Student t values, scaled to unit variance."""

    kind: Literal["student_t"]
    df: float = Field(5.0, gt=2, le=1e6, description="degrees of freedom")


class PinkNoise(_Noise):
    """Gaussian noise with the power spectrum 1 / f^alpha."""

    kind: Literal["pink"]
    alpha: float = Field(1.0, ge=0, le=8, description="exponent; photographs have about 2")


class BlurNoise(_Noise):
    """Gaussian noise, blurred at a random scale per sample."""

    kind: Literal["blur"]
    min_sigma: float = Field(0.5, gt=0, le=1000, description="least blur, pixels")
    max_sigma: float = Field(4.0, gt=0, le=1000, description="most blur, pixels")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_sigma > self.max_sigma:
            raise ContradictionError(
                "max_sigma", self.max_sigma, f"must be >= min_sigma, {self.min_sigma}"
            )
        return self


class PatchesNoise(_Noise):
    """Overlapping rectangles of one color each: edges as in images."""

    kind: Literal["patches"]
    num_patches: int = Field(32, ge=1, le=255, description="rectangles per sample")
    min_size: float = Field(0.1, gt=0, le=1, description="shortest side, share of the image's")
    max_size: float = Field(1.0, gt=0, le=1, description="longest side, share of the image's")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_size > self.max_size:
            raise ContradictionError(
                "max_size", self.max_size, f"must be >= min_size, {self.min_size}"
            )
        return self


class MatchedNoise(_Noise):
    """Gaussian noise with the mean, deviation and power spectrum of a data set."""

    kind: Literal["matched"]
    data: str = Field(description="directory of a Parquet data set; its train split is measured")


class FunctionNoise(_Noise):
    """Your own: function(shape, generator, device) -> tensor."""

    kind: Literal["function"]
    name: str = Field(pattern=_FUNCTION, description="module:function")


class MixtureNoise(_Noise):
    """Each sample from one of several noises."""

    kind: Literal["mixture"]
    parts: list[MixturePart] = Field(min_length=1, description="what is mixed")


Noise = Annotated[
    GaussianNoise
    | UniformNoise
    | RademacherNoise
    | LaplaceNoise
    | StudentTNoise
    | PinkNoise
    | BlurNoise
    | PatchesNoise
    | MatchedNoise
    | MixtureNoise
    | FunctionNoise,
    Field(discriminator="kind"),
]


class MixturePart(Strict):
    """A noise and how often it is drawn."""

    weight: float = Field(1.0, gt=0, allow_inf_nan=False, description="relative frequency")
    noise: Noise = Field(description="(as noise)")


MixtureNoise.model_rebuild()


class HardLabels(Strict):
    """Independent uniform class ids."""

    kind: Literal["hard"]


class BalancedLabels(Strict):
    """Class ids, every class equally often in a batch."""

    kind: Literal["balanced"]


class UniformLabels(Strict):
    """The target 1/K for each of K classes."""

    kind: Literal["uniform"]


class DirichletLabels(Strict):
    """Soft targets from a Dirichlet distribution."""

    kind: Literal["dirichlet"]
    alpha: float = Field(1.0, gt=1e-3, le=1e6, description="concentration of each class")


class SmoothedLabels(Strict):
    """Uniform class ids with label smoothing."""

    kind: Literal["smoothed"]
    epsilon: float = Field(0.1, gt=0, lt=1, description="mass spread over all classes")


class FixedLabels(Strict):
    """Pairs of noise and class id, drawn once and repeated."""

    kind: Literal["fixed"]
    num_batches: int = Field(ge=1, description="batches after which the pairs repeat")


Labels = Annotated[
    HardLabels | BalancedLabels | UniformLabels | DirichletLabels | SmoothedLabels | FixedLabels,
    Field(discriminator="kind"),
]


class _Optimizer(Strict):
    lr: float = Field(1e-3, gt=0, le=1e3, description="learning rate")
    weight_decay: float = Field(0.0, ge=0, le=10, description="weight decay")


class SGD(_Optimizer):
    """Stochastic gradient descent."""

    kind: Literal["sgd"]
    momentum: float = Field(0.0, ge=0, lt=1, description="momentum")
    nesterov: bool = Field(False, description="Nesterov momentum")

    @model_validator(mode="after")
    def _momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ContradictionError("nesterov", True, "needs a momentum > 0")
        return self


class Adam(_Optimizer):
    """Adam."""

    kind: Literal["adam"]
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.999), description="decay of the moments"
    )


class AdamW(Adam):
    """Adam with decoupled weight decay."""

    kind: Literal["adamw"]  # type: ignore[assignment]


Optimizer = Annotated[SGD | Adam | AdamW, Field(discriminator="kind")]


class Schedule(Strict):
    """The learning rate over the steps."""

    kind: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="constant, or decay to 0 at the last step"
    )
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up")


class CrossEntropy(Strict):
    """Cross-entropy, for class ids and for soft targets."""

    kind: Literal["cross_entropy"]
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="mass spread over all classes")


class KLDivergence(Strict):
    """Divergence of the prediction from soft targets."""

    kind: Literal["kl_div"]


class Focal(Strict):
    """Focal loss, for class ids."""

    kind: Literal["focal"]
    gamma: float = Field(2.0, ge=0, le=100, description="weight of what is hard")


Loss = Annotated[CrossEntropy | KLDivergence | Focal, Field(discriminator="kind")]


class _Model(Strict):
    num_classes: int = Field(ge=2, le=1_000_000, description="K")
    input_shape: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        description="[C, H, W], or [D] for flat inputs"
    )
    init: Literal["default", "he"] = Field(
        "default",
        description="the model's own initialization, or He's for every linear and conv layer",
    )

    @model_validator(mode="after")
    def _shape(self) -> Self:
        if len(self.input_shape) not in (1, 3):
            raise ContradictionError(
                "input_shape", list(self.input_shape), "must be [C, H, W] or [D]"
            )
        return self


class MLPModel(_Model):
    """A perceptron with ReLU: the paper's network."""

    kind: Literal["mlp"]
    depth: int = Field(3, ge=1, le=1000, description="hidden layers")
    width: int = Field(256, ge=1, le=100_000, description="units of a hidden layer")
    batch_norm: bool = Field(False, description="BatchNorm before each ReLU")


class TorchvisionModel(_Model):
    """A torchvision classifier, never with downloaded weights."""

    kind: Literal["torchvision"]
    name: str = Field(description="as in torchvision.models.list_models()")
    small_stem: bool = Field(
        False, description="ResNets only: 3x3 stem without pooling, for images of about 32 pixels"
    )
    args: dict[str, Any] = Field({}, description="more arguments of the model's builder")

    @model_validator(mode="after")
    def _known(self) -> Self:
        _require_known(self.name, models.torchvision_names(), "a torchvision classifier")
        if self.small_stem and not self.name.startswith(models.SMALL_STEM_FAMILIES):
            raise ContradictionError("small_stem", True, f"only for ResNets, not for {self.name}")
        if self.small_stem and len(self.input_shape) != 3:
            raise ContradictionError("input_shape", list(self.input_shape), "must be [C, H, W]")
        _refuse_reserved(self.args)
        return self


class TimmModel(_Model):
    """A timm classifier (extra: timm), never with downloaded weights."""

    kind: Literal["timm"]
    name: str = Field(description="as in timm.list_models()")
    args: dict[str, Any] = Field({}, description="more arguments of timm.create_model")

    @model_validator(mode="after")
    def _known(self) -> Self:
        try:
            names = models.timm_names()
        except ImportError:
            allowed = "needs timm: pip install 'precalib_ray[timm]'"
            raise ContradictionError("kind", "timm", allowed) from None
        _require_known(self.name, names, "a timm model")
        _refuse_reserved(self.args)
        return self


class FunctionModel(_Model):
    """Your own: function(num_classes=K, **args) -> torch.nn.Module."""

    kind: Literal["function"]
    name: str = Field(pattern=_FUNCTION, description="module:function")
    args: dict[str, Any] = Field({}, description="more arguments of the function")


Model = Annotated[
    MLPModel | TorchvisionModel | TimmModel | FunctionModel, Field(discriminator="kind")
]


def _require_known(name: str, names: list[str], what: str) -> None:
    if name not in names:
        near = models.nearest(name, names)
        raise ContradictionError("name", name, f"is not the name of {what}", " or ".join(near))


def _refuse_reserved(arguments: dict[str, Any]) -> None:
    for key in models.RESERVED_ARGUMENTS:
        if key in arguments:
            raise ContradictionError(f"args.{key}", arguments[key], "is set by precalib_ray")
