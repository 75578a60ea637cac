"""What a user's own module might hold, good and bad."""

import math

import torch
from torch import nn

ANSWER = 42


def two_sided(shape, generator, device):
    return torch.randn(shape, generator=generator, device=device).abs().sub(0.5)


def wrong_shape(shape, generator, device):
    return torch.randn((*shape[:-1], shape[-1] + 1), generator=generator, device=device)


def no_tensor(shape, generator, device):
    return [0.0]


def with_nan(shape, generator, device):
    values = torch.randn(shape, generator=generator, device=device)
    values[0] = math.nan
    return values


def raises(shape, generator, device):
    raise RuntimeError("out of noise")


def with_dropout(num_classes, width=24):
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(12, width),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(width, num_classes),
    )


def small_conv(num_classes, channels=3):
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes),
    )  # fmt: skip


def computing(num_classes):
    """Its constructor needs values of a tensor, as that of torchvision's RegNets does."""
    widths = torch.linspace(4, 8, 3).int().tolist()
    return nn.Sequential(
        nn.Flatten(), nn.Linear(12, widths[-1]), nn.ReLU(), nn.Linear(widths[-1], num_classes)
    )


def three_classes(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))


def no_module(num_classes):
    return "a model"
