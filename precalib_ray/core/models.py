"""Classifiers from specs, their last layer, and how they are initialized.

A model is named by a spec, the plain mapping that a config and ``model.json`` hold: ``kind``,
``num_classes``, ``input_shape``, ``init`` and what the kind needs.
"""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from precalib_ray.core.importing import load_function

SMALL_STEM_FAMILIES = ("resnet", "resnext", "wide_resnet")
"""Prefixes of the torchvision models whose stem can be made for small images."""

KINDS = ("mlp", "torchvision", "timm", "function")

RESERVED_ARGUMENTS = (
    "weights", "weights_backbone", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay",
    "checkpoint_path", "cache_dir", "num_classes",
)  # fmt: skip
"""What a spec's ``args`` may not hold: weights come from a checkpoint, and from nowhere else."""


class MLP(nn.Module):
    """A perceptron with ReLU on the flattened input: the network of the paper's first figures."""

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        depth: int = 3,
        width: int = 256,
        batch_norm: bool = False,
    ) -> None:
        """``depth`` counts the hidden layers."""
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        features = math.prod(input_shape)
        for _ in range(depth):
            layers.append(nn.Linear(features, width))
            if batch_norm:
                layers.append(nn.BatchNorm1d(width))
            layers.append(nn.ReLU())
            features = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(features, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (B, K) of inputs (B, *input_shape)."""
        return self.head(self.body(inputs))  # type: ignore[no-any-return]


def torchvision_names() -> list[str]:
    """The names of torchvision's image classifiers."""
    import torchvision.models

    return list(torchvision.models.list_models(module=torchvision.models))


def timm_names() -> list[str]:
    """The names of timm's models; ImportError where timm is not installed."""
    import timm

    return list(timm.list_models())


def nearest(name: str, names: Sequence[str]) -> list[str]:
    """Up to three names that look like the one given, the nearest first."""
    return difflib.get_close_matches(name, names, n=3, cutoff=0.5)


def build(
    spec: Mapping[str, Any], *, seed: int | None = None, device: torch.device | str = "cpu"
) -> nn.Module:
    """A randomly initialized classifier; the global generators are left as they were.

    On the device ``meta`` it has shapes and no values.

    Raises:
        ValueError: an unknown name, with near ones, or a user's function that gives no module.
    """
    values = _without_values() if device == "meta" else contextlib.nullcontext()
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), values:
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        model = _construct(spec)
        if spec.get("init", "default") == "he" and device != "meta":
            initialize_he(model)
    return model.to(device)


@contextlib.contextmanager
def _without_values() -> Iterator[None]:
    """Parameters go to the device ``meta`` as they are made.

    ``torch.device("meta")`` would do so with every tensor, and constructors that compute with
    small ones, as those of torchvision's RegNets do, would fail.
    """

    def drop_values(_module: nn.Module, _name: str, parameter: nn.Parameter) -> nn.Parameter:
        if parameter.is_meta:  # tied to one made before
            return parameter
        return nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    handle = register_module_parameter_registration_hook(drop_values)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()


def _construct(spec: Mapping[str, Any]) -> nn.Module:
    kind, num_classes = spec["kind"], spec["num_classes"]
    arguments = dict(spec.get("args") or {})
    if kind == "mlp":
        keys = ("depth", "width", "batch_norm")
        return MLP(spec["input_shape"], num_classes, **{k: spec[k] for k in keys if k in spec})
    name = spec["name"]
    if kind == "function":
        model = load_function(name)(num_classes=num_classes, **arguments)
        if not isinstance(model, nn.Module):
            raise ValueError(f"{name} returned {type(model).__name__}, not a torch.nn.Module")
        return model
    if kind == "timm":
        import timm

        _require_known(name, timm_names(), "timm")
        created: nn.Module = timm.create_model(
            name, pretrained=False, num_classes=num_classes, **arguments
        )
        return created
    import torchvision.models

    _require_known(name, torchvision_names(), "torchvision")
    if name in ("googlenet", "inception_v3"):  # one output, and torchvision's own initialization
        arguments = {"aux_logits": False, "init_weights": True} | arguments
    classifier: nn.Module = torchvision.models.get_model(
        name, weights=None, num_classes=num_classes, **arguments
    )
    if spec.get("small_stem"):
        _make_small_stem(classifier, in_channels=spec["input_shape"][0])
    return classifier


def _require_known(name: str, names: Sequence[str], library: str) -> None:
    if name not in names:
        near = ", ".join(nearest(name, names)) or "none is near"
        raise ValueError(f"{library} has no model {name!r}; nearest names: {near}")


def _make_small_stem(model: nn.Module, *, in_channels: int) -> None:
    """A 3x3 convolution of stride 1 and no pooling: the usual stem for images of 32 pixels."""
    conv = nn.Conv2d(in_channels, 64, kernel_size=3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    model.conv1, model.maxpool = conv, nn.Identity()


def initialize_he(model: nn.Module) -> None:
    """He et al., 2015: weights of linear and convolution layers N(0, 2 / fan_in), biases zero."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def find_head(model: nn.Module, num_classes: int) -> tuple[str, nn.Linear | nn.Conv2d]:
    """Name and module of the last layer: the last linear or convolution with K outputs.

    Raises:
        ValueError: there is none.
    """
    found: tuple[str, nn.Linear | nn.Conv2d] | None = None
    for name, module in model.named_modules():
        outputs = (
            module.out_features
            if isinstance(module, nn.Linear)
            else module.out_channels
            if isinstance(module, nn.Conv2d)
            else None
        )
        if outputs == num_classes and isinstance(module, nn.Linear | nn.Conv2d):
            found = name, module
    if found is None:
        raise ValueError(f"no linear or convolution layer of the model has {num_classes} outputs")
    return found


@torch.no_grad()
def scale_head(model: nn.Module, num_classes: int, factor: float) -> None:
    """Multiply weights and biases of the last layer; 0 gives the zero-head baseline."""
    _, head = find_head(model, num_classes)
    for parameter in head.parameters(recurse=False):
        parameter.mul_(factor)


def select_trainable(model: nn.Module, num_classes: int, which: str | Sequence[str]) -> None:
    """Freeze every parameter but ``all``, those of the ``head``, or those that patterns match.

    Patterns are shell-style, over the parameters' names: ``layer4.*``.

    Raises:
        ValueError: a pattern matches no parameter.
    """
    if which == "all":
        return
    names = [name for name, _ in model.named_parameters()]
    patterns = [which] if isinstance(which, str) else list(which)
    if which == "head":
        patterns = [find_head(model, num_classes)[0] + ".*"]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            near = ", ".join(nearest(pattern, names)) or names[-1]
            raise ValueError(f"{pattern!r} matches no parameter; there is for example {near}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatch.fnmatch(name, pattern) for pattern in patterns))


def check_input(spec: Mapping[str, Any]) -> None:
    """Push a batch of the spec's input shape through the model without computing anything.

    Raises:
        ValueError: the model refuses the shape; the message names one that it takes, if one of
            the usual sizes is.
    """
    shape = tuple(spec["input_shape"])
    model = build(spec, device="meta").eval()
    failure = _try_shape(model, shape, spec["num_classes"])
    if failure is None:
        return
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    channels = first.in_channels if first is not None else 3
    for size in (32, 64, 224, 299):
        if _try_shape(model, (channels, size, size), spec["num_classes"]) is None:
            raise ValueError(
                f"the model refuses inputs of shape {shape}; it takes {(channels, size, size)}"
            )
    raise ValueError(f"the model refuses inputs of shape {shape}: {failure}")


@torch.no_grad()
def _try_shape(model: nn.Module, shape: tuple[int, ...], num_classes: int) -> str | None:
    """What is wrong with inputs of this shape, if anything."""
    try:
        outputs = model(torch.empty(2, *shape, device="meta"))
    except Exception as error:  # a model may refuse its input in any way it likes
        return str(error).partition("\n")[0] or type(error).__name__
    if not isinstance(outputs, Tensor) or outputs.shape != (2, num_classes):
        got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        return f"its output is {got}, not (batch, {num_classes})"
    return None
